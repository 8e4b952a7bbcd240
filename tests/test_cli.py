from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from heatbath import cli
from heatbath.cli.terminal import DIVERGED, INTERRUPTED, unused
from heatbath.experiments import read_record

SMALL = ["train", "digits-mlp", "--steps", "12"]


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_help_needs_neither_torch_nor_anything_that_draws() -> None:
    heavy = ("torch", "numpy", "matplotlib", "sklearn", "scipy", "pydantic")
    code = "import sys, heatbath.cli as c; c.app(['--help'], standalone_mode=False); "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert call("--version").stdout.strip() == f"heatbath {version('heatbath')}"


def test_machines_and_recipes_are_listed() -> None:
    assert "tngd-2024" in call("machines").stdout
    assert "mnist-autoencoder" in call("recipes").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digits-mpl"], "there is no recipe 'digits-mpl'; did you mean digits-mlp"),
        (["train", "digits-mlp", "--optimizer", "kfca"], "there is no optimizer 'kfca'"),
        (["train", "digits-mlp", "--steps", "0"], "must be at least 1"),
        (["train", "digits-mlp", "--resume"], "say which with --out"),
        (["train", "digits-mlp", "--device", "tpu"], "--device must be cpu, cuda or auto, got 'tpu'"),
        (["train", "digits-mlp", "--solver", "thermodynamic-solve", "--machine", "none.toml"], "does not exist"),
        (["train", "digits-mlp", "--tuned", "nowhere"], "there is no result of a search nowhere"),
        (["train", "digits-mlp", "--tuned", "nowhere", "--lr", "1"], "--tuned already says the learning rate"),
        (
            ["tune", "digits-mlp", "--optimizer", "adamw", "--trials", "0", "--out", "x"],
            "at least 1 trial of at least 1 step, got 0",
        ),
        (["tune", "digits-mlp", "--optimizer", "adamv", "--trials", "1", "--out", "x"], "there is no optimizer 'adamv'"),
        (["tune", "digits-mpl", "--optimizer", "adamw", "--trials", "1", "--out", "x"], "there is no recipe 'digits-mpl'"),
        (
            ["tune", "digits-mlp", "--optimizer", "adamw", "--trials", "1", "--out", "x", "--jobs", "0"],
            "jobs must be at least 1",
        ),
        (["study", "convergence", "digits-mpl"], "there is no recipe 'digits-mpl'"),
        (["study", "convergence", "digits-mlp", "--seeds", "0"], "at least 1 step, 1 seed and 1 trial"),
        (["report", "nowhere.jsonl"], "there is no file or folder nowhere.jsonl"),
        (["study", "quantization", "digits-mpl"], "there is no recipe 'digits-mpl'"),
        (["study", "quantization", "digits-mlp", "--sweep", "heat"], "there is no sweep heat to vary"),
        (["study", "batch-size", "digits-mpl"], "there is no recipe 'digits-mpl'"),
        (["study", "batch-size", "digits-mlp", "--batch-size", "8"], "at least 3 different batch sizes"),
        (["study", "batch-size", "digits-mlp", "--metric", "test loss"], "needs a value to reach: add --target"),
        (["study", "runtime", "--network", "vit-s61"], "there is no network 'vit-s61'; did you mean vit-s16"),
        (["study", "runtime", "--every", "0"], "intervals between refreshes are 1 step or more"),
        (["study", "complexity", "--seeds", "0"], "exponents need at least two layers"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words: list[str], message: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("heatbath:") == 1


@pytest.mark.parametrize("words", [["train", "digits-small"], ["sample", "--precision", "x.npy"], ["max-cut", "g.csv"]])
def test_a_seed_that_torch_cannot_take_is_refused(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*words, "--seed", "9" * 23])
    assert result.exit_code == 2
    assert str(2**62) in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_brackets_in_paths_are_no_markup(tmp_path: Path) -> None:
    folder = tmp_path / "[" / "bold]"
    folder.mkdir(parents=True)
    path = folder / "m.toml"
    path.write_text('name = "m"\ntau = 1e-6\nnotes = "[/x] [red]"\nsource = "[/y]"\n')
    result = CliRunner().invoke(cli.app, ["machine", "check", str(path), "--cells", "4"])
    assert result.exit_code == 0, result.output
    assert "notes: [/x] [red]" in result.output
    assert "[/bold]/m.toml: a valid machine" in result.output


def test_cuda_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = call(*SMALL, "--device", "cuda")
    assert result.exit_code == 2
    assert "torch finds no CUDA device here; use --device cpu" in result.stderr


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tuning = ["tune", "digits-mlp", "--optimizer", "adamw", "--trials", "1", "--steps", "2"]
    for words in (SMALL, tuning):
        result = call(*words, "--out", tmp_path / "file" / "folder")
        assert result.exit_code == 2
        assert "cannot be written" in result.stderr


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEATBATH_TRACEBACK", "1")
    assert isinstance(call("train", "digits-mpl").exception, ValueError)


def test_default_folders_are_numbered(tmp_path: Path) -> None:
    assert unused(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert unused(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.slow
def test_train_leaves_record_checkpoint_report_and_tensorboard_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call(*SMALL, "--out", out, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert {p.name for p in out.iterdir()} == {".locks", "run.jsonl", "run.pt", "run.pt.1", "report.html", "tensorboard"}
    assert "data: digits" in done.stdout
    again = call(*SMALL[:-1], "20", "--out", out, "--device", "cpu", "--resume")
    assert again.exit_code == 0, again.output
    assert [row["step"] for row in read_record(out / "run.jsonl").rows] == list(range(21))
    twice = call(*SMALL, "--out", out)
    assert twice.exit_code == 2
    assert "already holds a run" in twice.stderr


@pytest.mark.slow
def test_tune_finds_what_train_then_uses_and_refuses_the_folder_of_another_search(tmp_path: Path) -> None:
    words = ["tune", "digits-mlp", "--optimizer", "adamw", "--optimizer", "sgd", "--steps", "5", "--out", tmp_path / "search"]
    done = call(*words, "--trials", "2")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("adamw-001") == 1
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    trained = call(*SMALL, "--optimizer", "adamw", "--tuned", tmp_path / "search", "--out", tmp_path / "run", "--device", "cpu")
    assert trained.exit_code == 0, trained.output
    assert read_record(tmp_path / "run" / "run.jsonl").header["choice"] == best["tuned"][0]["choice"]
    more = call(*words, "--trials", "3")
    assert "adamw-001:" not in more.stdout
    assert "adamw-003:" in more.stdout
    other = call(*words, "--trials", "2", "--seed", "1")
    assert other.exit_code == 2
    assert "is of another search: its choice is" in other.stderr


@pytest.mark.slow
def test_a_study_leaves_one_page(tmp_path: Path) -> None:
    words = ["study", "convergence", "digits-mlp", "--steps", "2", "--seeds", "1", "--bits", "12", "--runs", tmp_path / "runs"]
    done = call(*words, "--out", tmp_path / "page")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page" / "README.md").read_text()
    assert "K-FAC, thermodynamic solve (tngd-2024, 12 bits)" in text
    assert "2 steps with batches of 128" in text


@pytest.mark.slow
def test_a_study_of_quantization_leaves_one_page(tmp_path: Path) -> None:
    words = ["study", "quantization", "digits-mlp", "--steps", "2", "--seeds", "1", "--trials", "1", "--search-seeds", "1"]
    words += ["--matrix-bits", "8", "--read-bits", "12", "--damping", "1", "--solver", "thermodynamic-inverse"]
    done = call(*words, "--sweep", "none", "--runs", tmp_path / "runs", "--out", tmp_path / "page")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page" / "README.md").read_text()
    assert "Quantization and other imperfections on digits-mlp" in text
    assert "| 1, 8 |" in text
    assert "One imperfection at a time" not in text


@pytest.mark.slow
def test_a_study_of_batch_sizes_leaves_one_page(tmp_path: Path) -> None:
    words = ["study", "batch-size", "digits-mlp", "--steps", "4", "--eval-every", "2", "--seeds", "1", "--trials", "1"]
    words += [word for size in (64, 128, 256) for word in ("--batch-size", str(size))]
    words += ["--metric", "test loss", "--target", "2.3"]
    done = call(*words, "--runs", tmp_path / "runs", "--out", tmp_path / "page")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page" / "README.md").read_text()
    assert "Steps to test loss ≤ 2.3" in text
    assert "K-FAC, thermodynamic solve (tngd-2024, 8 bits)" in text


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_exit_code_1_and_advice(tmp_path: Path) -> None:
    result = call(*SMALL, "--optimizer", "sgd", "--lr", "1e30", "--out", tmp_path / "run")
    assert result.exit_code == DIVERGED
    assert "lower --lr (now 1e+30)" in result.stderr


@pytest.mark.slow
def test_an_interrupted_run_ends_with_exit_code_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from heatbath.experiments.progress import ProgressBar

    original = ProgressBar.row

    def row(self: ProgressBar, row: dict[str, int]) -> None:
        original(self, row)
        if row["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "row", row)
    result = call(*SMALL, "--out", tmp_path / "run")
    assert result.exit_code == INTERRUPTED
    assert "to go on:" in result.stderr
    assert "--resume" in result.stderr
    assert str(tmp_path / "run" / "run.jsonl") in result.stdout.replace("\n", "")


@pytest.mark.slow
def test_the_demo_compares_four_runs_and_leaves_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.demo, "DEMO_STEPS", 6)
    result = call("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    for words in ("AdamW", "K-FAC, Cholesky", "thermodynamic inverse", "thermodynamic solve", "not", "predict"):
        assert words in result.stdout
    assert len(list((tmp_path / "demo").glob("*.jsonl"))) == 4
    assert (tmp_path / "demo" / "report.html").is_file()
    assert call("report", tmp_path / "demo", "--out", tmp_path / "again.html").exit_code == 0
