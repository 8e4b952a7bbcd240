"""The examples run, with little to do, and print what they promise."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from heatbath.experiments.models import mlp

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_natural_gradient(capsys):
    load("natural_gradient").main()
    printed = capsys.readouterr().out
    assert "one step of NGD on a linear model: [1.0, -2.0, 0.5, 3.0, 0.7]" in printed
    assert printed.count("on the machine") == 3


@pytest.mark.slow
def test_tngd_lora(capsys, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + (i * i) % 17) for i in range(4000)))
    monkeypatch.setattr(sys, "argv", ["tngd_lora", "--text", str(text), "--pretrain", "1", "--steps", "1", "--taus", "2"])
    load("tngd_lora").main()
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == ["pretrained", "Adam", "TNGD", "TNGD-Adam"]


def test_energy_floors(capsys, monkeypatch):
    """The crossing by hand: n · 12 · 4ᵇ > ln 2 · 32 · operations of Cholesky and two triangular solves."""
    monkeypatch.setattr(sys, "argv", ["energy_floors", "--size", "32"])
    load("energy_floors").main()
    operations = 32**3 / 3 + 2 * 32**2
    joules = 1.380649e-23 * 300 * math.log(2) * 32 * operations
    bits = next(b for b in range(4, 17, 2) if 32 * 12 * 4**b > math.log(2) * 32 * operations)
    assert f"({joules:.2e} J) at: machine, {bits} bits" in capsys.readouterr().out


@pytest.mark.slow
def test_bayesian_regression(tmp_path, monkeypatch):
    """Ideal converters agree with the exact posterior, and the machine with Hamiltonian Monte Carlo, within the errors."""
    pytest.importorskip("arviz_stats")
    monkeypatch.setattr(sys, "argv", ["bayesian_regression", "--reads", "10", "--out", str(tmp_path)])
    load("bayesian_regression").main()
    found = json.loads((tmp_path / "bayesian_regression.json").read_text())
    ideal, *rounded = found["concrete"]
    assert ideal["largest_z"] < 4
    assert rounded[-1]["largest_z"] > 4  # the shift that 8 bits leave is seen, and grows from 12 over 10
    assert [row["mean_error"] for row in rounded] == sorted(row["mean_error"] for row in rounded)
    assert found["tumours"]["largest_z"] < 4
    assert (tmp_path / "bayesian_regression.svg").is_file()


@pytest.mark.slow
def test_laplace_digits(tmp_path, monkeypatch):
    """What the page says: less surprise at the same accuracy, and δ by evidence misleads a network trained without a prior."""
    monkeypatch.setattr(sys, "argv", ["laplace_digits", "--seeds", "1", "--samples", "2", "--out", str(tmp_path)])
    example = load("laplace_digits")
    example.mlp = lambda sizes: mlp((sizes[0], 48, sizes[-1]))  # a network for a test
    example.main()
    found = json.loads((tmp_path / "laplace.json").read_text())
    upright = {row["predictions"]: row for row in found["rows"] if row["angle"] == 0}
    mode, linearized = upright["mode"], upright["Laplace, linearized"]
    assert linearized["nll"][0] < mode["nll"][0]
    right, images = mode["accuracy"][0], 359  # one standard error of an accuracy on the test digits
    assert abs(linearized["accuracy"][0] - right) < math.sqrt(right * (1 - right) / images)
    assert upright["linearized, δ by evidence"]["nll"][0] > 1.5
    assert "Laplace, drawn by cells" in upright


@pytest.mark.slow
def test_equilibrium_propagation(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["equilibrium_propagation", "--out", str(tmp_path), "--epochs", "1"])
    load("equilibrium_propagation").main()
    printed = capsys.readouterr().out
    assert printed.count("test accuracy") == 2
    assert "on 64 machines tngd-2024, predicted: at least" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"equilibrium_propagation.svg", "equilibrium_propagation.csv"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 150
