"""The study of uncertainty: what it trains on, what it measures, what it refuses; the command that runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from heatbath import cli
from heatbath.experiments import RunFiles, RunOptions, choose, run
from heatbath.experiments.uncertainty import few_examples, trained_model, turn_images
from heatbath.recipes import recipes

DIGITS = recipes()["digits-mlp"]
NOISY = 'name = "noisy"\ntau = 1e-6\nnoise_volts_rms = 1e-3\n'


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_few_examples_are_training_examples_and_none_is_held_out():
    whole, few = DIGITS.source.load(), few_examples(DIGITS, 40).source.load()
    images = {tuple(x.flatten().tolist()) for x in few.train.batch(torch.arange(40))[0]}
    held = {tuple(x.flatten().tolist()) for x in few.test.batch(torch.arange(len(few.test)))[0]}
    known = {tuple(x.flatten().tolist()) for x in whole.train.tensors[0]}
    assert len(few.train) == 40
    assert images <= known and held <= known and not images & held


def test_a_quarter_turn_is_exact():
    images = torch.arange(32.0).reshape(2, 1, 4, 4)
    torch.testing.assert_close(turn_images(images, 90.0), torch.rot90(images, 1, (2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(turn_images(images, 0.0), images)


@pytest.mark.slow
def test_the_command_trains_fits_and_compares(tmp_path: Path):
    (tmp_path / "noisy.toml").write_text(NOISY)
    words = ["laplace", "digits-mlp", "--examples", 60, "--samples", 4, "--steps", 20, "--out", tmp_path / "run"]
    done = call(*words)
    assert done.exit_code == 0, done.output
    ways = ["mode", "Laplace, linearized", "Laplace, drawn weights"]
    found = json.loads((tmp_path / "run" / "laplace.json").read_text())
    assert [row["name"] for row in found["predictions"]] == ways
    assert found["examples"] == 60
    assert (tmp_path / "run" / "laplace.png").is_file()
    again = call(*words, "--resume", "--prior", 3.5, "--machine", tmp_path / "noisy.toml")
    assert again.exit_code == 0, again.output
    assert "s of analog time" in again.stdout
    found = json.loads((tmp_path / "run" / "laplace.json").read_text())
    assert [row["name"] for row in found["predictions"]] == [*ways, "Laplace, drawn by noisy"]
    assert set(found["priors"].values()) == {3.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mnist-autoencoder"], "mnist-autoencoder has no classes to predict"),
        (["digits"], "there is no recipe 'digits'; did you mean digits-"),
        (["digits-mlp", "--examples", "0"], "at least one example"),
        (["digits-mlp", "--examples", "5000"], "digits has 1294 examples to train on, fewer than 5000"),
        (["digits-mlp", "--resume"], "say which with --out"),
        (["digits-mlp", "--machine", "none.toml"], "machine file 'none.toml' does not exist"),
    ],
)
def test_a_mistake_is_one_message(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = call("laplace", *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_network_that_is_not_trained_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no trained network: there is no run.pt"):
        trained_model(DIGITS, RunFiles(tmp_path))
    files = RunFiles(tmp_path / "idle")
    options = RunOptions(steps=1, max_seconds=1e-9)
    run(DIGITS, choose(DIGITS, "adamw"), options=options, files=files)
    with pytest.raises(ValueError, match="not of other"):
        trained_model(replace(DIGITS, name="other"), files)
    state = torch.load(files.checkpoint, weights_only=True)
    state["training"]["step"] = 0
    torch.save(state, files.checkpoint)
    with pytest.raises(ValueError, match="took no step, so its network is not trained"):
        trained_model(DIGITS, files)


def test_only_images_are_turned():
    with pytest.raises(ValueError, match="only images"):
        turn_images(torch.zeros(3, 8), 10.0)
