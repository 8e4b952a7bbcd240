"""Bias-corrected exponential moving averages of operators.

    m_t = m_{t-1} + c_t (x_t − m_{t-1}),    c_t = (1 − β) / (1 − βᵗ)

equals the usual average divided by 1 − βᵗ (Kingma & Ba 2015), so it is unbiased from the first value on, with no memory of an
arbitrary start (kfac-pytorch starts from the identity). Blocks that saw nothing keep their average and their age.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heatbath.operators import Kronecker, map_tensors, upload


def update_average(
    mean: Kronecker | None,
    batch: Kronecker,
    *,
    ages: list[int],
    seen: Sequence[bool],
    decay: float,
    spans: Sequence[int] | None = None,
) -> Kronecker:
    """Fold one batch of factors into the running mean.

    Members with a NaN or inf keep their old mean (decided on the device; their age still advances).

    Args:
        mean: the mean so far, stack `[L]`, or None at first.
        batch: factors of this batch, stack `[L]`.
        ages: how many batches each block has seen; advanced in place.
        seen: which blocks of `batch` hold data.
        decay: β in [0, 1).
        spans: how many members of the stack each block takes; None: one.
    """
    if mean is None:
        mean = map_tensors(torch.zeros_like, batch)
    weights = average_weights(ages, seen, decay, spans)
    if not any(seen):
        return mean
    sample, before = batch.left.trace() + batch.right.trace(), mean.left.trace() + mean.right.trace()
    finite = torch.isfinite(sample)
    weight = _as_tensor(weights, sample)
    weight = torch.where((before == 0) & (weight > 0), 1.0, weight)  # nothing to average with: all before was not finite
    weight = torch.where(finite, weight, 0.0)

    def lerp(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        shape = (-1,) + (1,) * (old.ndim - 1)
        return torch.lerp(old, new.nan_to_num(0.0, 0.0, 0.0), weight.view(shape))

    return map_tensors(lerp, mean, batch)


def average_weights(ages: list[int], seen: Sequence[bool], decay: float, spans: Sequence[int] | None = None) -> list[float]:
    """c_t of each member, 0 for what was not seen; advances ages in place."""
    weights = []
    for i, is_seen in enumerate(seen):
        ages[i] += is_seen
        weight = (1 - decay) / (1 - decay ** ages[i]) if is_seen else 0.0
        weights += [weight] * (1 if spans is None else spans[i])
    return weights


def _as_tensor(weights: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Host numbers as a device tensor; one fill where they agree, which needs no copy."""
    if len(set(weights)) == 1:
        return torch.full_like(like, weights[0])
    return upload(weights, like.device, like.dtype)
