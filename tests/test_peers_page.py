"""docs/peers.md is what benchmarks/peers.py makes of its results, so that nobody edits a measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_peers_is_made_from_the_measurements(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    try:
        import peers

        record = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text(encoding="utf-8"))
        assert peers.page(record) == (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("peers"):
                del sys.modules[name]
