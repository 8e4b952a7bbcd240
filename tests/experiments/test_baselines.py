from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.experiments import Hyper, choose
from heatbath.experiments.baselines import PACKAGES, Parts, hidden_matrices
from heatbath.experiments.checkpoint import load_checkpoint, save_checkpoint
from heatbath.experiments.choice import choice_from_json
from heatbath.experiments.optimizers import FALLBACK_HYPER, OPTIMIZERS, build
from heatbath.optim import JointNaturalGradient, NaturalGradient
from heatbath.work import Work
from tests.experiments import tasks

INSTALLED = [name for name in OPTIMIZERS if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]


def network() -> nn.Module:
    """Two hidden matrices between the first and the last one, and scales."""
    torch.manual_seed(0)
    first, hidden, other, last = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 5), nn.Linear(5, 3)
    return nn.Sequential(first, nn.Tanh(), nn.LayerNorm(8), hidden, nn.Tanh(), other, nn.Tanh(), last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    inputs, labels = tasks.blobs().train.batch(torch.arange(96))
    losses = []
    for i in steps:
        optimizer.zero_grad()
        outputs = model(inputs[i::4])
        if isinstance(optimizer, NaturalGradient | JointNaturalGradient):
            optimizer.observe(outputs)
        loss = F.cross_entropy(outputs, labels[i::4])
        loss.backward()
        if isinstance(optimizer, NaturalGradient) and optimizer.policy.adapt is not None:
            optimizer.step(evaluate=lambda: F.cross_entropy(model(inputs[i::4]), labels[i::4]))  # noqa: B023
        else:
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", INSTALLED)
def test_a_saved_optimizer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    choice = choose(tasks.experiment(), name, lr=1e-2)
    with torch.random.fork_rng(devices=[]):
        model, other = network(), network()
    terms = tasks.experiment().terms
    optimizer = build(choice, model, terms=terms, generator=torch.Generator())
    train(model, optimizer, range(13))
    save_checkpoint(tmp_path / "x.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    on = train(model, optimizer, range(13, 30))
    again = build(choice, other, terms=terms, generator=torch.Generator())
    saved = load_checkpoint(tmp_path / "x.pt")
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert train(other, again, range(13, 30)) == on


def test_muon_is_torchs_own_on_hidden_matrices_and_adamw_on_the_rest() -> None:
    hyper = Hyper(lr=0.02, momentum=0.9, weight_decay=0.1, square_decay=0.99)
    with torch.random.fork_rng(devices=[]):
        model, twin = network(), network()
    choice = choose(tasks.experiment(hyper={"muon": hyper}), "muon")
    matrices = [twin[3].weight, twin[5].weight]  # type: ignore[index]
    rest = [p for p in twin.parameters() if all(p is not m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer = build(choice, model, generator=torch.Generator())
    inputs, labels = tasks.blobs().train.batch(torch.arange(96))
    for _ in range(5):
        train(model, optimizer, range(1))
        twin.zero_grad()
        F.cross_entropy(twin(inputs[0::4]), labels[0::4]).backward()
        muon.step(), adamw.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_hidden_matrices_leave_out_embeddings_free_tensors_and_both_ends() -> None:
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(9, 4),
            "first": nn.Linear(4, 4),
            "image": nn.Conv2d(4, 4, 1),
            "hidden": nn.Linear(4, 4),
            "last": nn.Linear(4, 2),
        }
    )
    model["first"].register_parameter("positions", nn.Parameter(torch.zeros(1, 5, 4)))
    assert [id(p) for p in hidden_matrices(model)] == [id(model["image"].weight), id(model["hidden"].weight)]


class AsImage(nn.Module):
    """Features as the rows of an image of one column."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, None, :, None]


def test_muon_trains_filters_as_the_matrix_of_the_same_numbers() -> None:
    """A convolution whose kernel covers its image is a linear layer, so both must take the same steps."""
    with torch.random.fork_rng(devices=[]):
        model = network()
    filters = nn.Conv2d(1, 7, (8, 1))
    filters.weight.data.copy_(model[3].weight.detach().reshape(7, 1, 8, 1))  # type: ignore[index]
    filters.bias.data.copy_(model[3].bias.detach())  # type: ignore[index, union-attr]
    twin = copy.deepcopy(model)
    twin[3] = nn.Sequential(AsImage(), filters, nn.Flatten())  # type: ignore[index]
    choice = choose(tasks.experiment(), "muon", lr=1e-2)
    losses = [train(m, build(choice, m, generator=torch.Generator()), range(12)) for m in (model, twin)]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(filters.weight.detach().flatten(1), model[3].weight.detach())  # type: ignore[index]


def test_gradients_of_filters_add_up_over_passes_and_are_cleared() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv1d(2, 2, 2), nn.Flatten(), nn.Linear(4, 1))
    optimizer = build(choose(tasks.experiment(), "muon"), model, generator=torch.Generator())
    (matrix,) = optimizer.param_groups[0]["params"]
    inputs = torch.arange(10.0).reshape(2, 1, 5)
    (whole,) = torch.autograd.grad(model(inputs).sum(), [model[1].weight])
    for row in inputs.split(1):
        model(row).sum().backward()
    torch.testing.assert_close(matrix.grad, whole.flatten(1))
    optimizer.zero_grad()
    assert all(p.grad is None for p in [matrix, *model.parameters()])


def test_decay_of_nadamw_is_decoupled_from_its_gradients() -> None:
    """Without a gradient, decoupled decay shrinks a weight by lr · decay; an L2 term would be normalised to a step of lr."""
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    choice = choose(tasks.experiment(hyper={"nadamw": Hyper(lr=0.1, weight_decay=0.5)}), "nadamw")
    optimizer = build(choice, model, generator=torch.Generator())
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 0.5))


def test_a_scheduler_reaches_all_parts_even_after_loading() -> None:
    with torch.random.fork_rng(devices=[]):
        model = network()
    optimizer = build(choose(tasks.experiment(), "muon", lr=1.0), model, generator=torch.Generator())
    assert isinstance(optimizer, Parts)
    optimizer.load_state_dict(optimizer.state_dict())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.25, 0.25]


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    with torch.random.fork_rng(devices=[]):
        model = network()
    optimizer = build(choose(tasks.experiment(), "muon"), model, generator=torch.Generator())
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert calls == [True]


def test_work_of_muon_is_five_newton_schulz_steps_of_three_products_per_matrix() -> None:
    with torch.random.fork_rng(devices=[]):
        model = network()
    optimizer = build(choose(tasks.experiment(), "muon"), model, generator=torch.Generator())
    train(model, optimizer, range(2))
    work = optimizer.work  # type: ignore[attr-defined]
    assert isinstance(work, Work)
    products = sum(kernel.flops * count for kernel, count in work.kernels.items() if kernel.name == "matmul")
    expected = sum(2 * (2 * m * m * n + m**3) for m, n in ((7, 8), (5, 7)))  # [7, 8] and [5, 7], short side m
    assert products == 2 * 5 * expected


def test_muon_without_a_hidden_matrix_or_without_torchs_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(tasks.experiment(), "muon")
    with pytest.raises(ValueError, match="muon needs a weight matrix or filter between the first and the last"):
        build(choice, nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), generator=torch.Generator())
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"muon needs torch 2\.9 or newer"):
        build(choice, network(), generator=torch.Generator())


@pytest.mark.parametrize("name", PACKAGES)
def test_an_optimizer_whose_package_is_missing_is_refused_at_the_door(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, PACKAGES[name], None)  # what makes an import fail
    with pytest.raises(ValueError, match=f"{name} needs the package {PACKAGES[name]}, which is not installed: pip install"):
        choose(tasks.experiment(), name)


def test_every_optimizer_has_defaults_and_a_choice_survives_its_record() -> None:
    assert FALLBACK_HYPER.keys() == OPTIMIZERS.keys()
    for name in INSTALLED:
        choice = choose(tasks.experiment(), name)
        assert choice_from_json(choice.to_json()) == choice
    thermal = choose(tasks.experiment(), "kfac", solver="thermodynamic-inverse", bits=9)
    assert choice_from_json(thermal.to_json()) == thermal
