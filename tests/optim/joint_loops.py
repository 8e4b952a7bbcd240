"""What the tests of the joint optimizers (NGD, TNGD) share: a loop, flat vectors, and a run that is saved and goes on."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.optim import NGD, TNGD

Joint = NGD | TNGD


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def steps(model: nn.Module, optimizer: Joint, x: Tensor, y: Tensor, count: int = 1, loss=F.mse_loss) -> list[float]:
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        value = loss(optimizer.observe(model(x)), y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def goes_on_bit_equal(make: Callable[[], tuple[nn.Module, Joint]], x: Tensor, y: Tensor) -> tuple[Joint, Joint]:
    """Two steps, save, two steps; against load and two steps. The optimizers at the end, for more comparisons."""
    model, optimizer = make()
    steps(model, optimizer, x, y, 2, F.cross_entropy)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    steps(model, optimizer, x, y, 2, F.cross_entropy)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = make()
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    steps(again, other, x, y, 2, F.cross_entropy)
    assert torch.equal(flat(again), flat(model))
    assert other.work == optimizer.work
    return optimizer, other
