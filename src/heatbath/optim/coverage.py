"""Which layer is treated how: a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heatbath.curvature import piece
from heatbath.operators import map_tensors
from heatbath.optim.layout import Layout
from heatbath.optim.stacks import Stack


@dataclass(frozen=True)
class Covered:
    """One row: a module (or bare parameter) and its treatment."""

    name: str
    kind: str
    treatment: str
    parameters: int


@dataclass(frozen=True)
class Coverage:
    """What an optimizer does with each trainable parameter of a model; `print` it.

    A weight that is also used outside the calls of its module (`x @ layer.weight.T` in the model's
    forward) has the curvature of the calls alone, and the table cannot know.

    Args:
        rows: one per treated module, fallback parameter and frozen parameter.
        held: bytes held now, by kind: "factors" (averages, and eigenbases where they are corrected), "solver" (inverses),
            "momentum", and "captured", which is given back at the next step. AdamW's own state is not counted.
    """

    rows: tuple[Covered, ...]
    held: Mapping[str, int] = field(default_factory=dict)

    @property
    def state_bytes(self) -> int:
        """Bytes of curvature, solver state and momentum held now."""
        return sum(self.held.values())

    def count(self, treatment: str) -> int:
        """Parameters (numbers) under treatments that start with `treatment`."""
        return sum(r.parameters for r in self.rows if r.treatment.startswith(treatment))

    def __str__(self) -> str:
        head = ("layer", "kind", "treatment", "parameters")
        table = [head, *((r.name, r.kind, r.treatment, f"{r.parameters:,}") for r in self.rows)]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        lines.insert(1, "  ".join("-" * w for w in widths))
        total = sum(r.parameters for r in self.rows if r.treatment != "frozen")
        curved = self.count("kfac") + self.count("ngd")
        parts = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in self.held.items() if size)
        state = f"state {self.state_bytes / 2**20:.1f} MiB" + f" ({parts})" * bool(parts)
        lines.append(f"{curved:,} of {total:,} trainable numbers by curvature; {state}")
        return "\n".join(lines)


def describe(layout: Layout, model: nn.Module, state: Mapping[Any, Any]) -> Coverage:  # Any: torch's own type
    """Make the table for an optimizer, from its layout, its model and its per-parameter state."""
    names = {id(p): name for name, p in model.named_parameters()}
    users: dict[int, list[tuple[str, str]]] = {}  # of each parameter: names and kinds of modules
    for name, module in model.named_modules():
        for p in module.parameters(recurse=False):
            users.setdefault(id(p), []).append((name or "(model)", type(module).__name__))
    kinds = {key: " + ".join(dict.fromkeys(kind for _, kind in own)) for key, own in users.items()}
    ties = {key: f", tied: {' and '.join(name for name, _ in own)}" * (len(own) > 1) for key, own in users.items()}
    rows = []
    for site in layout.sites:
        shapes = " + ".join(_shape(stack, site.blocks[place.block].places) for stack, place in layout.places[id(site)])
        numbers = sum(p.numel() for p in site.parameters().values())
        tie = "".join({ties[id(p)] for p in site.parameters().values() if site.twins and id(p) in ties})
        treatment = "adamw, no call seen" if site.name in layout.uncalled else f"kfac {shapes}{tie}"
        rows.append(Covered(site.name or "(model)", type(site.module).__name__, treatment, numbers))
    fallback = [p for params in layout.fallback for p in params]
    known = {id(p) for p in fallback} | {id(p) for site in layout.sites for p in site.parameters().values()}
    rows += [Covered(names[id(p)], kinds[id(p)], f"adamw{ties[id(p)]}", 0 if is_lazy(p) else p.numel()) for p in fallback]
    for name, p in model.named_parameters():
        if id(p) not in known:
            rows.append(Covered(name, kinds[id(p)], "untrained" if p.requires_grad else "frozen", p.numel()))
    return Coverage(tuple(rows), _held(layout.stacks, state))


def _shape(stack: Stack, places: int) -> str:
    """A block in words: its places, its shape, and which sides are not held in full."""
    form = stack.sums.form
    (out, inputs), sides = form.block.domain, (("outputs", form.left), ("inputs", form.right))
    cut = ", ".join(f"{name}: {held}" for name, held in sides if held is not None and str(held))
    return f"{places}×" * (places > 1) + f"{out}×{inputs}" + f" ({cut})" * bool(cut)


def _held(stacks: Sequence[Stack], state: Mapping[Any, Any]) -> dict[str, int]:  # Any: as above
    """Bytes of what stacks hold, by kind."""
    return {
        "factors": sum(_bytes((stack.mean, stack.corrected)) for stack in stacks),
        "solver": sum(_bytes(stack.state) for stack in stacks),
        "momentum": sum(_bytes(piece(own["momentum_buffer"])) for own in state.values() if "momentum_buffer" in own),
        "captured": sum(_bytes((stack.sums.left, stack.sums.right)) for stack in stacks),
    }


def _bytes(value: Any) -> int:  # Any: a tree of tensors
    """Bytes of the tensors in a tree."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    map_tensors(count, value)
    return total
