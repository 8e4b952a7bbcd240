from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heatbath.experiments import RunFiles, RunOptions, choose, run
from heatbath.experiments.baselines import PACKAGES
from heatbath.experiments.data import Dataset
from heatbath.experiments.optimizers import OPTIMIZERS
from heatbath.experiments.training import Training
from heatbath.optim import NaturalGradient
from heatbath.optim.observing import passed_terms
from heatbath.recipes import recipe_functions, recipes


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_named_as_it_is_called_and_says_its_data(name: str) -> None:
    experiment = recipes()[name]
    assert experiment.name == name
    assert experiment.summary
    assert recipe_functions()[name]().name == name
    assert experiment.source.note


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_has_hyper_parameters_for_the_usual_optimizers_and_takes_all(name: str) -> None:
    assert {"sgd", "adam", "adamw", "kfac"} <= recipes()[name].hyper.keys() <= OPTIMIZERS.keys()
    for optimizer in OPTIMIZERS.keys() - PACKAGES.keys():
        choose(recipes()[name], optimizer)


@pytest.mark.parametrize("name", recipes())
def test_model_loss_and_metrics_of_a_recipe_fit_its_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, dataset = recipes()[name], packaged(name, monkeypatch)
    with torch.random.fork_rng(devices=[]):
        model = experiment.model()
    *inputs, target = dataset.test.batch(torch.arange(min(64, len(dataset.test))))
    with torch.no_grad():
        output = model(*inputs)
        assert torch.isfinite(experiment.loss(output, target))
        for metric in experiment.metrics.values():
            value = metric(output, target)
            assert value.shape == ()
            assert torch.isfinite(value)


def packaged(name: str, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """What a recipe trains on where nothing can be downloaded."""

    def unplugged(url: str, known_hash: str, name: str) -> Path:
        raise ConnectionError("tests do not download")

    monkeypatch.delenv("HEATBATH_DATA", raising=False)
    monkeypatch.setattr("heatbath.experiments.data.base.pooch_fetch", unplugged)
    return recipes()[name].source.load()


TERMS = {"char-gpt": 4 * 64, "char-lstm": 4 * 64, "molecules-gnn": 4, "cora-gcn": 4}  # of a batch of four


@pytest.mark.parametrize("name", TERMS)
def test_kfac_trains_every_parameter_and_counts_the_terms_of_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters, molecules, labelled nodes: what the loss is a mean over, whatever number of rows the layers see."""
    experiment = replace(recipes()[name], batch_size=4)
    dataset, counted = packaged(name, monkeypatch), list[float]()
    with torch.random.fork_rng(devices=[]):
        run = Training(experiment, dataset=dataset, choice=choose(experiment, "kfac"), seed=0, device=torch.device("cpu"))
    optimizer = run.optimizer
    assert isinstance(optimizer, NaturalGradient)
    assert all(row.treatment.startswith("kfac") for row in optimizer.coverage().rows)

    def finish() -> None:
        assert optimizer._seen.terms is not None
        counted.extend([float(optimizer._seen.terms), float(passed_terms(optimizer.capture, experiment.terms.reduction) or 0)])

    monkeypatch.setattr(optimizer, "finish_step", finish)
    run.advance()
    assert counted == [TERMS[name]] * 2  # by what was observed, and by what came back


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["cholesky", "eigen", "thermodynamic-inverse", "thermodynamic-solve"])
@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_with_defaults_the_loss_never_rises_above_its_start_and_the_target_is_reached(
    name: str, solver: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    experiment = recipes()[name]
    choice = choose(experiment, "kfac", solver=solver, bits=8 if "thermo" in solver else None)
    files = RunFiles(tmp_path_factory.mktemp("run"))
    record = run(experiment, choice, options=RunOptions(steps=100, checkpoint_every=0), files=files)
    losses = record.metric("loss")[2]
    assert max(losses[1:]) <= 1.1 * losses[0]  # single mini-batches scatter by about a tenth around the start
    assert [event["event"] for event in record.events] == ["finished"]
    assert record.reached() is not None


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["cholesky", "thermodynamic-inverse"])
def test_with_defaults_the_loss_of_the_autoencoder_never_rises_above_its_start(
    solver: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    experiment = recipes()["mnist-autoencoder"]
    if experiment.source.load().name != "mnist":
        pytest.skip("needs MNIST: set HEATBATH_DATA")
    choice = choose(experiment, "kfac", solver=solver, bits=8 if "thermo" in solver else None)
    files = RunFiles(tmp_path_factory.mktemp("run"))
    record = run(experiment, choice, options=RunOptions(steps=20, checkpoint_every=0), files=files)
    losses = record.metric("loss")[2]
    assert max(losses[1:]) <= 1.01 * losses[0]  # batches of 500 or more scatter by less than a hundredth around the start
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["cholesky", "thermodynamic-inverse", "thermodynamic-solve"])
@pytest.mark.parametrize("name", ["char-gpt", "char-lstm", "molecules-gnn", "cora-gcn"])
def test_with_defaults_the_loss_on_text_and_graphs_falls(
    name: str, solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(recipes()[name], eval_every=20)
    dataset = packaged(name, monkeypatch)
    choice = choose(experiment, "kfac", solver=solver, bits=8 if "thermo" in solver else None)
    options = RunOptions(steps=20, checkpoint_every=0)
    record = run(experiment, choice, options=options, files=RunFiles(tmp_path), dataset=dataset)
    losses = record.metric("loss")[2]
    assert [event["event"] for event in record.events] == ["finished"]
    assert losses[-1] < 0.9 * losses[0]
