from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from heatbath.experiments import RunFiles, RunOptions, choose, run
from heatbath.experiments.baselines import PACKAGES
from heatbath.experiments.experiment import on_held_out_data
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
def test_model_loss_and_metrics_of_a_recipe_fit_its_data(name: str, nothing_at_hand: None) -> None:
    experiment = recipes()[name]
    dataset = experiment.source.load()
    with torch.random.fork_rng(devices=[]):
        model = experiment.model()
    large = experiment.name == "vit-s16-imagenet"  # of the rest more, since graphs lack most labels
    *inputs, target = dataset.test.batch(torch.arange(2 if large else min(64, len(dataset.test))))
    with torch.no_grad():
        output = model(*inputs)
        assert torch.isfinite(experiment.loss(output, target))
        for metric in experiment.metrics.values():
            value = metric(output, target)
            assert value.shape == ()
            assert torch.isfinite(value)


@pytest.mark.parametrize("name", recipes())
def test_a_set_that_stands_in_for_another_is_named_as_itself(name: str, nothing_at_hand: None) -> None:
    source = recipes()[name].source
    dataset = source.load()
    if dataset.name != source.name:
        assert "a stand-in, because " in dataset.source


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["cholesky", "thermodynamic-inverse", "thermodynamic-solve"])
@pytest.mark.parametrize("name", ["curves-autoencoder", "faces-autoencoder", "cifar-cnn", "cifar-vit"])
def test_k_fac_trains_every_parameter_of_a_recipe_and_lowers_its_loss(
    name: str, solver: str, nothing_at_hand: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    experiment = replace(recipes()[name], batch_size=32, eval_every=6)
    choice = choose(experiment, "kfac", solver=solver, bits=8 if "thermo" in solver else None)
    files = RunFiles(tmp_path_factory.mktemp("run"))
    record = run(experiment, choice, options=RunOptions(steps=6, checkpoint_every=0), files=files)
    treated = re.search(r"([\d,]+) of ([\d,]+) trainable numbers by curvature", record.header["coverage"])
    assert treated is not None
    assert treated[1] == treated[2] == f"{record.header['parameters']:,}"
    losses = record.metric("test loss")[2]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("curves-autoencoder", 6), ("faces-autoencoder", 30)])
def test_the_target_of_an_autoencoder_is_the_error_of_as_many_principal_components_as_its_code_has_units(
    name: str, code: int
) -> None:
    dataset = recipes()[name].source.load()
    if dataset.name == "digits-upscaled":
        pytest.skip("needs the Olivetti faces: set HEATBATH_DATA")
    train, test = (split.batch(torch.arange(len(split)))[0].double() for split in (dataset.train, dataset.test))
    centred = train - train.mean(0)
    components = torch.linalg.eigh(centred.T @ centred)[1][:, -code:]
    rest = (test - train.mean(0)) @ (torch.eye(train.shape[1], dtype=torch.float64) - components @ components.T)
    assert recipes()[name].target.value == pytest.approx(float(rest.square().sum(1).mean()), rel=3e-3)  # three digits


def test_nothing_can_be_tuned_on_a_recipe_of_shapes_and_its_data_say_so() -> None:
    experiment = recipes()["vit-s16-imagenet"]
    assert experiment.source.shapes_only
    with pytest.raises(ValueError, match="nothing can be chosen on imagenet-shapes, which is random numbers"):
        on_held_out_data(experiment)
    described = experiment.source.load().describe()
    assert "imagenet-shapes" in described
    assert "for predictions of time and energy only" in described


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
