"""What the documents claim, they name a test for; it has to be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLAIM = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PAGES = {page: CLAIM.findall(page.read_text("utf-8")) for page in sorted((ROOT / "docs").glob("*.md"))}


@pytest.mark.parametrize("page", [page for page, claims in PAGES.items() if claims], ids=lambda page: page.name)
def test_every_test_a_document_names_exists(page: Path) -> None:
    for file, name in PAGES[page]:
        module = ast.parse((ROOT / file).read_text("utf-8"))
        assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, f"{page.name}: {file}::{name}"


def test_the_emulators_claims_are_named() -> None:
    rows = [line for line in (ROOT / "docs/emulator.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    claims = [row for row in rows if "tests/" in row]
    assert len(claims) >= 30
    assert all(CLAIM.search(row) for row in claims)
