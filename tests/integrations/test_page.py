"""The blocks of docs/integrations.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = {
    re.findall(r"^## (.*)", text, re.MULTILINE)[-1]: code
    for text, code in re.findall(r"(.*?)```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*num_workers.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")  # Lightning's own
@pytest.mark.parametrize("title", BLOCKS)
def test_every_recipe_runs(title, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in re.findall(r"^import (lightning|transformers|accelerate)\b", BLOCKS[title], re.MULTILINE):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[integrations]'")
    if title == "Transformers":
        pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[integrations]'")
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # and restored afterwards, whatever the block sets
    exec(compile(BLOCKS[title], f"{PAGE.name}, {title}", "exec"), {"__name__": "__main__"})
