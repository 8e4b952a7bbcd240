"""The table of benchmarks/time_to_target.py against records by hand, and the page against the records."""

import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    """The script as a module, forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import time_to_target

    yield time_to_target
    for name in ("time_to_target", "targets_tasks", "targets_contestants"):
        sys.modules.pop(name, None)


def run(contestant, lr, *rows, seed=0):
    return {"task": "vae", "contestant": contestant, "lr": lr, "seed": seed, "rows": [list(row) for row in rows]}


def test_columns_are_what_records_by_hand_say(script):
    records = [
        run("AdamW", 0.1, (50, 1.0, 9.0), (60, 1.2, 8.0), (80, 1.6, 6.0), (100, 2.0, 5.0)),
        run("AdamW", 0.2, (50, 1.0, 4.0), (60, 1.2, 4.0), (80, 1.6, 4.0), (100, 2.0, 7.0)),  # ends worse: not the reference
        run("AdamW", 0.1, (50, 1.0, 1.0), (100, 2.0, 1.0), seed=1),  # another seed is not in the table
        run("Muon", 0.1, (50, 4.0, 7.5), (60, 4.8, 7.0), (80, 6.4, 6.5), (100, 8.0, 5.5)),
        run("Muon", 0.3, (50, 4.0, math.nan)),
        run("SOAP", 0.3, (50, 4.0, math.inf)),
    ]
    lines = script.table(records).strip().splitlines()
    assert lines[0] == "### vae (lower is better)"
    assert lines[2].endswith("| best | ms a step | to 8 | to 6 | to 5 |")
    assert lines[4] == "| AdamW | 0.1: 5, 0.2: 7 | 5 | 20 | 60 steps, 1.2 s | 80 steps, 1.6 s | 100 steps, 2 s |"
    assert lines[5] == "| Muon | 0.1: 5.5, 0.3: nan | 5.5 | 80 | 50 steps, 4 s | 100 steps, 8 s | not reached |"
    assert lines[6] == "| SOAP | 0.3: inf | – | – | – | – | – |"


def test_the_schedule_warms_up_and_ends_at_a_tenth(script):
    factors = [script.scheduled(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(factors) == 1.0 and factors[5] == 1.0
    assert factors[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 94 / 95)))


def test_the_page_holds_the_tables_of_the_records(script):
    page = (ROOT / "docs" / "choosing_an_optimizer.md").read_text(encoding="utf-8")
    assert script.table(script.read(script.RESULTS)).strip() in page
    assert all(json.loads(line)["versions"] for line in script.RESULTS.read_text(encoding="utf-8").splitlines())
