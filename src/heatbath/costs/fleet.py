"""Independent jobs on K equal machines: longest job first, each to the machine that is free first.

The last machine is done at most (4 − 1/K)/3 times as late as under the best plan there is (Graham 1969, doi
10.1137/0117039). To find that plan is NP-hard; this takes a sort.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable


def assign(jobs: Iterable[tuple[float, float]], *, machines: int) -> tuple[tuple[float, ...], ...]:
    """Assign jobs to machines, longest first.

    Args:
        jobs: (seconds, count) of each kind of job, in any order. The fraction of a count is a shorter job.
        machines: K, how many machines work side by side.

    Returns:
        For each machine the number of jobs of each kind, in the order of `jobs`. A machine that would be idle is left out.

    Raises:
        ValueError: fewer than one machine.

    >>> assign([(3.0, 1), (2.0, 3)], machines=2)
    ((1.0, 1.0), (0.0, 2.0))
    """
    if machines < 1:
        raise ValueError(f"work needs at least one machine, got {machines}")
    kinds = list(jobs)
    queue: list[tuple[float, int]] = []
    loads: list[list[float]] = []
    for kind in sorted(range(len(kinds)), key=lambda i: -kinds[i][0]):
        seconds, count = kinds[kind]
        if machines == 1:
            pieces: list[float] = [count]
        else:
            whole = math.floor(count)
            pieces = [1.0] * whole + ([count - whole] if count > whole else [])
        for piece in pieces:
            if len(loads) < machines:
                loads.append([0.0] * len(kinds))
                heapq.heappush(queue, (0.0, len(loads) - 1))
            busy, machine = heapq.heappop(queue)
            loads[machine][kind] += piece
            heapq.heappush(queue, (busy + piece * seconds, machine))
    return tuple(tuple(load) for load in loads)


def makespan(jobs: Iterable[tuple[float, float]], *, machines: int) -> float:
    """Seconds until the last of `machines` machines is done with `jobs`, as (seconds, count).

    Raises:
        ValueError: fewer than one machine.

    >>> makespan([(3.0, 1), (2.0, 3)], machines=2)
    5.0
    """
    kinds = list(jobs)
    loads = assign(kinds, machines=machines)
    return max((sum(count * seconds for count, (seconds, _) in zip(load, kinds, strict=True)) for load in loads), default=0.0)
