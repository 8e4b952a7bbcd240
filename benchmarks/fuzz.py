"""Random, damaged and extreme inputs: is each answered rightly, or refused in one clear message, in time?

    python benchmarks/fuzz.py checkpoints --cases 1500 --seed 0

A family of cases is a module `fuzz_FAMILY.py` with a generator `cases(count, seed)` of `Case`s. The
same seed gives the same cases. Prints the counts by verdict and every case that failed; the exit code
is 1 if one did. A small seeded subset of each family runs as a test.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import Counter

from fuzz_cases import FAILURES, judge

FAMILIES = {
    "checkpoints": "damaged checkpoints, records and results of tuning",
    "machines": "machine files, and a small solve with each",
    "networks": "networks, solvers and policies on extreme data",
    "solves": "linear systems of any scale, layout and solver",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="family", required=True)
    for family, about in FAMILIES.items():
        command = commands.add_parser(family, help=about)
        command.add_argument("--cases", type=int, default=1500, help="how many")
        command.add_argument("--seed", type=int, default=0, help="of the cases")
        command.add_argument("--limit", type=float, default=20.0, help="seconds after which a case hangs")
    options = parser.parse_args()
    cases = importlib.import_module(f"fuzz_{options.family}").cases(options.cases, options.seed)
    began, counts = time.perf_counter(), Counter[str]()
    for case in cases:
        verdict, words = judge(case, limit=options.limit)
        counts[verdict] += 1
        if verdict in FAILURES:
            print(f"{verdict}: {case.name}: {words}", flush=True)
    seconds = time.perf_counter() - began
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    print(f"{options.family}, seed {options.seed}: {counts.total()} cases in {seconds:.0f} s: {verdicts}")
    return int(any(counts[verdict] for verdict in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
