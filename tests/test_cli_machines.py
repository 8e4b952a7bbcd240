"""The commands for hardware people: solve, spice, machine check; what they print, write and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from heatbath import cli
from tests.machines.truth import spd

MATRIX = spd(6, 8.0).numpy()
NOISY = 'name = "mine"\ntau = 1e-6\nnoise_volts_rms = 0.02\nmatrix_bits = 10\ncells = 8\n'


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with matrices, right-hand sides and machines, good and bad."""
    arrays = {
        "A": MATRIX, "b": np.arange(1.0, 7.0), "large": spd(9, 4.0).numpy(), "b9": np.ones(9), "huge": spd(65, 4.0).numpy(),
        "skew": np.triu(MATRIX), "rectangle": MATRIX[:3], "indefinite": MATRIX - np.eye(6), "nan": MATRIX * np.nan,
        "complex": MATRIX + 0j, "short": np.ones(5), "zero": np.zeros(6), "ill": spd(6, 1e9).numpy(),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    machines = {
        "mine": NOISY,
        "unknown": NOISY + "bits = 8\n",
        "contradiction": NOISY + "resistance = 1e3\ncapacitance = 1e-12\n",
        "range": NOISY + "drive_bits = 99\n",
        "capacitive": NOISY + 'coupling = "capacitive"\n',
    }
    for name, text in machines.items():
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_solve_says_how_accurate_how_long_and_leaves_a_folder(files: Path) -> None:
    out = files / "out"
    words = ["solve", "--matrix", files / "A.npy", "--rhs", files / "b.npy", "--machine", files / "mine.toml", "--out", out]
    done = call(*words)
    assert done.exit_code == 0, done.output
    for said in ("relative error", "predicted before", "expected", "matrix 0, drive 0, read 0", "not stated", "settle"):
        assert said in done.stdout
    x, exact = np.load(out / "result.npy"), np.linalg.solve(MATRIX, np.arange(1.0, 7.0))
    error = np.linalg.norm(x - exact) / np.linalg.norm(exact)
    assert f"{error:.3e}" in done.stdout
    assert {p.name for p in out.iterdir()} == {"result.npy", "result.json", "settling.csv", "settling.png", "settling.svg"}


@pytest.mark.slow
def test_solve_warns_first_and_fails_where_the_result_is_of_no_use(files: Path) -> None:
    words = ["solve", "--matrix", files / "ill.npy", "--rhs", files / "b.npy", "--bits", 6, "--out", files / "out"]
    done = call(*words)
    assert done.exit_code == 1
    assert "warning: condition number 1.0e+09: the predicted relative error is" in done.stderr
    assert "the result is of no use: the residual is above the tolerance, or the answer no better than none" in done.stderr
    assert done.stderr.index("warning") < done.stderr.index("no use")
    assert (files / "out" / "result.npy").is_file()


def test_spice_writes_what_ngspice_reads_or_prints_it(files: Path) -> None:
    words = ["spice", "--matrix", files / "A.npy", "--machine", files / "mine.toml", "--rhs", files / "b.npy"]
    printed = call(*words)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.rstrip().endswith(".end")
    assert "TRRANDOM" in printed.stdout
    out = files / "a.cir"
    done = call(*words, "--no-noise", "--average", 0, "--settle", 1e-5, "--out", out)
    assert f"{out}: 6 cells of mine, 1e-05 s" in done.stdout
    text = out.read_text()
    assert "TRRANDOM" not in text
    assert "FIND v(x6) AT=1e-05" in text
    resonators = call("spice", "--matrix", files / "A.npy", "--machine", files / "capacitive.toml")
    assert "6 resonators of machine mine" in resonators.stdout
    column = call(*words[:5])
    assert "Vdrive1 d1 0 DC -1\n" in column.stdout  # without --rhs: a unit vector
    assert "Vdrive2 d2 0 DC -0\n" in column.stdout


def test_machine_check_prints_what_follows(files: Path) -> None:
    done = call("machine", "check", files / "mine.toml", "--condition", 20, "--bits", 8)
    assert done.exit_code == 0, done.output
    for said in (
        "machine mine",
        "noise_volts_rms",
        "not stated, so not priced: bandwidth",
        "size 8",
        "mine.toml: a valid machine",
    ):
        assert said in done.stdout
    capacitive = call("machine", "check", files / "capacitive.toml")
    assert "the mean is no solution, the covariance is the inverse" in capacitive.stdout


SOLVE, SPICE = ["solve", "--rhs", "b.npy"], ["spice"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SOLVE, "--matrix", "rectangle.npy"], "rectangle.npy must be square, [*stack, n, n], got shape (3, 6)"),
        ([*SOLVE, "--matrix", "skew.npy"], "skew.npy is not symmetric"),
        ([*SOLVE, "--matrix", "indefinite.npy"], "indefinite.npy is not positive definite: the eigenvalues reach from -0.87"),
        ([*SOLVE, "--matrix", "nan.npy"], "nan.npy holds 36 entries that are NaN or inf"),
        ([*SOLVE, "--matrix", "complex.npy"], "must hold real numbers, got complex128"),
        ([*SOLVE, "--matrix", "none.npy"], "the file of the matrix, none.npy, does not exist"),
        (["solve", "--matrix", "A.npy", "--rhs", "short.npy"], "short.npy must have shape [*batch, 6], got (5,)"),
        (["solve", "--matrix", "A.npy", "--rhs", "zero.npy"], "the right-hand side is all zeros"),
        (
            ["solve", "--matrix", "large.npy", "--rhs", "b9.npy", "--machine", "mine.toml"],
            "a matrix of size 9 needs 9 cells, machine 'mine' has 8",
        ),
        ([*SOLVE, "--matrix", "A.npy", "--solver", "crosbar"], "no machine solver 'crosbar'; did you mean crossbar"),
        ([*SOLVE, "--matrix", "A.npy", "--machine", "capacitive.toml"], "holds the matrix in capacitances"),
        ([*SOLVE, "--matrix", "A.npy", "--serial", "-1"], "serial and tolerance must be 0 or more, got -1"),
        ([*SPICE, "--matrix", "huge.npy"], "a netlist of 65 cells has up to 4225 couplings; allowed are 64 cells"),
        ([*SPICE, "--matrix", "ill.npy", "--bits", "4"], "holds is not positive definite"),
        (
            [*SPICE, "--matrix", "A.npy", "--rhs", "b.npy", "--machine", "capacitive.toml"],
            "mine holds the matrix in capacitances and has no drive; leave out --rhs",
        ),
        ([*SPICE, "--matrix", "A.npy", "--rhs", "A.npy"], "one drive of shape [6], got (6, 6)"),
        ([*SPICE, "--matrix", "A.npy", "--settle", "-1"], "burn_in must be a finite number of seconds, 0 or more, got -1"),
        ([*SPICE, "--matrix", "A.npy", "--out", "no/a.cir"], "No such file or directory: 'no/a.cir'"),
        (["machine", "check", "unknown.toml"], "unknown.toml: unknown field 'bits' = 8 in a machine specification"),
        (["machine", "check", "contradiction.toml"], "tau = 1e-06 s contradicts resistance × capacitance = 1e-09 s"),
        (["machine", "check", "range.toml"], "drive_bits = 99 is out of range; allowed: [2, 32]"),
        (["machine", "check", "none.toml"], "machine file 'none.toml' does not exist"),
        (["machine", "check", "mine.toml", "--cells", "9"], "cells must be 1 to 8 on machine 'mine', got 9"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    words: list[str], message: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("heatbath: ") == 1 + result.stderr.count("warning: ")
    assert not (files / "runs").exists()
