from __future__ import annotations

import torch

from heatbath.experiments.training import BatchOrder, Training
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
