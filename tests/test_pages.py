"""The code of the documents runs as it stands, page by page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGES = Path(__file__).parent.parent / "docs"
RUN = (
    "quadratic_programming.md",
    "probabilistic_bits.md",
    "bayesian_inference.md",
    "laplace.md",
    "equilibrium_propagation.md",
    "refresh.md",
)


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(block, names)
    if page == "quadratic_programming.md":
        torch.testing.assert_close(names["best"].x, torch.tensor([1.0, 0.5, -1.0]).double(), atol=1e-6, rtol=0)


def test_every_document_that_is_linked_is_there() -> None:
    root = PAGES.parent
    for page in (root / "README.md", root / "CONTRIBUTING.md", *PAGES.glob("*.md"), *PAGES.glob("results/*/*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
