"""Solvers, samplers and optimizers judge a machine by what it returns: none of them reads what only an emulator knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "heatbath"
HIDDEN = {"definite", "slowest", "emulated_state", "conductance", "dynamics", "network", "oracle"}
FILES = [p for room in ("solvers", "samplers", "optim", "curvature") for p in sorted((PACKAGE / room).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_reads_what_only_an_emulator_knows(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not read & HIDDEN
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert "heatbath.machines.oracle" not in imported
    assert not any(module.startswith("heatbath.machines.emulator.emulator") for module in imported)
