from __future__ import annotations

import torch
from torch import nn

from heatbath.curvature import find_sites
from heatbath.layers import default_rules
from heatbath.optim import KFAC
from heatbath.optim.stacks import build_stacks, find_places


def stacks_of(model: nn.Module, group_of=lambda name: 0):
    sites = find_sites(model, default_rules())
    return sites, build_stacks(sites, {id(p): group_of(name) for name, p in model.named_parameters()})


def test_blocks_of_one_shape_are_one_stack():
    grouped = nn.Conv1d(6, 4, 1, groups=2)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 2), grouped, nn.Linear(3, 2, bias=False))
    _, stacks = stacks_of(model)
    assert {tuple(s.names): s.length for s in stacks} == {
        ("0[0]", "2[0]", "3[0]"): 4,  # the groups of the convolution are 2 × 4 matrices too
        ("1[0]",): 1,
        ("4[0]",): 1,
    }
    assert [(p.slice.start, p.slice.stop) for p in stacks[0].places] == [(0, 1), (1, 2), (2, 4)]


def test_groups_dtypes_and_diagonal_inputs_have_stacks_of_their_own():
    model = nn.Sequential(*(nn.Linear(3, 2, bias=False) for _ in range(2)), nn.Embedding(3, 2), nn.Linear(3, 2, bias=False))
    model[1].double()
    _, stacks = stacks_of(model, lambda name: int(name.startswith("3")))
    assert [s.names for s in stacks] == [["0[0]"], ["1[0]"], ["2[0]"], ["3[0]"]]
    assert [s.group for s in stacks] == [0, 0, 0, 1]
    assert [s.boost.dtype for s in stacks] == [torch.float32, torch.float64, torch.float32, torch.float32]


def test_every_block_of_a_site_has_a_place_in_order():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2, kdim=3), "linear": nn.Linear(4, 4)})
    sites, stacks = stacks_of(model)
    places = find_places(stacks)
    for site in sites:
        assert [place.block for _, place in places[id(site)]] == list(range(len(site.blocks)))
        for stack, place in places[id(site)]:
            assert place in stack.places
    assert sum(s.length for s in stacks) == sum(b.places for site in sites for b in site.blocks)


def test_an_optimizer_has_one_stack_per_shape():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    (stack,) = KFAC(model).stacks
    assert stack.length == 6
