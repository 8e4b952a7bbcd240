"""The least a K-FAC step can cost beside a plain one, from shapes alone.

With T rows in a layer of O outputs and I inputs (homogeneous coordinate included), in multiply–adds:

    plain step     forward and backward products, as torch's own counter has them: about 3·T·O·I a layer
    capture        ½T(O² + I²), symmetric products, every `factor_every` steps
    refresh        ½(O³ + I³), a Cholesky factor (n³/6) and the inverse from it (n³/3), every `refresh_every` steps
    application    O²I + OI², at every step

    floor = (plain + capture/factor_every + refresh/refresh_every + application) / plain

A factor cut into K blocks of m counts K·m², K·m³ and m·O·I in place of n², n³ and n·O·I; a diagonal one counts nothing. One
held as a sketch of rank r counts 2Tnr to capture, 3nr² to refresh (ΩᵀY and both halves of Y = QR) and 2r·O·I to apply. Passes
over memory, which are most of AdamW's own cost, count nothing either, so the floor is a bound on arithmetic and no prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

from step_workloads import Workload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import heatbath as hb
from heatbath.operators import BlockDiagonal, Dense, Operator, Sketched


@dataclass(frozen=True)
class Floor:
    """Multiply–adds of one step, capture, refresh and application."""

    plain: float
    capture: float
    refresh: float
    application: float

    def ratio(self, factor_every: int, refresh_every: int) -> float:
        """Of all arithmetic to that of the plain step."""
        return 1 + (self.capture / factor_every + self.refresh / refresh_every + self.application) / self.plain


def plain(workload: Workload) -> float:
    """Multiply–adds of forward and backward products."""
    model, (x, y) = workload.model(), workload.batch()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # whose products the counter sees
        workload.loss(model(x), y).backward()
    return counter.get_total_flops() / 2


def count(workload: Workload, policy: hb.Policy) -> Floor:
    """The floor of K-FAC on a workload, by the rows and factors that heatbath has for it."""
    model, (x, y) = workload.model(), workload.batch()
    optimizer = hb.KFAC(model, policy=policy)
    workload.loss(model(x), y).backward()
    rows = [
        [c.rows for c, span in zip(s.sums.counts, s.sums.spans, strict=True) for _ in range(span)] for s in optimizer.stacks
    ]
    capture = refresh = application = 0.0
    optimizer.param_groups[0]["lr"] = 1e-30
    optimizer.step()
    for stack, numbers in zip(optimizer.stacks, rows, strict=True):
        assert stack.mean is not None
        out, inputs = stack.domain
        for side in (stack.mean.left, stack.mean.right):
            once, again, width = products(side)
            capture += once * sum(numbers)
            refresh += again * len(numbers)
            application += width * out * inputs * len(numbers)
    return Floor(plain(workload), capture, refresh, application)


def products(side: Operator) -> tuple[float, float, float]:
    """Multiply–adds of one factor: a row captured, a refresh, and an application to one number; zeros where it is diagonal."""
    if isinstance(side, Dense) and side.size > 1:
        return 0.5 * side.size**2, 0.5 * side.size**3, side.size
    if isinstance(side, BlockDiagonal):
        pieces, size = side.blocks.shape[-3:-1]
        return 0.5 * pieces * size**2, 0.5 * pieces * size**3, size
    if isinstance(side, Sketched):
        return 2.0 * side.size * side.rank, 3.0 * side.size * side.rank**2, 2 * side.rank
    return 0.0, 0.0, 0.0
