"""Tables as comma-separated text: the numbers behind a figure or a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def table_csv(head: Sequence[str], rows: Iterable[Sequence[object]], *, digits: int | None = 6) -> str:
    """A line of titles and one for each row.

    Args:
        head: titles.
        rows: cells; None is an empty one.
        digits: significant digits of floats; None: all they have.

    >>> print(table_csv(["n", "seconds"], [[3, 0.12345678], [4, None]], digits=3), end="")
    n,seconds
    3,0.123
    4,
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([f"{cell:.{digits}g}" if isinstance(cell, float) and digits is not None else cell for cell in row])
    return buffer.getvalue()
