"""Windows into stacks are what the layers' rules say, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.optim import KFAC
from tests.curvature.truth import fill
from tests.laws import noise
from tests.zoo import LAYERS


def models() -> dict[str, nn.Module]:
    found = {name: row.model() for name, row in LAYERS.items()}
    found["weight frozen"] = nn.Linear(3, 4)
    found["weight frozen"].weight.requires_grad_(False)
    return found


@pytest.mark.parametrize("name", models())
def test_gathering_is_packing_and_scattering_is_unpacking(name):
    model = fill(models()[name])
    optimizer = KFAC(model)
    layout = optimizer.layout
    for index, p in enumerate(model.parameters()):
        p.grad = noise(*p.shape, seed=index) if p.requires_grad else None
    gathered = layout.packing.gather([0.0] * len(optimizer.param_groups))
    assert sorted(gathered) == list(range(len(optimizer.stacks)))
    for site in optimizer.sites:
        grads = {key: p.grad for key, p in site.parameters().items()}
        for (stack, place), block in zip(layout.places[id(site)], site.rule.pack(site.module, grads), strict=True):
            assert torch.equal(gathered[optimizer.stacks.index(stack)][place.slice], block)
    changes = layout.packing.scatter({i: 2 * tensor for i, tensor in gathered.items()})
    seen = {id(p): value for parameters, values in changes.values() for p, value in zip(parameters, values, strict=True)}
    assert len(seen) == sum(len(site.parameters()) for site in optimizer.sites)
    for site in optimizer.sites:
        for p in site.parameters().values():
            assert torch.equal(seen[id(p)], 2 * p.grad)


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
    linear, grouped = (optimizer.layout.packing.gather([0.0])[i] for i in (0, 1))
    assert linear[0, :, -1].abs().max() == 0
    assert linear[0, :, :-1].abs().max() > 0
    assert grouped[:2, :, :-1].abs().max() == 0
    assert grouped[2:, :, :-1].abs().max() > 0
    changed = {
        id(p) for parameters, _ in optimizer.layout.packing.scatter({0: linear, 1: grouped}).values() for p in parameters
    }
    assert id(model[0].bias) not in changed
    assert id(model[2].weight) not in changed
    assert len(changed) == 6


def test_stacks_without_any_gradient_are_left_out():
    model, optimizer = two()
    for p in (*model[0].parameters(), *model[1].parameters()):
        p.grad = None
    assert list(optimizer.layout.packing.gather([0.0])) == [1]
    for p in model.parameters():
        p.grad = None
    assert optimizer.layout.packing.gather([0.0]) == {}


def test_a_layer_whose_packing_is_no_view_is_trained_by_adamw():
    model = nn.ModuleList([nn.Linear(3, 3), nn.ConvTranspose1d(4, 6, 3, groups=2)])
    assert [row.treatment for row in KFAC(model).coverage().rows] == ["kfac 3×4", "adamw", "adamw"]


def test_absent_sites_count_as_zeros_and_do_not_move():
    model, optimizer = two()
    absent = {site for site in optimizer.sites if site.name in ("0", "2")}
    gathered = optimizer.layout.packing.gather([0.0], absent)
    assert gathered[0][0].abs().max() == 0
    assert gathered[1][:2].abs().max() == 0
    assert gathered[0][1].abs().max() > 0
    changed = {id(p) for parameters, _ in optimizer.layout.packing.scatter(gathered, absent).values() for p in parameters}
    assert changed == {id(p) for layer in (model[1], model[3]) for p in layer.parameters()}
    assert optimizer.layout.packing.gather([0.0], set(optimizer.sites)) == {}


def test_l2_is_added_to_gradients():
    _, optimizer = two()
    plain, more = (optimizer.layout.packing.gather([l2]) for l2 in (0.0, 0.5))
    for site in optimizer.sites:
        packed = site.rule.pack(site.module, {key: p.detach() for key, p in site.parameters().items()})
        for (stack, place), block in zip(optimizer.layout.places[id(site)], packed, strict=True):
            index = optimizer.stacks.index(stack)
            torch.testing.assert_close(
                more[index][place.slice] - plain[index][place.slice], 0.5 * block, rtol=1e-12, atol=1e-14
            )


def test_sparse_gradients_of_embeddings_are_gathered():
    table = fill(nn.Embedding(6, 3, sparse=True))
    optimizer = KFAC(table)
    table(torch.tensor([1, 1, 4])).square().sum().backward()
    assert table.weight.grad.layout is torch.sparse_coo
    (gathered,) = optimizer.layout.packing.gather([0.0]).values()
    assert torch.equal(gathered[0].mT, table.weight.grad.to_dense())
    before = table.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(table.weight, before)
