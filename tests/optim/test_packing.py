"""Windows into stacks are what the layers' rules say, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from heatbath.optim import KFAC
from tests.curvature.truth import fill
from tests.laws import noise
from tests.zoo import LAYERS


def models() -> dict[str, nn.Module]:
    found = {name: row.model() for name, row in LAYERS.items()}
    found["weight frozen"] = nn.Linear(3, 4)
    found["weight frozen"].weight.requires_grad_(False)
    return found


def gradients(model: nn.Module) -> dict[Tensor, Tensor]:
    return {p: p.grad for p in model.parameters() if p.grad is not None}


@pytest.mark.parametrize("name", models())
def test_gathering_is_packing_and_scattering_is_unpacking(name):
    model = fill(models()[name])
    optimizer = KFAC(model)
    layout = optimizer.layout
    for index, p in enumerate(model.parameters()):
        p.grad = noise(*p.shape, seed=index) if p.requires_grad else None
    gathered = layout.packing.gather(gradients(model))
    assert sorted(gathered) == list(range(len(optimizer.stacks)))
    for site in optimizer.sites:
        grads = {key: p.grad for key, p in site.parameters().items()}
        for (stack, place), block in zip(layout.places[id(site)], site.rule.pack(site.module, grads), strict=True):
            assert torch.equal(gathered[optimizer.stacks.index(stack)][place.slice], block)
    seen = layout.packing.scatter({i: 2 * tensor for i, tensor in gathered.items()}, model.parameters())
    assert len(seen) == sum(len(site.parameters()) for site in optimizer.sites)
    for site in optimizer.sites:
        for p in site.parameters().values():
            assert torch.equal(seen[p], 2 * p.grad)


def two() -> tuple[nn.Module, KFAC]:
    """A linear layer and a grouped convolution, two each."""
    parts = [nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv1d(4, 6, 3, groups=2), nn.Conv1d(4, 6, 3, groups=2)]
    model = fill(nn.ModuleList(parts))
    optimizer = KFAC(model)
    for index, p in enumerate(model.parameters()):
        p.grad = noise(*p.shape, seed=index)
    return model, optimizer


def test_missing_gradients_are_zeros_beside_others():
    model, optimizer = two()
    model[0].bias.grad = None
    model[2].weight.grad = None
    found = gradients(model)
    linear, grouped = (optimizer.layout.packing.gather(found)[i] for i in (0, 1))
    assert linear[0, :, -1].abs().max() == 0
    assert linear[0, :, :-1].abs().max() > 0
    assert grouped[:2, :, :-1].abs().max() == 0
    assert grouped[2:, :, :-1].abs().max() > 0
    changed = optimizer.layout.packing.scatter({0: linear, 1: grouped}, found)
    assert changed.keys() == found.keys() and len(changed) == 6


def test_stacks_without_any_gradient_are_left_out():
    model, optimizer = two()
    for p in (*model[0].parameters(), *model[1].parameters()):
        p.grad = None
    assert list(optimizer.layout.packing.gather(gradients(model))) == [1]
    for p in model.parameters():
        p.grad = None
    assert optimizer.layout.packing.gather({}) == {}


def test_a_layer_whose_packing_is_no_view_is_trained_by_adamw():
    model = nn.ModuleList([nn.Linear(3, 3), nn.ConvTranspose1d(4, 6, 3, groups=2)])
    assert [row.treatment for row in KFAC(model).coverage().rows] == ["kfac 3×4", "adamw", "adamw"]


def test_l2_is_added_to_gradients():
    model, optimizer = two()
    optimizer.layout.absent, optimizer.layout.treated = set(), list(model.parameters())
    optimizer.param_groups[0]["l2"] = 0.5
    found, finite = optimizer.gradients()
    assert bool(finite)
    for p in model.parameters():
        torch.testing.assert_close(found[p], p.grad + 0.5 * p, rtol=1e-12, atol=1e-14)


def test_sparse_gradients_of_embeddings_are_gathered():
    table = fill(nn.Embedding(6, 3, sparse=True))
    optimizer = KFAC(table)
    table(torch.tensor([1, 1, 4])).square().sum().backward()
    assert table.weight.grad.layout is torch.sparse_coo
    (gathered,) = optimizer.layout.packing.gather({table.weight: table.weight.grad.to_dense()}).values()
    assert torch.equal(gathered[0].mT, table.weight.grad.to_dense())
    before = table.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(table.weight, before)
