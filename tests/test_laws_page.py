"""docs/laws.md names tests that exist, and every test that is named after a law or a trap."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "laws.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the source distribution has no docs")


def named() -> list[str]:
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE.read_text(encoding="utf-8"))


@cache
def collected_from(path: Path) -> frozenset[str]:
    """Names that pytest collects from a file: functions called test_… at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


def test_every_test_on_the_page_exists():
    missing = []
    for node in set(named()):
        path, name = node.split("::")
        if not (ROOT / path).exists() or name not in collected_from(ROOT / path):
            missing.append(node)
    assert not missing
    assert len(set(named())) > 50  # the pattern still finds them


@pytest.mark.parametrize("kind,count", [("law", 18), ("trap", 9)])
def test_every_law_and_trap_has_a_test_that_is_named_after_it_and_on_the_page(kind, count):
    page = set(named())
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in collected_from(path):
            match = re.match(rf"test_{kind}_(\d+)_", name)
            if match:
                node = f"{path.relative_to(ROOT).as_posix()}::{name}"
                found.setdefault(int(match[1]), []).append(node)
                assert node in page, f"{node} is not on the page"
    assert sorted(found) == list(range(1, count + 1))


def test_numbered_tests_stand_in_the_row_of_their_number():
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        number = re.match(r"\| (\d+) \|", row)
        for other in re.findall(r"::test_(?:law|trap)_(\d+)_", row) if number else []:
            assert other == number[1], row
