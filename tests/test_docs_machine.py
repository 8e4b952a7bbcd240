"""The page for hardware people says what is: every field, and what the commands print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heatbath import cli
from heatbath.machines import describe, load_machine

PAGE = (Path(__file__).parent.parent / "docs" / "machine.md").read_text(encoding="utf-8")
LINES = {line.rstrip() for line in PAGE.splitlines()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page's examples, and the width of its tables."""
    monkeypatch.chdir(tmp_path)
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("mine.toml").write_text(toml, encoding="utf-8")
    exec(script, {})
    return tmp_path


def output(*words: str) -> str:
    done = CliRunner().invoke(cli.app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_field_is_described_with_its_unit() -> None:
    for name, unit, meaning in describe():
        (row,) = [line for line in LINES if line.startswith(f"| `{name}` |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == (unit or "–")
        assert cells[3] in meaning
        assert cells[4]


def test_the_check_prints_what_the_page_shows(folder: Path) -> None:
    assert load_machine("mine.toml").time_constant == pytest.approx(1e-6)
    for line in output("machine", "check", "mine.toml").splitlines():
        if "simulated" not in line:  # random matrices: the last digit may differ elsewhere
            assert line.rstrip() in LINES


def test_the_netlist_is_the_one_on_the_page(folder: Path) -> None:
    words = ["spice", "--matrix", "A.npy", "--rhs", "b.npy", "--machine", "mine.toml"]
    written = {line.rstrip() for line in output(*words).splitlines()}
    shown = PAGE[PAGE.index("* heatbath: 4 cells") : PAGE.index("`ngspice -b A.cir` prints")].split("```")[0]
    assert {line.rstrip() for line in shown.splitlines()} - written == {"..."}


@pytest.mark.slow
def test_the_solve_is_as_accurate_as_on_the_page(folder: Path) -> None:
    said = output("solve", "--matrix", "A32.npy", "--rhs", "b32.npy", "--machine", "mine.toml", "--out", "solved")
    for name in ("predicted before", "expected"):
        here, there = (float(re.search(rf"{name} *│ *(\S+) │", text).group(1)) for text in (said, PAGE))  # type: ignore[union-attr]
        assert here == pytest.approx(there, rel=1e-3)
    for line in said.splitlines():
        if "settle" in line or "upload" in line or "condition" in line:
            assert line.rstrip() in LINES
