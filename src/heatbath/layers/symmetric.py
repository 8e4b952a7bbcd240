"""Networks that have an energy with symmetric couplings, as equilibrium propagation needs: which layers may be in one.

E(s) = Σ_l ½‖s_l‖² − Σ_l s_lᵀ (W_l s_{l−1} + b_l) couples whole layers and keeps hidden units in [0, 1], so `nn.Linear` and
`nn.Hardtanh(0, 1)` in turn have it (Scellier & Bengio 2017, arXiv 1602.05179). What multiplies, normalizes or looks up has not.
"""

from __future__ import annotations

from torch import nn

_REASONS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    (
        nn.MultiheadAttention,
        "attention multiplies three signals and normalizes them, which no pairwise energy does",
    ),
    ((nn.Embedding, nn.EmbeddingBag), "an embedding looks a row up, and nothing flows back into an index"),
    (
        (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm),
        "a norm divides by a statistic of its own input, which no symmetric coupling does",
    ),
    (nn.RNNBase, "a recurrent layer's weights act forward in time only, an energy's act both ways"),
    (nn.RNNCellBase, "a recurrent layer's weights act forward in time only, an energy's act both ways"),
    (nn.modules.conv._ConvNd, "convolutions have such an energy, but this machine couples whole layers"),
    (nn.Dropout, "dropout draws another network for every pass, the two relaxations need one"),
)


def symmetric_layers(network: nn.Module) -> list[nn.Linear]:
    """The linear layers of a network that has an energy with symmetric couplings.

    Raises:
        TypeError: it has none, or none that is known here.
    """
    for name, module in network.named_modules():
        for kinds, reason in _REASONS:
            if isinstance(module, kinds):
                raise TypeError(
                    f"equilibrium propagation cannot train {name or 'the model'} ({type(module).__name__}): {reason}"
                )
    if not isinstance(network, nn.Sequential):
        raise TypeError(
            f"equilibrium propagation cannot train {type(network).__name__}: its forward pass is code, which need not be the "
            "minimum of an energy; give it nn.Sequential(nn.Linear(…), nn.Hardtanh(0.0, 1.0), …, nn.Linear(…))"
        )
    others = [part for part in network if not (isinstance(part, nn.Linear) or _clips(part))]
    if others:
        part = next((part for part in others if not isinstance(part, nn.Flatten)), others[0])
        raise TypeError(
            f"equilibrium propagation cannot train {part}: its units stay in [0, 1] and are coupled by whole layers; use "
            "nn.Linear and nn.Hardtanh(0.0, 1.0) in turn"
        )
    parts = list(network)
    layers = [part for part in parts[::2] if isinstance(part, nn.Linear)]
    if len(parts) % 2 == 0 or len(layers) < len(parts[::2]) or not all(map(_clips, parts[1::2])):
        raise TypeError("equilibrium propagation needs nn.Linear and nn.Hardtanh(0.0, 1.0) in turn, Linear first and last")
    return layers


def _clips(part: nn.Module) -> bool:
    """Whether a module keeps units in [0, 1]."""
    return isinstance(part, nn.Hardtanh) and part.min_val == 0 and part.max_val == 1
