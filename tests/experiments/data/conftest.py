"""What tests of data sets share: no network, and a folder of local files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _offline(unplugged: None) -> None:
    """A test that wants a download says where it comes from."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$HEATBATH_DATA, empty."""
    monkeypatch.setenv("HEATBATH_DATA", str(tmp_path))
    return tmp_path
