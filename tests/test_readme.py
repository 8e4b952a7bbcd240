"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch


def test_the_readme_code_runs() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(block, names)
    before = names["loss"].item()
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(names["model"](names["x"]), names["y"])
        names["opt"].zero_grad()
        loss.backward()
        names["opt"].step()
    assert loss.item() < before
