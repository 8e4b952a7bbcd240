"""A seeded subset of benchmarks/fuzz.py: no input is answered wrongly without a word, fails unclearly, or hangs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("family, count", [("checkpoints", 80), ("machines", 60), ("solves", 80), ("networks", 16)])
def test_a_subset_of_the_fuzz_passes(family: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cases = importlib.import_module("fuzz_cases")
    found = [
        (case.name, *cases.judge(case, limit=20.0)) for case in importlib.import_module(f"fuzz_{family}").cases(count, seed=1)
    ]
    assert len(found) == count
    assert [one for one in found if one[1] in cases.FAILURES] == []
