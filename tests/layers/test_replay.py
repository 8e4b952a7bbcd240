from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.layers import AttentionRule, Call, RandomState, RecurrentRule
from heatbath.layers.replay import replaying
from tests.layers.truth import noise

CPU = torch.device("cpu")


def test_numbers_drawn_again_are_the_same_and_the_generator_goes_on_as_before():
    state = RandomState.now(CPU)
    first = torch.rand(5)
    expected = torch.get_rng_state()
    with replaying(state, CPU):
        again = torch.rand(5)
    assert torch.equal(again, first)
    assert torch.equal(torch.get_rng_state(), expected)


def test_the_generator_goes_on_as_before_after_an_error_too():
    state = RandomState.now(CPU)
    torch.rand(5)
    expected = torch.get_rng_state()
    with pytest.raises(KeyError), replaying(state, CPU):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), expected)


def test_an_accelerators_generator_is_put_back_too(monkeypatch):
    class Accelerator:
        state = torch.tensor([1])

        def get_rng_state(self, device):
            return self.state

        def set_rng_state(self, state, device):
            self.state = state

    accelerator = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda device: accelerator)
    device = torch.device("cuda", 0)
    state = RandomState.now(device)
    accelerator.state = torch.tensor([2])
    with replaying(state, device):
        assert accelerator.state.item() == 1
        accelerator.state = torch.tensor([3])
    assert accelerator.state.item() == 2


@pytest.mark.parametrize("rule,module", [(AttentionRule(), nn.MultiheadAttention(6, 2)), (RecurrentRule(), nn.GRU(6, 6))])
def test_a_second_run_ignores_autocast_and_takes_mixed_precision(rule, module):
    x, g = noise(4, 3, 6, dtype=torch.float32), noise(4, 3, 6, seed=1, dtype=torch.float32)
    args = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
    plain = rule.rows(module, Call(args), (g, None))
    rounded = g.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = rule.rows(module, Call(args), (rounded, None))
    exact = rule.rows(module, Call(args), (rounded.float(), None))
    for a, b, c in zip(plain, mixed, exact, strict=True):
        assert a.outputs.dtype == b.outputs.dtype == torch.float32
        assert torch.equal(b.outputs, c.outputs)
        assert torch.equal(a.inputs, b.inputs)
