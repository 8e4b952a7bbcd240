from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.curvature import Categorical, SampledFisher
from heatbath.experiments import choose
from heatbath.experiments.data import Dataset, Tensors
from heatbath.experiments.experiment import LossTerms
from heatbath.experiments.training import BatchOrder, Training, check_separate
from heatbath.optim import NaturalGradient, Pass
from tests.experiments import tasks


def order(size: int, batch: int) -> BatchOrder:
    return BatchOrder(size, batch, torch.Generator().manual_seed(0))


def test_an_epoch_shows_every_example_once_and_the_next_in_another_order() -> None:
    batches = order(12, 4)
    epochs = [torch.cat([batches.next() for _ in range(3)]) for _ in range(2)]
    assert all(epoch.sort().values.tolist() == list(range(12)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_batches_are_whole_and_never_repeat_an_example() -> None:
    batches = order(10, 4)
    for _ in range(7):
        assert len(set(batches.next().tolist())) == 4


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    assert sorted(order(5, 100).next().tolist()) == list(range(5))


def test_an_order_restored_in_mid_epoch_goes_on_the_same() -> None:
    batches = order(10, 3)
    batches.next()
    state = batches.state()
    expected = [batches.next().tolist() for _ in range(9)]
    other = BatchOrder(10, 3, torch.Generator().manual_seed(99))
    other.load(state)
    assert [other.next().tolist() for _ in range(9)] == expected


def training(name: str) -> Training:
    return Training(tasks.experiment(), dataset=tasks.blobs(), choice=tasks.choice(name), seed=0, device=torch.device("cpu"))


def test_a_step_by_the_quadratic_model_is_billed_for_its_passes() -> None:
    with torch.random.fork_rng(devices=[]):
        run = training("quadratic")
        for _ in range(5):
            run.advance()
    own = run.optimizer.work  # type: ignore[attr-defined]
    # five samples, five linearizations, ten directions, and the loss twice at the one step where damping adapts
    further = run.pass_work[Pass.PULL] * 5 + run.pass_work[Pass.LINEARIZE] * 5 + run.pass_work[Pass.PUSH] * 10
    assert run.work() == run.step_work * 5 + own + further + run.pass_work[Pass.EVALUATE] * 2
    assert run.report()["passes.evaluate"] == 2


def test_measuring_changes_nothing_in_the_run() -> None:
    with torch.random.fork_rng(devices=[]):
        plain = training("kfac")
        losses = [float(plain.advance()) for _ in range(6)]
        watched = training("kfac")
        for loss in losses:
            watched.measure()
            watched.start_loss()
            assert float(watched.advance()) == loss


def test_metrics_are_those_of_the_whole_test_set() -> None:
    with torch.random.fork_rng(devices=[]):
        run = training("adamw")
        inputs, labels = tasks.blobs().test.batch(torch.arange(30))
        run.model.eval()
        with torch.no_grad():
            correct = (run.model(inputs).argmax(1) == labels).float().mean()
        assert run.measure()["test accuracy"] == float(correct)
        assert run.model.training


def test_only_optimizers_with_curvature_report_coverage() -> None:
    with torch.random.fork_rng(devices=[]):
        assert training("adamw").coverage() is None
        assert training("adamw").report() == {}
        assert "Linear" in str(training("kfac").coverage())


@pytest.mark.parametrize("name", ["ngd", "tngd"])
def test_joint_methods_train_and_have_their_work_counted(name: str) -> None:
    task = tasks.experiment(model=lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), batch_size=96)
    choice = choose(task, name)
    with torch.random.fork_rng(devices=[]):
        run = Training(task, dataset=tasks.blobs(), choice=choice, seed=0, device=torch.device("cpu"))
        losses = [float(run.advance()) for _ in range(10)]
    assert losses[-1] < losses[0]
    work = run.work()
    assert work is not None
    assert work.programmings == (10.0 if name == "tngd" else 0.0)
    assert run.report()["refreshes"] == 10
    assert "ngd" in str(run.coverage())


def test_joint_methods_refuse_batches_whose_examples_are_not_rows_of_every_tensor() -> None:
    task = tasks.experiment(model=lambda: nn.Linear(6, 3))
    nodes, graphs = torch.zeros(7, 6), torch.zeros(2, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        run = Training(task, dataset=tasks.blobs(), choice=choose(task, "ngd"), seed=0, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="ngd and tngd run the examples of a batch one by one, but those of blobs are parts"):
        check_separate(run.optimizer, tasks.blobs(), (nodes, graphs))


def test_a_sampled_fisher_sees_the_outputs_and_their_targets() -> None:
    """Labels of -100 are none: the terms that K-FAC divides by are the others."""
    likelihood = Categorical()
    task = tasks.experiment(terms=LossTerms(likelihood, fisher=SampledFisher(likelihood)), batch_size=96)
    inputs, labels = tasks.blobs().train.batch(torch.arange(96))
    labels = torch.where(torch.arange(96) % 4 == 0, labels, -100)
    split = Tensors((inputs, labels))
    with torch.random.fork_rng(devices=[]):
        run = Training(
            task,
            dataset=Dataset("few labels", "", split, split),
            choice=choose(task, "kfac"),
            seed=0,
            device=torch.device("cpu"),
        )
    optimizer = run.optimizer
    assert isinstance(optimizer, NaturalGradient)
    seen = []
    optimizer.finish_step = lambda: seen.append(optimizer._seen.terms)  # type: ignore[method-assign]
    run.advance()
    assert [float(terms) for terms in seen] == [24.0]
