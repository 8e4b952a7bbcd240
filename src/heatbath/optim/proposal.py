"""What one step proposes: natural gradients v beside gradients g, before anything moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature import norms, own_pieces
from heatbath.optim.heavy_ball import descend
from heatbath.optim.packing import Packing, strided
from heatbath.optim.quadratic import Linearization, Minimum, minimize
from heatbath.optim.stacks import Stack
from heatbath.work import Work, update


@dataclass(eq=False)
class Proposal:
    """Natural gradients of all stacks that have gradients.

    Args:
        stacks: all stacks.
        groups: the optimizer's parameter groups.
        grads: g by index of the stack, `[L, O, I]`.
        natural: v likewise.
        products: vᵀg of each, 0-d, in the order of `natural`.
        finite: whether all gradients and products are finite, a 0-d bool; where false, nothing may move.
        minimum: of the quadratic model, once that was asked for.
    """

    stacks: Sequence[Stack]
    groups: Sequence[dict[str, Any]]  # Any: torch's own type
    grads: Mapping[int, Tensor]
    natural: Mapping[int, Tensor]
    products: Sequence[Tensor]
    finite: Tensor
    minimum: Minimum | None = None

    @staticmethod
    def of(
        stacks: Sequence[Stack],
        groups: Sequence[dict[str, Any]],  # Any: torch's own type
        grads: Mapping[int, Tensor],
        natural: Mapping[int, Tensor],
        *,
        trusted: Mapping[int, Tensor],
        rest: Sequence[Tensor],
    ) -> Proposal:
        """Judge whether all is finite, and leave out what no solver could solve.

        Passes over `[L, O, I]` are chosen for what they take: `where` costs five times what `nan_to_num` and a product do.

        Args:
            stacks: all stacks.
            groups: the optimizer's parameter groups.
            grads: g by index of the stack.
            natural: v likewise, as solved.
            trusted: which members of each have a usable v, bool `[L]`.
            rest: gradients of parameters without curvature.
        """
        products = [torch.where(trusted[i], (v * grads[i]).sum((1, 2)), 0.0).sum() for i, v in natural.items()]
        seen = [grads[i].sum() for i in natural]  # of members left out, too
        sizes = [n.float() for n in norms([strided(g) for g in rest])]
        finite = torch.isfinite(torch.stack([*products, *seen, *sizes])).all()
        safe = {i: v.nan_to_num(0.0, 0.0, 0.0).mul_(trusted[i].view(-1, 1, 1)) for i, v in natural.items()}
        return Proposal(stacks, groups, grads, safe, products, finite)

    def reach(self, i: int) -> float | Tensor:
        """The length that a sustained step of a stack grows to: lr and what momentum makes of it."""
        group = self.groups[self.stacks[i].group]
        reach: float | Tensor = group["lr"] / (1 - group["momentum"])
        return reach

    def change(self) -> Tensor:
        """Σ lr² vᵀg, 0-d, lr including momentum's gain."""
        return torch.stack([p * self.reach(i) ** 2 for i, p in zip(self.natural, self.products, strict=True)]).sum()

    def length(self) -> Tensor:
        """‖lr·v‖, 0-d, lr including momentum's gain."""
        squares = [v.square().sum().float() * self.reach(i) ** 2 for i, v in self.natural.items()]
        return torch.stack(squares).sum().sqrt()

    def advance(self, i: int, scale: Tensor, momentum: Tensor | None) -> Tensor:
        """Do m ← momentum·m + scale·v of one stack, `[L, O, I]`; kept, and zeros returned, if not finite.

        Args:
            i: index of the stack.
            scale: of the natural gradient, 0-d.
            momentum: 0-d; None: that of the stack's group.
        """
        stack = self.stacks[i]
        natural = self.natural[i]
        share = torch.where(self.finite, scale, 0.0).to(natural.dtype)
        own = self.groups[stack.group]["momentum"]
        if momentum is None and not own:
            return torch.mul(natural, share, out=stack.empty())
        stack.momentum = stack.empty().zero_() if stack.momentum is None else stack.settled(stack.momentum)
        wanted = torch.full_like(self.finite, own, dtype=natural.dtype) if momentum is None else momentum.to(natural)
        held = stack.momentum.mul_(torch.where(self.finite, wanted, 1.0)).addcmul_(natural, share)
        return torch.mul(held, self.finite.to(held.dtype), out=stack.empty())

    def minimize(
        self, linear: Sequence[Linearization], packing: Packing, damping: Sequence[float | Tensor], shared: bool
    ) -> tuple[Tensor, Tensor]:
        """Scale and momentum at the minimum of the exact quadratic model over the plane of v and m, both 0-d.

        Args:
            linear: the model's linearizations on this batch.
            packing: where parameters lie in stacks.
            damping: λ of each stack.
            shared: add up over processes.
        """
        before = {}
        for i, v in self.natural.items():
            momentum = self.stacks[i].momentum
            before[i] = torch.zeros_like(v) if momentum is None else momentum
        axes: list[Mapping[int, Tensor]] = [self.natural, before]
        pushed = [packing.scatter(axis) for axis in axes]
        flat = [_flat(groups) for groups in pushed]
        slopes = [_total([(self.grads[i] * axis[i]).sum() for i in axis]) for axis in axes]
        ridge = [[_total([damping[i] * (a[i] * b[i]).sum() for i in a]) for b in axes] for a in axes]
        self.minimum = minimize(linear, flat, torch.stack(slopes), torch.stack([torch.stack(r) for r in ridge]), shared)
        return self.minimum.weights[0], self.minimum.weights[1]

    def reduction(self, moves: Mapping[int, Tensor], damping: Sequence[float | Tensor]) -> Tensor:
        """How far the step θ − lr·m should lower the damped quadratic model, 0-d.

        By the exact model where it was minimized (lr of the first group), else by the layers' own curvature, momentum included.
        """
        if self.minimum is not None:
            lr = self.groups[0]["lr"]
            return (lr - 0.5 * lr**2) * self.minimum.depth
        parts = []
        for i, m in moves.items():
            stack, lr = self.stacks[i], self.groups[self.stacks[i].group]["lr"]
            assert stack.mean is not None
            bent = ((stack.corrected or stack.mean) @ m) + damping[i] * m
            parts.append(lr * (self.grads[i] * m).sum() - 0.5 * lr**2 * (m * bent).sum())
        return _total(parts)


def objective(
    evaluate: Callable[[], Tensor],
    groups: Sequence[dict[str, Any]],
    count: int | Tensor,
) -> Tensor:
    """The loss as a mean over examples, with the L2 penalties that gradients include, 0-d; `count` divides a summed loss."""
    value = torch.as_tensor(evaluate()).detach() / count
    for group in groups:
        if group["l2"]:
            value = value + 0.5 * group["l2"] * torch.stack(norms(group["params"])).square().sum()
    return value


def move(
    found: Mapping[int, tuple[list[Tensor], list[Tensor]]], groups: Sequence[dict[str, Any]], finite: Tensor
) -> Work:  # Any: torch's own type
    """Decoupled weight decay, then θ ← θ − lr·m, in place; returns what that took, momentum included.

    Args:
        found: parameters and their m, by index of their group.
        groups: the optimizer's parameter groups.
        finite: 0-d bool; where false, m is zero and nothing decays.
    """
    numbers = 0
    for index, pair in found.items():
        group, (parameters, values) = groups[index], own_pieces(*pair)
        if group["weight_decay"]:
            wide = torch.promote_types(parameters[0].dtype, torch.float32)
            torch._foreach_mul_(parameters, 1 - finite.to(wide) * (group["lr"] * group["weight_decay"]))
        descend(parameters, values, group["lr"])
        numbers += sum(p.numel() for p in parameters)
    return Work.of(update(numbers, operations=5, touched=5))


def _flat(groups: Mapping[int, tuple[list[Tensor], list[Tensor]]]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and their directions, of all groups."""
    pairs = [groups[index] for index in sorted(groups)]
    every = [(p, v.to(p.dtype)) for parameters, values in pairs for p, v in zip(parameters, values, strict=True)]
    return [p for p, _ in every], [v for _, v in every]


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Sum of 0-d tensors."""
    return torch.stack(list(parts)).sum()
