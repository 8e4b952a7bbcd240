"""The command line as its user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heatbath.cli import app


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def test_lists_name_sources_and_data() -> None:
    code, text = run("machines")
    assert code == 0
    assert "tngd-2024" in text
    assert "2405.13817" in text
    code, text = run("recipes")
    assert code == 0
    for name in ("digits-mlp", "digits-cnn", "mnist-autoencoder"):
        assert name in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "digits-mpl"), "did you mean digits-mlp"),
        (("train", "digits-mlp", "--solver", "thermodynamic-solve", "--machine", "nowhere.toml"), "nowhere.toml"),
        (("train", "digits-mlp", "--optimizer", "adamw", "--damping", "0.1"), "has no meaning for adamw"),
        (("train", "digits-mlp", "--lr", "-1"), "--lr must be a positive number"),
        (("train", "digits-mlp", "--resume"), "--out"),
    ],
)
def test_mistakes_end_in_one_message(words: tuple[str, ...], message: str) -> None:
    code, text = run(*words)
    assert code == 2
    assert message in text.replace("\n", " ")
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_run_is_recorded_reported_and_resumed_bit_equal(tmp_path: Path) -> None:
    words = ("train", "digits-mlp", "--solver", "thermodynamic-inverse", "--bits", "8")
    assert run(*words, "--steps", "110", "--out", str(tmp_path / "whole"))[0] == 0
    assert run(*words, "--steps", "100", "--out", str(tmp_path / "part"))[0] == 0
    assert run(*words, "--steps", "110", "--out", str(tmp_path / "part"), "--resume")[0] == 0

    def losses(folder: str) -> dict[int, float]:
        lines = [json.loads(line) for line in (tmp_path / folder / "run.jsonl").read_text().splitlines()]
        assert lines[0]["dataset"]["name"] == "digits"
        return {row["step"]: row["loss"] for row in lines if "loss" in row}

    assert losses("whole") == losses("part")
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
