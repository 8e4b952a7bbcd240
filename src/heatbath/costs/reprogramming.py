"""Machines that hold more matrices than there are machines: each visit begins by sending its matrix.

A solve with a matrix that another one has displaced needs it programmed again. With fewer machines than matrices every visit is
taken to need that, though a good plan could leave some matrices where they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from heatbath.work import Job, Work

NONE = Work()


def send_again(drives: Work, matrices: Work, *, already: Work = NONE) -> Work:
    """The same visits, each of which sends its matrix first.

    Args:
        drives: visits to machines that were thought to hold their matrix.
        matrices: programmings, which say how many bits a matrix of so many cells takes; a visit of another size sends nothing.
        already: programmings that are paid for, each of which serves one visit of its size.

    Returns:
        As many visits with as many drives.
    """
    bits = {(job.machine, job.cells): job.upload_bits for job in matrices.jobs}
    visits: Counter[tuple[str, int]] = Counter()
    served: Counter[tuple[str, int]] = Counter()
    for counts, work in ((visits, drives), (served, already)):
        for job, count in work.jobs.items():
            counts[job.machine, job.cells] += count  # type: ignore[assignment]  # counts may be fractions
    jobs: dict[Job, float] = {}
    for job, count in drives.jobs.items():
        size = (job.machine, job.cells)
        share = max(0.0, 1.0 - served[size] / visits[size])
        sending = replace(job, upload_bits=job.upload_bits + bits.get(size, 0.0))
        for kind, part in ((sending, share), (job, 1.0 - share)):
            if part > 0:
                jobs[kind] = jobs.get(kind, 0.0) + count * part
    return Work(drives.kernels, jobs)
