"""Independent truth for layer rules: per-example gradients by torch.func, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.utils.rnn import PackedSequence

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


Select = Callable[[Any], tuple[Tensor, ...]]


def along(dim: int, tensor: Tensor) -> Tensor:
    """To which example each entry belongs, where examples lie along one dimension; broadcasts against `tensor`."""
    return torch.arange(tensor.shape[dim]).reshape([-1 if d == dim else 1 for d in range(tensor.ndim)])


def example_gradients(
    module: nn.Module, call: Call, select: Select, weights: Sequence[Tensor], owners: Sequence[Tensor]
) -> list[dict[str, Tensor]]:
    """Gradients, by trained parameter, of Σ weights · outputs restricted to the outputs of one example after the other."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], masks: list[Tensor]) -> Tensor:
        if call.random is not None:
            torch.set_rng_state(call.random.host)
        outputs = select(functional_call(module, (parameters, buffers), call.args, dict(call.kwargs)))
        return sum((y * w * m).sum() for y, w, m in zip(outputs, weights, masks, strict=True))

    def truth(masks: list[Tensor]) -> dict[str, Tensor]:
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        if not any(isinstance(value, PackedSequence) for value in call.args):
            return grad(loss)(trained, buffers, masks)
        leaves = {name: p.clone().requires_grad_() for name, p in trained.items()}  # torch.func cannot pack sequences
        return dict(zip(leaves, torch.autograd.grad(loss(leaves, buffers, masks), list(leaves.values())), strict=True))

    examples = range(int(owners[0].max()) + 1)
    masks = [[(owner == example).to(weights[0].dtype) for owner in owners] for example in examples]
    return [truth(mask) for mask in masks]


def assert_call_gives_example_gradients(
    module: nn.Module, call: Call, select: Select, owners: Callable[[Tensor], Tensor], *, single: bool = False, seed: int = 7
) -> tuple[Rows, ...]:
    """The master law: Σ_s g aᵀ over the rows of an example is the packed gradient of that example.

    Args:
        module: the layer.
        call: its arguments, and the random state before it where it draws.
        select: the tensors of its output that the loss uses, in the order of the rule's `outputs`.
        owners: for each of them, to which example each entry belongs.
        single: the rule is given one gradient instead of a sequence.
        seed: of the random loss.
    """
    rule = rule_of(module)
    with torch.no_grad():
        outputs = select(copy.deepcopy(module)(*call.args, **call.kwargs))  # a copy: batch norm counts its calls
    weights = [torch.randn(y.shape, generator=fresh(seed + i), dtype=y.dtype) for i, y in enumerate(outputs)]
    gradients = example_gradients(module, call, select, weights, [owners(y) for y in outputs])
    before = {name: p.grad for name, p in module.named_parameters()}
    with torch.no_grad():  # as capture calls it
        rows = rule.rows(module, call, weights[0] if single else tuple(weights))
    assert all(p.grad is before[name] for name, p in module.named_parameters())
    blocks = rule.blocks(module)
    assert len(rows) == len(blocks)
    for index, (row, block) in enumerate(zip(rows, blocks, strict=True)):
        truth = torch.stack([rule.pack(module, example)[index] for example in gradients], dim=1)
        assert truth.shape == (block.places, len(gradients), *block.domain)
        assert block.diagonal_inputs == isinstance(row.inputs, OneHot)
        assert not row.outputs.requires_grad
        assert_close(outer_sums(row), truth)
    return rows


def assert_rows_are_example_gradients(module: nn.Module, *args: object, batched: bool = True) -> tuple[Rows, ...]:
    """The master law for a layer with one output, examples along its first dimension."""

    def owners(y: Tensor) -> Tensor:
        return along(0, y) if batched else torch.zeros([1] * y.ndim)

    return assert_call_gives_example_gradients(module, Call(tuple(args)), lambda y: (y,), owners, single=True)


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
