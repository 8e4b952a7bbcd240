"""Digital hardware: one that was measured for this project, and whatever this runs on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache

import torch

from heatbath.costs.digital import Digital, Timing

_H100_MILLISECONDS = {  # float32 (products in TF32), PyTorch 2.11; by (size, stack)
    "matmul": {(768, 12): 0.11, (1024, 1): 0.05, (2048, 1): 0.08, (3072, 12): 2.0, (4096, 1): 0.44, (8192, 1): 2.9},
    "cholesky": {(768, 12): 1.3, (1024, 1): 0.43, (2048, 1): 0.86, (3072, 12): 16.6, (4096, 1): 2.3, (8192, 1): 9.8},
    "inverse": {(768, 12): 4.6, (1024, 1): 0.78, (2048, 1): 1.9, (3072, 12): 49.0, (4096, 1): 6.9, (8192, 1): 33.0},
    "eigh": {(768, 12): 96.0, (1024, 1): 11.0, (2048, 1): 26.0, (3072, 12): 630.0, (4096, 1): 96.0},
}

_H100_HALF_PRODUCTS = {(768, 12): 0.04, (1024, 1): 0.04, (2048, 1): 0.05, (3072, 12): 0.93, (4096, 1): 0.23, (8192, 1): 1.5}


def h100() -> Digital:
    """One NVIDIA H100 SXM in float32 with TF32 products.

    Times of the four kernels K-FAC needs are measured. Peak rate (float32 outside the tensor cores, for kernels that were not
    timed), bandwidth and power (the limit, so energies are upper bounds) are the data sheet's; a launch is the shortest call
    that was measured.
    """
    return _h100("NVIDIA H100 SXM", _H100_MILLISECONDS)


def h100_bf16() -> Digital:
    """The same with products in bfloat16, as measured; everything else as in `h100`."""
    return _h100("NVIDIA H100 SXM, products in bf16", {**_H100_MILLISECONDS, "matmul": _H100_HALF_PRODUCTS})


def _h100(name: str, milliseconds: Mapping[str, Mapping[tuple[int, int], float]]) -> Digital:
    timings = tuple(
        Timing(kernel, size, value * 1e-3, stack)
        for kernel, points in milliseconds.items()
        for (size, stack), value in points.items()
    )
    return Digital(
        name=name,
        source="times measured with PyTorch 2.11; peak, bandwidth and 700 W from NVIDIA's H100 data sheet (SXM)",
        flops_per_second=67e12,
        bytes_per_second=3.35e12,
        launch_seconds=0.04e-3,
        watts=700.0,
        timings=timings,
    )


@cache
def this_cpu() -> Digital:
    """The CPU this runs on, by a probe of about a second, taken once; its power is not stated.

    The probe measures with the number of threads torch has when it is first called.
    """
    return probe_cpu()


def probe_cpu(sizes: tuple[int, ...] = (64, 256, 1024), *, repeats: int = 3) -> Digital:
    """Time matmul, Cholesky, inverse and eigh in float32 at a few sizes.

    Args:
        sizes: sizes n to time, each [n, n].
        repeats: how often; the median counts.
    """
    timings = [Timing(name, n, _seconds(call, repeats)) for n in sizes for name, call in _kernels(n).items()]
    numbers = torch.ones(4_000_000, device="cpu")
    products = [t for t in timings if t.kernel == "matmul"]
    threads = torch.get_num_threads()
    return Digital(
        name=f"this CPU ({platform.machine()}, {threads} threads)",
        source=f"measured here with PyTorch {torch.__version__}, {threads} threads",
        flops_per_second=max(2.0 * t.size**3 / t.seconds for t in products),
        bytes_per_second=8.0 * numbers.numel() / _seconds(lambda: numbers + 1, repeats),
        launch_seconds=_seconds(lambda: numbers[:1] + 1, 20 * repeats),
        timings=tuple(timings),
    )


def _kernels(n: int) -> dict[str, Callable[[], object]]:
    """The timed routines on a well-conditioned SPD matrix that has no structure to exploit, made without randomness."""
    index = torch.arange(1.0, n + 1, device="cpu")
    rows = torch.sin(index[:, None] * index * 0.37)
    matrix = rows @ rows.T / n + torch.eye(n, device="cpu")
    factor = torch.linalg.cholesky(matrix)
    return {
        "matmul": lambda: matrix @ matrix,
        "cholesky": lambda: torch.linalg.cholesky_ex(matrix),
        "inverse": lambda: torch.cholesky_inverse(factor),
        "eigh": lambda: torch.linalg.eigh(matrix),
    }


def _seconds(call: Callable[[], object], repeats: int) -> float:
    call()  # the first call pays for what later ones do not
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return max(statistics.median(times), 1e-9)
