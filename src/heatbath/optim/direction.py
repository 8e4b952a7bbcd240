"""What a solver proposes, before anything moves: natural gradients v beside gradients g, stack by stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.optim.packing import Packing
from heatbath.optim.quadratic import Linearization, Minimum, minimize
from heatbath.optim.stacks import Stack


@dataclass(eq=False)
class Direction:
    """Natural gradients of all stacks that have gradients.

    Args:
        stacks: all stacks.
        groups: the optimizer's parameter groups.
        packing: where parameters lie in stacks.
        parameters: those that have gradients.
        gradients: g by index of the stack, `[L, O, I]`.
        natural: v likewise, finite.
        products: vᵀg of each, 0-d, in the order of `natural`.
        finite: whether all gradients and products are finite, a 0-d bool; where false, nothing may move.
        minimum: of the quadratic model, once that was asked for.
    """

    stacks: Sequence[Stack]
    groups: Sequence[dict[str, Any]]  # Any: torch's own type
    packing: Packing
    parameters: Sequence[Tensor]
    gradients: Mapping[int, Tensor]
    natural: Mapping[int, Tensor]
    products: Sequence[Tensor]
    finite: Tensor
    minimum: Minimum | None = None

    def values(self) -> dict[Tensor, Tensor]:
        """V by parameter, in the stacks' dtype."""
        return self.packing.scatter(self.natural, self.parameters)

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

    def minimize(
        self,
        linear: Sequence[Linearization],
        momentum: Mapping[Tensor, Tensor],
        damping: Sequence[float | Tensor],
        shared: bool,
    ) -> tuple[Tensor, Tensor]:
        """Scale and momentum at the minimum of the exact quadratic model over the plane of v and m, both 0-d.

        Args:
            linear: the model's linearizations on this batch.
            momentum: m by parameter; zero where there is none yet.
            damping: λ of each stack.
            shared: add up over processes.
        """
        zeros = {p: torch.zeros_like(p) for p in self.parameters if p not in momentum}
        axes = [self.natural, self.packing.gather({**momentum, **zeros})]
        flat = [[v.to(p.dtype) for p, v in self.packing.scatter(axis, self.parameters).items()] for axis in axes]
        parameters = list(self.values())
        slopes = [_total([(self.gradients[i] * axis[i]).sum() for i in axis]) for axis in axes]
        ridge = [[_total([damping[i] * (a[i] * b[i]).sum() for i in a]) for b in axes] for a in axes]
        pairs = [(parameters, values) for values in flat]
        self.minimum = minimize(linear, pairs, torch.stack(slopes), torch.stack([torch.stack(r) for r in ridge]), shared)
        return self.minimum.weights[0], self.minimum.weights[1]

    def reduction(self, moves: Mapping[Tensor, Tensor], damping: Sequence[float | Tensor]) -> Tensor:
        """How far the step θ − lr·m should lower the damped quadratic model, 0-d.

        By the exact model where it was minimized (lr of the first group), else by the layers' own curvature, momentum included.
        """
        if self.minimum is not None:
            lr = self.groups[0]["lr"]
            return (lr - 0.5 * lr**2) * self.minimum.depth
        parts = []
        for i, m in self.packing.gather(moves).items():
            stack, lr = self.stacks[i], self.groups[self.stacks[i].group]["lr"]
            assert stack.mean is not None
            image = ((stack.corrected or stack.mean) @ m) + damping[i] * m
            parts.append(lr * (self.gradients[i] * m).sum() - 0.5 * lr**2 * (m * image).sum())
        return _total(parts)


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Sum of 0-d tensors."""
    return torch.stack(list(parts)).sum()
