"""Models keep their parameters, also those that list a module twice."""

import pytest
import torch
from torch import nn

import heatbath as hb
from heatbath.curvature import restored


class ByHand(nn.Module):
    """The same function as `Sequential(layer, Tanh(), layer)`, with the layer listed once."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def layer() -> nn.Linear:
    made = nn.Linear(3, 3).double()
    with torch.no_grad():
        for k, p in enumerate(made.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
    return made


def listed_twice() -> nn.Sequential:
    one = layer()
    return nn.Sequential(one, nn.Tanh(), one)


def test_parameters_and_buffers_come_back_even_after_an_error():
    model = nn.Sequential(listed_twice(), nn.BatchNorm1d(3).double())
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lent = {name: value.detach().clone() for name, value in before.items()}
    with pytest.raises(RuntimeError, match="halt"), restored(model):
        torch.func.functional_call(model, lent, (torch.randn(4, 3).double(),))
        raise RuntimeError("halt")
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize("solver", [None, hb.ConjugateGradient(60, 1e-15)])
def test_natural_gradient_trains_a_model_that_lists_a_layer_twice(solver):
    x, y = (torch.randn(8, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (5, 6))
    trained = []
    for model in (listed_twice(), ByHand(layer())):
        opt = hb.NGD(model, fisher=hb.ExactFisher(hb.Gaussian()), solver=solver, lr=0.5, damping=0.1)
        for _ in range(3):
            opt.zero_grad()
            (opt.observe(model(x)) - y).square().mean().backward()
            opt.step()
        trained.append([p.detach() for p in model.parameters()])
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
