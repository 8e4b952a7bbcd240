from __future__ import annotations

import pytest
import torch

from heatbath.experiments import RunFiles, RunOptions, choose, run
from heatbath.experiments.baselines import PACKAGES
from heatbath.experiments.optimizers import OPTIMIZERS
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
    from heatbath.experiments.data import digits, mnist

    upscaled = digits.load() if "digits" in name else mnist_stand_in()
    experiment = recipes()[name]
    dataset = upscaled if experiment.source.name != mnist.name else mirrored(upscaled)
    with torch.random.fork_rng(devices=[]):
        model = experiment.model()
    *inputs, target = dataset.test.batch(torch.arange(4))
    with torch.no_grad():
        output = model(*inputs)
        assert torch.isfinite(experiment.loss(output, target))
        for metric in experiment.metrics.values():
            value = metric(output, target)
            assert value.shape == ()
            assert torch.isfinite(value)


def mnist_stand_in():  # type: ignore[no-untyped-def]
    from heatbath.experiments.data.digits import load_upscaled

    return load_upscaled(28, why="tests do not download")


def mirrored(dataset):  # type: ignore[no-untyped-def]
    from heatbath.experiments.data import Source, reconstruction

    return reconstruction(Source("mnist", "", lambda: dataset)).load()


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
