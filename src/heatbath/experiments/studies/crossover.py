"""From which size on one method is faster than another: square layers, counted at sizes on a lattice.

A layer n × n has two factors of size n. Only what differs between methods is priced: renewing and applying the preconditioner;
passes and outer products are the same for all. The digital side is the best of its methods at the same interval. Both sides
keep factors in full, so both have the same preconditioner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from heatbath.costs import Hardware, StepWork, step_prices
from heatbath.experiments.studies.networks import Network
from heatbath.experiments.studies.runtime import Counted, Method, Runtime, Watch, count
from heatbath.experiments.studies.step_work import FULL

SIZES = tuple(round(64 * 2 ** (k * 2 / 3)) for k in range(13))  # 64 to 16384


def layer(size: int) -> Network:
    """One square layer."""
    return Network(
        f"layer-{size}",
        f"one layer {size} × {size}",
        "",
        lambda: nn.Linear(size, size, bias=False),
        lambda: (torch.empty(1, size), torch.empty(1, size)),
        lambda output, target: (output - target).square().mean(),
    )


def count_layers(
    study: Runtime, folder: Path, *, sizes: Sequence[int] = SIZES, watch: Watch = lambda name, fresh: None
) -> dict[int, Counted]:
    """Count square layers of all sizes by all second-order methods with factors in full."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [method for method in study.methods if method.optimizer is None and method.form == FULL]
    return {size: count(layer(size), wanted, folder, watch=watch) for size in sizes}


def seconds_of(step: StepWork, method: Method, hardware: Hardware, every: int) -> float:
    """Seconds a step for what differs between methods."""
    return step_prices(step, hardware, half=method.half, passes=False).per_step(every).seconds


def best_digital(counted: Counted, methods: Sequence[Method], hardware: Hardware, every: int) -> tuple[float, Method]:
    """The fastest digital method with factors in full and its seconds a step, without passes."""
    digital = [method for method in methods if not method.analog and method.optimizer is None and method.form == FULL]
    found = [(seconds_of(counted.steps[method.name], method, hardware, every), method) for method in digital]
    return min(found, key=lambda pair: pair[0])


def crossover(sizes: Sequence[int], challenger: Sequence[float], incumbent: Sequence[float]) -> float | None:
    """The size from which the challenger stays at or below the incumbent, up to the largest size.

    Between two sizes both curves are power laws, so their crossing is found exactly there.

    Args:
        sizes: in ascending order.
        challenger: its seconds at each.
        incumbent: its.

    Returns:
        The size; the smallest of `sizes` if it is ahead everywhere; None if it is not ahead at the largest.

    Raises:
        ValueError: lists of different length, or empty ones.

    >>> round(crossover([10, 1000], [1e2, 1e4], [1e1, 1e7]), 6)  # 10 n against n³/100
    31.622777
    """
    if not sizes or not len(sizes) == len(challenger) == len(incumbent):
        raise ValueError(f"a crossover needs curves over the same sizes, got {len(sizes)}, {len(challenger)}, {len(incumbent)}")
    ahead = [math.log(c / i) for c, i in zip(challenger, incumbent, strict=True)]
    if ahead[-1] > 0:
        return None
    first = len(sizes) - 1
    while first and ahead[first - 1] <= 0:
        first -= 1
    if first == 0:
        return float(sizes[0])
    left, right = math.log(sizes[first - 1]), math.log(sizes[first])
    share = ahead[first - 1] / (ahead[first - 1] - ahead[first])
    return math.exp(left + share * (right - left))
