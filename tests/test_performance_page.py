"""docs/performance.md is what benchmarks/performance_page.py makes of the results, and the floor is the arithmetic it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    """Scripts of the folder can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield ROOT / "benchmarks" / "results"
    for name in set(sys.modules) - before:
        if name.startswith(("performance_page", "step", "scaling", "large_factors")):
            del sys.modules[name]


def test_the_page_of_performance_is_made_from_the_measurements(benchmarks):
    import performance_page

    read = [json.loads((benchmarks / name).read_text(encoding="utf-8")) for name in ("step.json", "scaling.json")]
    assert performance_page.page(*read) == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_the_table_of_large_factors_is_made_from_the_measurements(benchmarks):
    import large_factors

    head, *lines = large_factors.table_of(json.loads((benchmarks / "large_factors.json").read_text(encoding="utf-8")))
    page = (ROOT / "docs" / "refresh.md").read_text(encoding="utf-8")
    assert all(f"| {' | '.join(line)} |" in page for line in (head, *lines))


def test_large_factors_are_compared_by_what_a_run_would_have_averaged(benchmarks):
    """A factor in another form is that of the same rows added in that form."""
    import large_factors
    import torch

    from heatbath.curvature.factors.formats import holding

    rows = torch.randn(1, 30, 50, dtype=torch.float64)
    for limits in ((None, None), (20, None), (20, 8)):
        held = holding(50, *limits)
        total = held.zeros(1, torch.float64, torch.device("cpu"))
        held.add(total, rows)
        held.complete(total)
        found = large_factors.form(held, rows.mT @ rows)
        torch.testing.assert_close(found.dense(), held.operator(total).dense())


def test_the_floor_of_a_perceptron_is_its_arithmetic_by_hand(benchmarks):
    import step_floor
    import torch
    from step_workloads import Workload
    from torch import nn

    import heatbath as hb

    x, y = torch.randn(20, 4), torch.arange(20) % 3
    workload = Workload("small", lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), lambda: (x, y))
    floor = step_floor.count(workload, hb.Policy())
    assert floor.plain == 20 * (2 * 4 * 6 + 3 * 6 * 3)  # the first layer's inputs need no gradient
    assert floor.capture == 20 * (5**2 + 6**2 + 7**2 + 3**2) / 2
    assert floor.refresh == (5**3 + 6**3 + 7**3 + 3**3) / 2
    assert floor.application == 6 * 5 * (6 + 5) + 3 * 7 * (3 + 7)
    assert step_floor.count(workload, hb.Policy(max_dim=5, rank=2)).refresh == 5**3 / 2 + 3 * 4 * (6 + 7) + 3**3 / 2
    assert floor.ratio(10, 20) == 1 + (floor.capture / 10 + floor.refresh / 20 + floor.application) / floor.plain
