"""docs/performance.md from the results of `step.py` and `scaling.py`.

    python benchmarks/performance_page.py

Figures on the page are read from the results, so that nobody edits a measurement; the words around them are here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaling import table_of
from step import cells

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
COLUMNS = ["", "ratio", "median", "p99", "floor", "ratio/floor", "state MiB", "ms"]
SCALING = {
    "width": "Two layers w × w, batch 1024: ratio to AdamW at intervals 10/10 (peak memory)",
    "depth": "Layers of 256, batch 512: ratio to AdamW at intervals 10/10 (peak memory)",
    "size": "One matrix: time (peak memory), and p of t ∝ nᵖ over n ≥ 256",
    "rows": "A product of n − 1 × n by n × n: time (peak memory)",
}

Record = dict[str, Any]  # Any: JSON values

MADE_OF = """## What a step is made of

For a layer of O outputs and I inputs (bias included) that sees T rows in a batch, in multiply–adds:

| part | costs | when |
|---|---|---|
| forward and backward | 3·T·O·I | every step |
| application, B⁻¹ G A⁻¹ | O²I + OI² | every step |
| capture, ½ Σ a aᵀ and ½ Σ g gᵀ | ½T(O² + I²); in four strips ⅝ of the whole instead of ½ | every `factor_every` steps |
| refresh, Cholesky and inverse | ½(O³ + I³) | every `refresh_every` steps |

So application adds (O + I)/3T to a step, whatever the intervals: it is small where a batch has many more rows than a layer
is wide (a transformer sees batch × length rows), and is the price of a perceptron with as many rows as units. The *floor*
below is all of it over the plain step, arithmetic alone. What a step takes above it are passes over memory and calls."""

CHOOSING = """## When to refresh

Factors and inverses every 10 steps is the default. The table of what a step is made of says what longer intervals save: capture
is T/10(O² + I²)/2 against 3·T·O·I, a few per cent for square layers, so `factor_every` is worth raising only where
layers are far from square. A refresh costs (O³ + I³)/2 against 3·T·O·I: where T is many times the width, ten is cheap; where it
is not, `refresh_every=50` or 100 saves most of what lies between `median` and `ratio` in the tables. Intervals grow from 3 in
the first steps (`patience`), because curvature changes fast there; that is about twenty-five refreshes more, once.

## Large factors

A factor of n costs n³/2 to renew and n² numbers to hold twice. By default those above 2048 are held as sketches of rank
r = 256, for 3nr² and nr. `Policy(max_dim=1024, rank=None)` cuts them into K = n/1024 diagonal blocks in place of that: n³/2
falls to 1/K², n² to 1/K, and coupling between the blocks is dropped; `Policy(max_dim=None)` holds all in full.
[refresh.md](refresh.md) measures what each form loses: rank 256 less than blocks of 2048. Below about 1000 neither saves much.

## Solver

- `Cholesky()`, the default: the least arithmetic of all, and no read of the device.
- `NewtonSchulz()`: matrix products only. On a CPU 20 cold steps are 40 products, 80 times Cholesky's arithmetic; it is for
  hardware whose products are far faster than its factorizations, and for warm starts.
- `Eigen()`: exact damping and EKFAC, four products a step in place of two, and an eigendecomposition to refresh.
- Thermodynamic solvers, emulated: an emulated inverse is one Cholesky inverse, three products and 24 products with a vector, so
  a refresh costs several times a digital one. `Guarded`, which watches all but Cholesky, reads a few flags per refresh.

## Why it is not slower

- All layers of one shape are one tensor, and a factor, an inverse, its application and momentum are one call each.
- Results of products lie in rows that start at cache lines (`operators/aligned.py`; the last table below). A bias makes nearly
  every layer odd.
- Sums of outer products are filled up to the diagonal only, in strips, and mirrored when they are collected.
- Passes over gradients are by kernels that a processor does many numbers at a time with; `torch.where` is none of them on a
  CPU. Nothing in a step waits for the device, on refreshes by Cholesky neither (`tests/optim/test_no_sync.py`).
- Outside the steps that capture, hooks return at once."""


def markdown(lines: list[list[str]]) -> str:
    """A table whose first line is its head."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *rest])


def verdicts(workloads: dict[str, Record]) -> str:
    """The goals, and whether K-FAC as it comes meets them; and how even staggered steps are."""
    lines = [["workload", "goal", "hb.KFAC", "over floor", "p99 staggered", "AdamW's own p99", "cheaper peers"]]
    for key, found in workloads.items():
        rows = found["rows"]
        own, even, plain = (rows.get(name) for name in ("hb.KFAC", "hb.KFAC, staggered", "AdamW, foreach"))
        if own is None:
            continue
        ahead = [
            f"{n} {r['ratio']:.2f}"
            for n, r in rows.items()
            if r["preconditions"] and "hb." not in n and r["ratio"] < own["ratio"]
        ]
        met = "met" if own["ratio"] <= found["goal"] else "missed"
        ends = [f"{row['p99']:.2f}" if row else "–" for row in (even, plain)]
        near = f"{own['ratio'] / own['floor']:.2f}"
        lines.append([f"({key})", f"≤ {found['goal']}: {met}", f"{own['ratio']:.2f}", near, *ends, ", ".join(ahead) or "none"])
    return markdown(lines)


def emulated(workloads: dict[str, Record]) -> str:
    """Steps with the emulated inverse over steps by Cholesky, and the goal of 1.5."""
    lines = [["workload", "hb.KFAC", "emulated over Cholesky", "goal ≤ 1.5"]]
    pairs = {"hb.KFAC, thermodynamic": "hb.KFAC", "hb.KFAC, thermodynamic, blocks of 1024": "hb.KFAC, blocks of 1024"}
    for key, found in workloads.items():
        for machine, digital in pairs.items():
            if machine in found["rows"] and digital in found["rows"]:
                over = found["rows"][machine]["ratio"] / found["rows"][digital]["ratio"]
                form = "blocks of 1024" if "blocks" in digital else "as it comes"
                lines.append([f"({key})", form, f"{over:.2f}", "met" if over <= 1.5 else "missed"])
    return markdown(lines)


def step_tables(workloads: dict[str, Record]) -> str:
    """A table for each workload."""
    parts = []
    for key, found in workloads.items():
        rows = [[name, *cells(row)] for name, row in found["rows"].items()]
        parts.append(f"**({key})** {found['title']}\n\n{markdown([COLUMNS, *rows])}")
    return "\n\n".join(parts)


def scaled(scaling: Record) -> str:
    """A table for each question."""
    return "\n\n".join(f"{title}:\n\n{markdown(table_of(q, scaling[q]))}" for q, title in SCALING.items() if q in scaling)


def conditions(record: Record) -> str:
    """Where and with what a record was measured."""
    host, packages = record["environment"], record["environment"]["packages"]
    clock = "wall clock" if record["clock"] == "wall" else "processor time, as the machine was not idle"
    return f"{record['date']}, {host['processor']}, threads: {host['threads']}, PyTorch {packages['torch']}, {clock}"


def settings(workloads: dict[str, Record]) -> str:
    """What each name stands for."""
    known = {name: row["settings"] for found in workloads.values() for name, row in found["rows"].items()}
    return "\n".join(f"- {name}: {words}" for name, words in known.items())


def introduction(step: Record, scaling: Record) -> str:
    """What the page is, and where and when its figures were measured."""
    return f"""# Performance

<!-- made by benchmarks/performance_page.py from benchmarks/results/step.json and scaling.json: do not edit -->

What a K-FAC step costs beside an AdamW step, what it is made of, and how to choose. Measured by

    python benchmarks/step.py --write --kfac-pytorch PATH
    python benchmarks/scaling.py --write

and put together by `python benchmarks/performance_page.py`.

- Steps: {conditions(step)}.
- Scaling: {conditions(scaling)}.

Never run on a GPU, for want of one: `python benchmarks/gpu.py --write` times the GPT, ViT and MLP shapes for which other
libraries' figures on an H100 are known. [refresh.md](refresh.md) says what
was made ready for it, and what not."""


def goals(workloads: dict[str, Record]) -> str:
    """The goals, and which are met."""
    return f"""## Goals

{verdicts(workloads)}

Other goals are a ratio of at most 1.3 × the floor, no second-order peer that is cheaper, and with `stagger=True` a 99th
percentile of steps of at most 1.5 × the median. In (c) that is missed: capturing the second convolution, whose 16,384 patches
of 289 are one product, takes about as long as the rest of a step, and is not divided. kfac-pytorch, whose inverses cost about
as much as ours in (a), has curvature for linear layers alone and stands before SGD; `hb.KFAC` has it for norms and
embeddings, too, and trains the rest by AdamW.

An emulated step is to cost at most 1.5 digital ones:

{emulated(workloads)}"""


def steps(step: Record) -> str:
    """What the columns mean, and a table for each workload."""
    workloads, peers = step["workloads"], ", ".join(f"{name} {version}" for name, version in step["peers"].items())
    return f"""## Steps

*ratio*: mean step of a cycle of ten over AdamW's (foreach), median over rounds in turn. *median*: of single steps, without
refreshes. *p99*: over a contestant's own median step; with few steps it is the refresh. *floor*: see above. *state*: bytes
beside parameters and gradients. Peers: {peers}.

{step_tables(workloads)}

{settings(workloads)}

Muon and SGD hold no curvature of the loss, and Muon multiplies in bfloat16. What is left out of (c) needs minutes for a
step with a factor of 4097: `--all` runs it."""


def page(step: Record, scaling: Record) -> str:
    """The page."""
    scales = f"## Scaling\n\n{scaled(scaling)}"
    parts = [introduction(step, scaling), MADE_OF, goals(step["workloads"]), steps(step), CHOOSING, scales]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    results = HERE / "results"
    read = [json.loads((results / name).read_text(encoding="utf-8")) for name in ("step.json", "scaling.json")]
    PAGE.write_text(page(*read), encoding="utf-8")


if __name__ == "__main__":
    main()
