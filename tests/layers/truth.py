"""Independent truth for layer rules: per-example gradients by torch.func, one example at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from heatbath.layers import Call, LayerRule, OneHot, Rows, default_rules, rule_for

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=fresh(seed), dtype=dtype)


def rule_of(module: nn.Module) -> LayerRule:
    rule = rule_for(module, default_rules())
    assert rule is not None
    return rule


def dense(rows: Rows) -> Tensor:
    """Inputs `[P, B, S, I]` with one-hot rows written out."""
    if not isinstance(rows.inputs, OneHot):
        return rows.inputs
    hot = F.one_hot(rows.inputs.indices.clamp_min(0), rows.inputs.size)
    return hot.to(rows.outputs.dtype) * (rows.inputs.indices >= 0)[..., None]


def outer_sums(rows: Rows) -> Tensor:
    """Σ_s g aᵀ of each example, `[P, B, O, I]`."""
    return torch.einsum("pbso,pbsi->pboi", rows.outputs, dense(rows))


def example_gradients(
    module: nn.Module, args: Sequence[object], weights: Tensor, *, batched: bool = True
) -> list[dict[str, Tensor]]:
    """Gradients of Σ weights · output restricted to one example after the other, by the trained parameters' names."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], mask: Tensor) -> Tensor:
        return (functional_call(module, parameters, tuple(args)) * weights * mask).sum()

    if not batched:
        return [grad(loss)(trained, torch.ones_like(weights))]
    masks = torch.eye(weights.shape[0], dtype=weights.dtype)
    return [grad(loss)(trained, mask.reshape(-1, *[1] * (weights.ndim - 1))) for mask in masks]


def assert_rows_are_example_gradients(
    module: nn.Module, *args: object, batched: bool = True, seed: int = 7
) -> tuple[Rows, ...]:
    """The master law: Σ_s g aᵀ over the rows of an example is the packed gradient of that example."""
    rule = rule_of(module)
    with torch.no_grad():
        output = module(*args)
    weights = torch.randn(output.shape, generator=fresh(seed), dtype=output.dtype)
    gradients = example_gradients(module, args, weights, batched=batched)
    before = {name: p.grad for name, p in module.named_parameters()}
    rows = rule.rows(module, Call(tuple(args)), weights)
    assert all(p.grad is before[name] for name, p in module.named_parameters())
    blocks = rule.blocks(module)
    assert len(rows) == len(blocks)
    for index, (row, block) in enumerate(zip(rows, blocks, strict=True)):
        truth = torch.stack([rule.pack(module, example)[index] for example in gradients], dim=1)
        assert truth.shape == (block.places, len(gradients), *block.domain)
        assert block.diagonal_inputs == isinstance(row.inputs, OneHot)
        assert_close(outer_sums(row), truth)
    return rows


def assert_pack_inverts(module: nn.Module, seed: int = 3) -> None:
    """Unpack after pack is the identity, bit by bit, and pack after unpack too."""
    rule = rule_of(module)
    names = [name for block in rule.blocks(module) for name in block.parameters]
    tensors = {n: torch.randn(module.get_parameter(n).shape, generator=fresh(seed + i)) for i, n in enumerate(names)}
    packed = rule.pack(module, tensors)
    assert [p.shape for p in packed] == [(b.places, *b.domain) for b in rule.blocks(module)]
    restored = rule.unpack(module, packed)
    assert restored.keys() == tensors.keys()
    assert all(torch.equal(restored[n], tensors[n]) for n in names)
    assert all(torch.equal(a, b) for a, b in zip(rule.pack(module, restored), packed, strict=True))


def assert_close(got: Tensor, truth: Tensor) -> None:
    assert got.shape == truth.shape
    scale = truth.abs().max().clamp_min(1.0) if truth.numel() else 1.0
    assert (got - truth).abs().max().item() <= TOLERANCE[truth.dtype] * scale if truth.numel() else True
