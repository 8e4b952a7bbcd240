"""Running a model with parameters lent to it.

`torch.func.functional_call` swaps tensors in and back, module by module as they are listed. A module that is listed twice, as
the layer in `Sequential(layer, Tanh(), layer)`, is swapped twice, so that the second time the lent tensor counts as its own and
stays in it (torch 2.13): the model has lost its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give every module back the parameters and buffers that it had at the start, whatever was swapped meanwhile."""
    held = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters, buffers in held:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
