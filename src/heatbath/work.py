"""What a computation asked of hardware, as a value that adds up.

Work is counted where it arises (a solver, a machine, the optimizer) and priced elsewhere (`heatbath.costs`), so a
recorded run can be re-priced for other hardware without running it again. Two kinds of things are counted:

    Kernel   one call of a digital routine: its name, its shape, floating-point operations, bytes moved
    Job      one visit to an analog machine: a matrix programmed, then drives served one after the other

`Work` is a multiset of both. A multiply and an add are one operation each. Counts come from shapes only, never from
tensor values, so that counting never waits for a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """One digital routine on one problem.

    Args:
        name: `"matmul"`, `"cholesky"`, `"inverse"` (from a Cholesky factor), `"triangular_solve"`, `"eigh"` or
            `"elementwise"`; cost models look measured times up under it.
        shape: the sizes that define the problem: (m, k, n) for matmul, (n,) for factorizations, (n, rhs) for solves.
        flops: floating-point operations of one call.
        bytes: bytes read and written by one call at 4 bytes a number.
    """

    name: str
    shape: tuple[int, ...]
    flops: float
    bytes: float


@dataclass(frozen=True)
class Job:
    """One visit to an analog machine: an optional programming, then `drives` drives in series.

    Args:
        machine: name of the machine's specification.
        cells: cells in use, that is the size n of the matrix.
        upload_bits: bits sent to program the matrix; 0 if it was already there.
        drives: drives served one after the other.
        drive_bits: bits sent for each drive.
        read_bits: bits returned for each drive.
        settle_seconds: analog time before reading starts, for each drive.
        read_seconds: analog time of the reading, for each drive.
        conversions_in: digital-to-analog conversions for each drive.
        conversions_out: analog-to-digital conversions for each drive.
        updates: random updates of single cells for each drive, on machines made of probabilistic bits.
    """

    machine: str
    cells: int
    upload_bits: float = 0.0
    drives: int = 0
    drive_bits: float = 0.0
    read_bits: float = 0.0
    settle_seconds: float = 0.0
    read_seconds: float = 0.0
    conversions_in: int = 0
    conversions_out: int = 0
    updates: float = 0.0


def _merge(a: Mapping[Any, float], b: Mapping[Any, float]) -> dict[Any, float]:
    total = dict(a)
    for key, count in b.items():
        total[key] = total.get(key, 0) + count
    return total


@dataclass(frozen=True, eq=True)
class Work:
    """A multiset of digital kernels and analog jobs.

    Args:
        kernels: how often each kernel ran.
        jobs: how often each job ran. Jobs of one `Work` are independent of one another: a fleet may run them in parallel.

    >>> (Work.of(matmul(2, 3, 4)) + Work.of(matmul(2, 3, 4), count=2)).flops
    144.0
    """

    kernels: Mapping[Kernel, float] = field(default_factory=dict)
    jobs: Mapping[Job, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernels", MappingProxyType(dict(self.kernels)))
        object.__setattr__(self, "jobs", MappingProxyType(dict(self.jobs)))

    @staticmethod
    def of(item: Kernel | Job, count: float = 1) -> Work:
        """The work of `count` equal kernels or jobs."""
        return Work(kernels={item: count}) if isinstance(item, Kernel) else Work(jobs={item: count})

    def __add__(self, other: Work) -> Work:
        return Work(_merge(self.kernels, other.kernels), _merge(self.jobs, other.jobs))

    def __mul__(self, times: float) -> Work:
        return Work({k: c * times for k, c in self.kernels.items()}, {j: c * times for j, c in self.jobs.items()})

    __rmul__ = __mul__

    def __sub__(self, part: Work) -> Work:
        """What is left without `part`, which this holds.

        >>> (Work.of(matmul(2, 3, 4), 3) - Work.of(matmul(2, 3, 4))).flops
        96.0
        """
        left = self + part * -1
        return Work(
            {kernel: count for kernel, count in left.kernels.items() if count > 1e-9},
            {job: count for job, count in left.jobs.items() if count > 1e-9},
        )

    @property
    def flops(self) -> float:
        """Digital floating-point operations."""
        return float(sum(k.flops * c for k, c in self.kernels.items()))

    @property
    def programmings(self) -> float:
        """How often a matrix was sent to a machine."""
        return float(sum(c for j, c in self.jobs.items() if j.upload_bits > 0))

    @property
    def conversions(self) -> float:
        """Digital-to-analog and analog-to-digital conversions together."""
        return float(sum(c * j.drives * (j.conversions_in + j.conversions_out) for j, c in self.jobs.items()))

    @property
    def analog_seconds(self) -> float:
        """Analog settling and reading time, summed over machines as if they ran one after the other."""
        return float(sum(c * j.drives * (j.settle_seconds + j.read_seconds) for j, c in self.jobs.items()))

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Plain lists and numbers, for a record file; `from_json` is the inverse."""
        return {
            "kernels": [{**vars(k), "shape": list(k.shape), "count": c} for k, c in self.kernels.items()],
            "jobs": [{**vars(j), "count": c} for j, c in self.jobs.items()],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Work:
        """Rebuild from `to_json`."""
        kernels = {}
        for row in data["kernels"]:
            row = dict(row)
            count = row.pop("count")
            kernels[Kernel(**{**row, "shape": tuple(row["shape"])})] = count
        jobs = {}
        for row in data["jobs"]:
            row = dict(row)
            count = row.pop("count")
            jobs[Job(**row)] = count
        return Work(kernels, jobs)


def matmul(m: int, k: int, n: int) -> Kernel:
    """[m, k] times [k, n]."""
    return Kernel("matmul", (m, k, n), 2.0 * m * k * n, 4.0 * (m * k + k * n + m * n))


def cholesky(n: int) -> Kernel:
    """Cholesky factorization of an [n, n] matrix: n³/3 operations."""
    return Kernel("cholesky", (n,), n**3 / 3, 8.0 * n * n)


def inverse(n: int) -> Kernel:
    """Explicit inverse from a Cholesky factor: 2n³/3 operations."""
    return Kernel("inverse", (n,), 2 * n**3 / 3, 8.0 * n * n)


def triangular_solve(n: int, rhs: int) -> Kernel:
    """One triangular solve of size n with `rhs` right-hand sides."""
    return Kernel("triangular_solve", (n, rhs), float(n) * n * rhs, 4.0 * (n * n / 2 + 2 * n * rhs))


def eigh(n: int) -> Kernel:
    """Symmetric eigendecomposition with vectors: about 9n³ operations (Golub & Van Loan, 4th ed., §8.3)."""
    return Kernel("eigh", (n,), 9.0 * n**3, 12.0 * n * n)


def elementwise(numbers: int, operations: float = 1.0) -> Kernel:
    """An elementwise pass over `numbers` numbers."""
    return Kernel("elementwise", (numbers,), operations * numbers, 8.0 * numbers)


def update(parameters: int, operations: int, touched: int) -> Kernel:
    """An optimizer's pass over its parameters: operations, and numbers read or written, for each of them."""
    return Kernel("elementwise", (parameters,), float(operations * parameters), 4.0 * touched * parameters)
