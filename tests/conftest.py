"""What every test shares: one thread per worker, a seeded generator, repeatable property tests, a network that is unplugged."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("heatbath", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("heatbath")

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; threads of their own would fight over them
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator with a fixed seed; tests ask it for float64 explicitly."""
    return torch.Generator().manual_seed(20250212)


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set can be downloaded."""

    def refuse(url: str, known_hash: str, name: str) -> Path:
        raise ConnectionError("unplugged")

    monkeypatch.setattr("heatbath.experiments.data.base.pooch_fetch", refuse)


@pytest.fixture
def heard_hangup() -> Iterator[None]:
    """SIGHUP as a terminal's programs have it, also where the tests were started by `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
