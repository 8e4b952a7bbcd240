"""Running ngspice, and what its random runs may be judged by."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

needs_ngspice = pytest.mark.skipif(
    shutil.which("ngspice") is None, reason="ngspice is not on the path: install the Debian package ngspice to run this test"
)


def simulate(text: str, folder: Path, *options: str) -> str:
    (folder / "circuit.cir").write_text(text, encoding="ascii")
    words = ["ngspice", "-b", *options, "circuit.cir"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True, timeout=300)
    assert "error" not in done.stdout.lower() + done.stderr.lower()
    return done.stdout


def curves(text: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times `[t]` and voltages `[t, n]` of a simulation."""
    simulate(text, folder, "-r", "circuit.raw")
    data = (folder / "circuit.raw").read_bytes()
    begin = data.index(b"Binary:\n")
    variables = int(re.search(rb"No. Variables: *(\d+)", data[:begin]).group(1))  # type: ignore[union-attr]
    rows = np.frombuffer(data[begin + len(b"Binary:\n") :], dtype="<f8").reshape(-1, variables)
    return rows[:, 0], rows[:, 1:]


def effective(decay: float, count: int) -> float:
    """Independent samples that are worth `count` with autocovariance decay^lag, for their mean."""
    return effective_of(decay ** np.arange(count))


def effective_of(correlation: np.ndarray) -> float:
    """The same for any autocorrelation `[count]`, 1 at lag 0."""
    count = len(correlation)
    return float(count**2 / (count + 2 * ((count - np.arange(1, count)) * correlation[1:]).sum()))
