"""The commands sample, qp and max-cut: what they print, write and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from typer.testing import CliRunner, Result

from heatbath import cli
from heatbath.experiments.arrays import load_array, load_graph
from tests.machines.truth import spd

PRECISION = spd(3, 5.0).numpy()
DRIVE = np.array([1.0, -2.0, 0.5])
CONE = np.array([[2.0, 0.5], [0.5, 1.0]])


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with matrices, vectors, graphs and a machine, and the working folder."""
    arrays = {
        "L": PRECISION, "b": DRIVE, "column": DRIVE[:, None], "short": DRIVE[:2], "nan": DRIVE * np.nan, "P": CONE,
        "q": np.array([1.0, -1.0]), "G": np.eye(2), "h": np.array([0.2, 0.2]), "none": np.array([-1.0, 0.0]),
        "opposed": np.array([[1.0, 0.0], [-1.0, 0.0]]), "zero": np.zeros((2, 2)), "concave": -CONE,
        "loop": np.eye(3), "skew": np.triu(np.ones((3, 3)), 1), "C": np.ones((3, 3)) - np.eye(3), "empty": np.zeros((3, 3)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    texts = {
        "noisy.toml": 'name = "noisy"\ntau = 1e-6\nnoise_volts_rms = 1e-3\n',
        "silent.toml": 'name = "silent"\ntau = 1e-6\n',
        "graph.csv": "# a triangle with a tail\na, b\nb,c\na,c,2\n\nc,d\n",
        "twice.csv": "a,b\nb,a\n",
        "self.csv": "a,a\n",
        "one.csv": "a\n",
        "word.csv": "a,b,heavy\n",
        "infinite.csv": "a,b,inf\n",
        "comment.csv": "# nothing\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_sample_writes_draws_of_the_gaussian_and_judges_them(files: Path) -> None:
    """Means and variances of 4,000 independent readings, by z-scores."""
    words = ["sample", "--precision", "L.npy", "--potential", "b.npy", "--machine", "noisy.toml", "--out", "s.npy"]
    done = call(*words, "--reads", 20, "--chains", 200, "--interval", 1e-3, "--burn-in", 1e-3)
    assert done.exit_code == 0, done.output
    for said in ("20 samples of each of 200 chains", "drive_clipped 0", "settle", "s.npy"):
        assert said in done.stdout
    x = np.load("s.npy").reshape(-1, 3)
    covariance = np.linalg.inv(PRECISION)
    z_mean = (x.mean(0) - covariance @ DRIVE) / np.sqrt(covariance.diagonal() / 4000)
    z_variance = (x.var(0) / covariance.diagonal() - 1) / np.sqrt(2 / 4000)
    assert max(abs(z_mean).max(), abs(z_variance).max()) < 4
    assert f"{x.mean(0)[1]:.5g}" in done.stdout


def test_sample_knows_its_times_and_takes_no_potential(files: Path) -> None:
    done = call("sample", "--precision", "L.npy", "--machine", "noisy.toml", "--reads", 3, "--chains", 1)
    assert done.exit_code == 0, done.output
    assert "slowest relaxation" in done.stdout
    assert "–" in done.stdout  # too few for diagnostics


def by_osqp() -> np.ndarray:
    osqp = pytest.importorskip("osqp")
    solver = osqp.OSQP()
    solver.setup(
        *(sparse.csc_matrix(CONE), np.array([1.0, -1.0]), sparse.eye(2, format="csc"), np.full(2, -np.inf), np.full(2, 0.2)),
        verbose=False, eps_abs=1e-10, eps_rel=1e-10, polishing=True,
    )  # fmt: skip
    return solver.solve(raise_error=False).x


BOX = ["qp", "--quadratic", "P.npy", "--linear", "q.npy", "--inequalities", "G.npy", "--at-most", "h.npy"]


@pytest.mark.parametrize("machine", [[], ["--machine", "tngd-2024", "--bits", "8"]])
def test_qp_agrees_with_osqp(machine: list[str], files: Path) -> None:
    done = call(*BOX, *machine, "--out", "x.npy")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("optimal: optimal to the tolerance")
    np.testing.assert_allclose(np.load("x.npy"), by_osqp(), atol=1e-5)


def test_qp_says_that_a_problem_is_infeasible_or_unbounded(files: Path) -> None:
    outside = ["--inequalities", "opposed.npy", "--at-most", "none.npy"]  # x0 <= -1 and x0 >= 0
    infeasible = call("qp", "--quadratic", "P.npy", "--linear", "q.npy", *outside)
    assert infeasible.exit_code == 1
    assert infeasible.stdout.startswith("infeasible: ")
    unbounded = call("qp", "--quadratic", "zero.npy", "--linear", "q.npy", "--inequalities", "G.npy", "--at-most", "h.npy")
    assert unbounded.exit_code == 1
    assert "there is no optimum to report: unbounded" in unbounded.stderr


def test_max_cut_finds_the_largest_cut_of_a_small_graph(files: Path) -> None:
    names, weights = load_graph(Path("graph.csv"))
    assert names == ["a", "b", "c", "d"]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)
    largest = max(float((weights * (1 - s[:, None] * s)).sum() / 4) for s in signs)
    done = call("max-cut", "graph.csv", "--out", "sides.csv")
    assert done.exit_code == 0, done.output
    assert "4 nodes, 4 edges of total weight 5" in done.stdout
    assert f"cut {largest:g}: best of 32 chains" in done.stdout
    sides = dict(line.split(",") for line in Path("sides.csv").read_text().split())
    assert sides["a"] != sides["c"] != sides["d"]
    assert "predicted energy: upload" in done.stdout
    assert "not stated" in call("max-cut", "C.npy", "--machine", "ideal").stdout


SAMPLE = ["sample", "--precision", "L.npy", "--machine", "noisy.toml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SAMPLE, "--potential", "short.npy"], "potential must be 3 finite numbers, got (2,)"),
        ([*SAMPLE, "--potential", "nan.npy"], "nan.npy holds 3 entries that are NaN or inf"),
        ([*SAMPLE, "--potential", "L.npy"], "must have 1 dimension(s), got shape (3, 3)"),
        ([*SAMPLE, "--out", "s.csv"], "written to a .npy file, got --out s.csv"),
        ([*SAMPLE, "--reads", "0"], "reading noise takes reads >= 1 and an interval > 0 s"),
        (["sample", "--precision", "L.npy", "--machine", "silent.toml"], "machine 'silent' has no noise to read"),
        (["sample", "--precision", "skew.npy", "--machine", "noisy.toml"], "skew.npy is not symmetric"),
        (["sample", "--precision", "M.npy", "--machine", "noisy.toml"], "the file of the matrix, M.npy, does not exist"),
        ([*BOX[:-2]], "inequalities and at_most belong together, got only inequalities"),
        ([*BOX, "--bits", "8"], "--bits are those of a machine"),
        ([*BOX, "--out", "x.txt"], "x is written to a .npy file"),
        ([*BOX, "--tolerance", "0"], "tolerance must be positive"),
        (["qp", "--quadratic", "concave.npy", "--linear", "q.npy"], "the problem is not convex"),
        (["qp", "--quadratic", "P.npy", "--linear", "b.npy"], "linear must have shape (2,), got (3,)"),
        (["max-cut", "twice.csv"], "twice.csv, line 2: the edge b, a came before"),
        (["max-cut", "self.csv"], "self.csv, line 1: a is joined to itself"),
        (["max-cut", "one.csv"], "an edge is two names and, if not 1, a weight, got a"),
        (["max-cut", "word.csv"], "the weight 'heavy' is no number"),
        (["max-cut", "infinite.csv"], "the weight is inf"),
        (["max-cut", "comment.csv"], "comment.csv holds no edges"),
        (["max-cut", "missing.csv"], "the file of the graph, missing.csv, does not exist"),
        (["max-cut", "skew.npy"], "skew.npy is not symmetric"),
        (["max-cut", "loop.npy"], "diagonal"),
        (["max-cut", "empty.npy"], "there is nothing to cut"),
        (["max-cut", "graph.csv", "--machine", "z2"], "there is no machine of probabilistic bits 'z2'"),
        (["max-cut", "graph.csv", "--sweeps", "1"], "at least 2 sweeps"),
        (["max-cut", "graph.csv", "--chains", "0"], "--chains must be at least 1"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words: list[str], message: str, files: Path) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("heatbath: ") == 1


def test_a_column_is_taken_as_a_vector(files: Path) -> None:
    torch.testing.assert_close(load_array(Path("column.npy"), "b", dimensions=1), torch.tensor(DRIVE))
