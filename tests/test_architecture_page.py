"""docs/architecture.md speaks of files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "heatbath"


def rooms() -> dict[str, str]:
    """What the section on files says of each room."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## Files\n")[1].split("\n## ")[0]
    return {part.split("`", 1)[0]: part.split("**", 1)[1] for part in section.split("\n- **`")[1:]}


def test_every_room_with_several_files_is_described() -> None:
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")} - {"recipes"}
    assert set(rooms()) == folders


def test_a_step_passes_through_no_more_files_than_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import hops

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    said = re.search(r"passes through (\d+) files, (\d+) times from one to another", page)
    files, times = hops.measure()["all"]
    assert said is not None
    assert len(files) <= int(said[1]) and times <= int(said[2])


def test_every_file_that_is_named_exists() -> None:
    for room, words in rooms().items():
        for name in re.findall(r"`([a-z_]+)/?`", words):
            if name not in ("map_tensors", "select", "to_plain"):
                files = [*(SOURCE / room).glob(f"**/{name}.py"), *(SOURCE / room).glob(f"**/{name}/")]
                assert files, f"{room}/{name}"
