"""How long digital hardware takes for a kernel: measured where it was measured, by the roofline elsewhere.

A kernel of size n (for a product [m, k] × [k, n] the size of the cube of equal volume, (mkn)^⅓) that was timed at sizes
n₁ < … < n_m takes t(n), linear in log t over log n between the points. Below n₁ the slope of the first two points is kept
(small problems wait, they do not compute), above n_m the rate is, t ∝ n³. Equal kernels run as a stack, as this library runs
them: for a stack of c ≤ s, where stacks of s were timed too, one takes

    t_c = t_1^(1−w) t_s^w,    w = log c / log s

and more than s take t_s each, where t_s is never above t_1. A count below 1, of a kernel that runs in some steps only, is
that share of one call, its launch included. A kernel that was never timed takes the roofline time
max(flops / peak, bytes / bandwidth) of Williams, Waterman & Patterson 2009 (doi 10.1145/1498765.1498785), a lower bound; no
time is below its memory term, nor below one launch. Where this errs it favours the digital side, as a comparison should.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from heatbath.work import Kernel, Work


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Args:
        kernel: name of the kernel, as in `heatbath.work.Kernel`.
        size: n of the square problem that was timed.
        seconds: time of the whole stack, in seconds.
        stack: how many problems of that size ran in one call.

    Raises:
        ValueError: a size, stack or time that is not positive.
    """

    kernel: str
    size: int
    seconds: float
    stack: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.stack < 1 or not self.seconds > 0:
            raise ValueError(f"a timing needs a positive size, stack and time; got {self}")


@dataclass(frozen=True)
class Digital:
    """Digital hardware, as a cost model sees it.

    Args:
        name: what to call it.
        source: where the figures come from.
        flops_per_second: peak rate for kernels that were never timed, in operations per second.
        bytes_per_second: memory bandwidth, in bytes per second.
        launch_seconds: least time of one call, in seconds.
        watts: power while it computes, in watts; None is "not stated".
        timings: measurements, in any order.

    Raises:
        ValueError: a rate, time or power that is not positive; two timings of the same thing.
    """

    name: str
    source: str
    flops_per_second: float
    bytes_per_second: float
    launch_seconds: float
    watts: float | None = None
    timings: tuple[Timing, ...] = ()

    def __post_init__(self) -> None:
        for field in ("flops_per_second", "bytes_per_second", "launch_seconds", "watts"):
            value = getattr(self, field)
            if value is not None and not (0 < value < math.inf):
                hint = "; leave it None if it is not stated" if field == "watts" else ""
                raise ValueError(f"{field} of {self.name!r} must be positive and finite, got {value!r}{hint}")
        timed = [(t.kernel, t.size, t.stack) for t in self.timings]
        twice = sorted({key for key in timed if timed.count(key) > 1})
        if twice:
            raise ValueError(f"{self.name!r} has two timings of (kernel, size, stack) {twice[0]}; keep one")

    def kernel_seconds(self, kernel: Kernel, count: float = 1) -> float:
        """Seconds for `count` equal kernels, run as one stack; below 1, that share of one kernel's.

        >>> slow = Digital("slow", "an example", flops_per_second=1e9, bytes_per_second=1e9, launch_seconds=1e-6)
        >>> slow.kernel_seconds(Kernel("matmul", (100, 100, 100), flops=2e6, bytes=1.2e5))
        0.002
        """
        if count <= 0:
            return 0.0
        if count < 1:  # on average: a call in some steps, none in others
            return count * self.kernel_seconds(kernel)
        memory = count * kernel.bytes / self.bytes_per_second
        measured = self._measured(kernel, count)
        compute = count * kernel.flops / self.flops_per_second if measured is None else measured
        return max(self.launch_seconds, memory, compute)

    def seconds(self, work: Work) -> float:
        """Seconds for all kernels of `work`, one kind after the other."""
        return sum(self.kernel_seconds(kernel, count) for kernel, count in work.kernels.items())

    def _measured(self, kernel: Kernel, count: float) -> float | None:
        timings = [t for t in self.timings if t.kernel == kernel.name]
        if not timings:
            return None
        size = math.prod(kernel.shape) ** (1 / len(kernel.shape))
        largest = max(t.stack for t in timings)
        batched = _interpolate(size, [t for t in timings if t.stack == largest])
        alone = [t for t in timings if t.stack == 1]
        single = _interpolate(size, alone) if alone else batched
        batched = min(batched, single)
        weight = 0.0 if largest == 1 else min(max(math.log(count) / math.log(largest), 0.0), 1.0)
        return float(count * single ** (1 - weight) * batched**weight)


def _interpolate(size: float, timings: Sequence[Timing]) -> float:
    """Seconds of one problem of `size`, from timings of one stack."""
    points = sorted((t.size, t.seconds / t.stack) for t in timings)
    if size >= points[-1][0] or len(points) == 1:
        n, seconds = points[-1]
        return seconds * (size / n) ** 3
    right = max(bisect.bisect([n for n, _ in points], size), 1)
    (n0, t0), (n1, t1) = points[right - 1], points[right]
    slope = math.log(t1 / t0) / math.log(n1 / n0)
    return t0 * (size / n0) ** (slope if size >= n0 else max(slope, 0.0))
