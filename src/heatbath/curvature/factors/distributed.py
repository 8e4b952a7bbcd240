"""Factor sums over the processes of a data-parallel run.

Each of W processes holds the sums of its own part of the batch. Since factors are sums divided by counts, adding both up and
dividing then gives exactly the factors of one process on the concatenated batch, also for parts of unequal size: rows of a
process whose loss is a mean over D_r terms are g = γ/D_r, so with D = Σ_r D_r

    B = (1/D) Σ_r D_r² Σ g gᵀ,    A = (1/T) Σ_r Σ a aᵀ.

Of symmetric sums only one triangle travels; sketches are tall and travel whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from heatbath.curvature.factors.sums import Counts, FactorSums
from heatbath.curvature.reduction import Reduction
from heatbath.operators import from_triangle, lower_triangle, upload


def is_parallel() -> bool:
    """Whether this process is one of several in an initialised default group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_processes(sums: Sequence[FactorSums], reduction: Reduction | None, terms: Tensor | int | None) -> Tensor | None:
    """Add up sums and counts over all processes, in place; every process must call it, with the same sums.

    Afterwards left sums are of whole terms, as under `Reduction.SUM`. It reads the counts back from the device, once.

    Args:
        sums: what was captured here.
        reduction: how the loss joins its terms here.
        terms: D of this process: 0-d where outputs were observed, a number or None where rows are of ordinary passes.

    Returns:
        D of all processes, where outputs were observed.
    """
    counts: list[float] = []
    for each in sums:
        left, right = each.hold()
        counted = each.terms(reduction, None if isinstance(terms, Tensor) else terms)
        for count, term, span in zip(each.counts, counted, each.spans, strict=True):
            counts += [term, *count.filled(1 if each.form.block.gradient_inputs else span)]
        of_gradients = each.of_gradients()
        for tensor in of_gradients:
            if not isinstance(terms, Tensor) and reduction is not Reduction.SUM:
                each.scale_terms(tensor, [float(t) ** 2 for t in counted])
        sides = ((each.form.left, left), (each.form.right, right))
        symmetric = [total for held, total in sides if held is not None and held.symmetric]
        for tensor in (*of_gradients, *(() if each.form.block.gradient_inputs else (right,))):
            _add_up(tensor, symmetric=any(tensor is t for t in symmetric))
    if not sums:
        return terms if isinstance(terms, Tensor) else None
    total = upload(counts, sums[0].form.device, torch.float64)
    dist.all_reduce(total)
    joined = iter(total.tolist())
    for each in sums:
        each.counts = [_joined(joined, 1 if each.form.block.gradient_inputs else span) for span in each.spans]
        each.filled = any(c.rows for c in each.counts)
    if not isinstance(terms, Tensor):
        return None
    terms = terms.clone()
    dist.all_reduce(terms)
    return terms


def _add_up(tensor: Tensor, *, symmetric: bool) -> None:
    """Add up over all processes, in place; of symmetric matrices the lower triangles, half the bytes."""
    parts = lower_triangle(tensor) if symmetric else tensor.contiguous()
    dist.all_reduce(parts)
    if parts is not tensor:
        tensor.copy_(from_triangle(parts) if symmetric else parts)


def _joined(numbers: Iterator[float], places: int) -> Counts:
    """Counts of the next block: its terms, then the rows of each of its places."""
    terms, *rows = (round(next(numbers)) for _ in range(places + 1))
    empty = tuple(max(rows) - r for r in rows)
    return Counts(max(rows), positions=terms, examples={0: terms}, empty=empty if any(empty) else ())
