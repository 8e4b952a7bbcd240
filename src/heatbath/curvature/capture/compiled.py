"""Capture inside graphs made by `torch.compile`.

A compiled graph cannot call Python hooks, and breaking it at every layer would run the model uncompiled. So while a graph is
traced the hooks put opaque operators into it: `watch` passes a layer's output on and keeps the layer's inputs; in the backward
graph its `deliver` passes the gradient on and, when it runs, hands both to the capture. `begin` counts forward passes.
Whether anything is watched is decided while tracing, from a flag, so a model has two compiled graphs: one for the steps that
capture factors, and one without a trace of this file.

Dynamo leaves out guards on modules without hooks (`skip_nnmodule_hook_guards`), so a graph of one
model would be used for another of the same architecture that has hooks, and its rows would be
missed. `guard_hooks` switches those guards on for the process.

Operators take only tensors and numbers, so captures are found by number, in a weak table: the one global of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature.capture.recorder import CAPTURES
from heatbath.layers import Call


def guard_hooks() -> None:
    """Let graphs be used only for modules whose hooks are those of the traced ones.

    What was compiled without such guards is compiled anew when it is called next, once a process.
    """
    import torch._dynamo  # loaded by every optimizer already

    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()


def can_watch(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:  # Any: modules take what they like
    """Whether a call can be watched inside a graph: tensors in, one tensor out. Others break the graph."""
    return not kwargs and isinstance(output, Tensor) and all(isinstance(x, Tensor) for x in args)


def watch(output: Tensor, args: Sequence[Tensor], place: Tensor, token: int) -> Any:  # Any: the output
    """Pass an output on and deliver its gradient, with the call's arguments, to site number `place` of a capture."""
    if not output.requires_grad:
        return None
    return torch.ops.heatbath.watch(output, [x.detach() for x in args], place, token)[0]


def begin(args: tuple[Any, ...], kwargs: dict[str, Any], token: int) -> Any:  # Any: modules take what they like
    """Count a forward pass whenever the graph runs: arguments of the pre-hook, one passed through an operator."""
    for i, x in enumerate(args):
        if isinstance(x, Tensor) and x.ndim > 0:
            return (*args[:i], torch.ops.heatbath.begin(x, token), *args[i + 1 :]), kwargs
    for name, x in kwargs.items():
        if isinstance(x, Tensor) and x.ndim > 0:
            return args, {**kwargs, name: torch.ops.heatbath.begin(x, token)}
    return None


def arrive(output: Tensor, token: int) -> Any:  # Any: the output, or None for "as it is"
    """Pass the model's output on and count its terms when its gradient arrives."""
    if not output.requires_grad:
        return None
    return torch.ops.heatbath.arrive(output, token)[0]


@torch.library.custom_op("heatbath::begin", mutates_args=())
def _begin(x: Tensor, token: int) -> Tensor:
    capture = CAPTURES.get(token)
    if capture is not None:
        capture.begin(x)
    return x.clone()


@torch.library.custom_op("heatbath::arrive", mutates_args=())
def _arrive(output: Tensor, token: int) -> tuple[Tensor, Tensor]:
    capture = CAPTURES.get(token)
    return output.clone(), torch.tensor([token, 0 if capture is None else capture.passes])


@torch.library.custom_op("heatbath::arrived", mutates_args=())
def _arrived(grad: Tensor, note: Tensor) -> Tensor:
    token, pass_number = note.tolist()
    capture = CAPTURES.get(token)
    if capture is not None:
        capture.arrive(pass_number, capture.output_terms(grad, pass_number))
    return grad.clone()


@torch.library.custom_op("heatbath::watch", mutates_args=())
def _watch(output: Tensor, args: Sequence[Tensor], place: Tensor, token: int) -> tuple[Tensor, Tensor]:
    capture = CAPTURES.get(token)
    note = [int(place), token, 0 if capture is None else capture.passes]
    if capture is not None:
        capture.called = True
        capture.note_head(capture.sites[note[0]], output)
    return output.clone(), torch.tensor([*note, capture is not None and capture.sites[note[0]].module.training])


@torch.library.custom_op("heatbath::deliver", mutates_args=())
def _deliver(grad: Tensor, args: Sequence[Tensor], note: Tensor) -> Tensor:
    place, token, pass_number, training = note.tolist()
    capture = CAPTURES.get(token)
    if capture is not None:
        site = capture.sites[place]
        capture.deliver(site, site.module, Call(tuple(args), training=bool(training)), pass_number, grad)
    return grad.clone()


@_begin.register_fake
def _(x: Tensor, token: int) -> Tensor:
    return torch.empty_like(x)


@_arrive.register_fake
def _(output: Tensor, token: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(output), torch.empty(2, dtype=torch.int64)


@_arrived.register_fake
def _(grad: Tensor, note: Tensor) -> Tensor:
    return torch.empty_like(grad)


@_watch.register_fake
def _(output: Tensor, args: Sequence[Tensor], place: Tensor, token: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(output), torch.empty(4, dtype=torch.int64)


@_deliver.register_fake
def _(grad: Tensor, args: Sequence[Tensor], note: Tensor) -> Tensor:
    return torch.empty_like(grad)


def _keep_nothing(ctx: Any, inputs: Any, output: Any) -> None:  # Any: torch's own protocol
    """`begin` needs nothing to pass a gradient on."""


def _keep(ctx: Any, inputs: Any, output: Any) -> None:  # Any: torch's own protocol
    ctx.save_for_backward(*inputs[1], output[1])


def _pass_on(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, list[None], None, None]:  # Any: torch's own protocol
    *args, note = ctx.saved_tensors
    return torch.ops.heatbath.deliver(grad, args, note), [None] * len(args), None, None


def _keep_note(ctx: Any, inputs: Any, output: Any) -> None:  # Any: torch's own protocol
    ctx.save_for_backward(output[1])


_arrive.register_autograd(
    lambda ctx, grad, _: (torch.ops.heatbath.arrived(grad, ctx.saved_tensors[0]), None), setup_context=_keep_note
)
_begin.register_autograd(lambda ctx, grad: (grad, None), setup_context=_keep_nothing)
_watch.register_autograd(_pass_on, setup_context=_keep)
