"""Running a captured call again, to see what hooks cannot.

Attention and recurrent modules compute their inner activations in one fused call. On the steps that refresh factors the
call is run again in pieces, on detached copies, and gradients at the pieces are vector–Jacobian products with the captured
output gradients. Dropout inside such a call is repeated by starting from the same random state, as gradient checkpointing
does (Chen et al. 2016, arXiv 1604.06174, and `torch.utils.checkpoint`); the generators are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """Where PyTorch's global generators stood.

    Args:
        host: state of the CPU generator.
        device: the accelerator and the state of its generator, or None on the CPU and on "meta".
    """

    host: Tensor
    device: tuple[torch.device, Tensor] | None = None

    @staticmethod
    def now(device: torch.device) -> RandomState:
        """The present state, for a module on `device`; call it in a forward pre-hook."""
        host = torch.get_rng_state()
        if device.type in ("cpu", "meta"):  # shapes without values draw nothing
            return RandomState(host)
        return RandomState(host, (device, torch.get_device_module(device).get_rng_state(device)))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:  # Any: what either manager makes
    """Autocast off; on "meta", where shapes alone are counted, there is none."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


@contextmanager
def replaying(random: RandomState | None, device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off, and random numbers from `random` until the end of the block."""
    with torch.enable_grad(), without_autocast(device):
        if random is None:
            yield
            return
        present = RandomState.now(device)
        _restore(random)
        try:
            yield
        finally:
            _restore(present)


def pull_back(
    outputs: Sequence[Tensor | None], gradients: Sequence[Tensor | None], inner: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients at `inner` from those at `outputs`; a gradient of None, or one that is not given, counts as zeros.

    No `.grad` is touched.

    Raises:
        ValueError: a gradient has another shape than its output.
    """
    pairs = [(y, g.to(y.dtype)) for y, g in zip(outputs, gradients, strict=False) if y is not None and g is not None]
    for y, g in pairs:
        if y.shape != g.shape:
            raise ValueError(
                f"a gradient at an output of shape {list(y.shape)} has shape {list(g.shape)}: pair each call with the "
                "gradients of its own outputs"
            )
    if not pairs:
        return tuple(torch.zeros_like(x, requires_grad=False) for x in inner)
    return torch.autograd.grad([y for y, _ in pairs], list(inner), [g for _, g in pairs], materialize_grads=True)


def as_gradients(grad: Tensor | Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The gradients of a call as a sequence, also where there is only one."""
    return (grad,) if isinstance(grad, Tensor) else grad


def _restore(state: RandomState) -> None:
    torch.set_rng_state(state.host)
    if state.device is not None:
        device, tensor = state.device
        torch.get_device_module(device).set_rng_state(tensor, device)
