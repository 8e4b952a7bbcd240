"""What tests of recipes share."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture
def nothing_at_hand(unplugged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither local files nor a network, and few of the images that are made here."""
    monkeypatch.setenv("HEATBATH_DATA", str(tmp_path))
    curves = import_module("heatbath.experiments.data.curves")  # the package exports the source under the module's name
    monkeypatch.setattr(curves, "TRAIN", 20)
    monkeypatch.setattr(curves, "TEST", 10)
