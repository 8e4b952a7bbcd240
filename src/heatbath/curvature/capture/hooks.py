"""Watching a model's ordinary forward and backward pass, without touching `.grad` or the user's loop.

A forward hook on each treated module notes what it was called with and hangs a hook on its output; when the gradient
arrives there, the layer's rule turns both into rows and hands them to a sink. The hook sits on the output tensor, not on the
module, so a first layer whose inputs need no gradient works (a full-backward hook would warn and miss it).

Derivatives inside a loss make further uses of a layer's weight, which are followed
(`heatbath.curvature.capture.derivatives`) through linear and convolutional layers. Other layers deliver
what they did in the forward pass; what derivatives add to their gradients is not seen.

`Capture` is a plain object that the optimizer holds: `torch.compile` skips hooks that are bound methods of an
`Optimizer`, and hooks registered after the first compiled call. So hooks are registered once and switched by flags. A copy of
the model copies its capture without the sink, so copies (averages of weights, say) are watched by nobody. Where a tool hands
hooks on to a module of another kind without their keyword arguments (quantization does), they do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from heatbath.curvature.capture import compiled
from heatbath.curvature.capture.derivatives import Use, watch_tangents
from heatbath.curvature.capture.recorder import Capture, Sink, detached
from heatbath.curvature.capture.sites import Site
from heatbath.curvature.capture.views import View, source_of
from heatbath.layers import Call


def attach_hooks(capture: Capture, sink: Sink) -> None:
    """Register the hooks on a model and its sites.

    Args:
        capture: what they report to.
        sink: a bound method, called as `sink(site, pass_number, rows)` during backward passes, and held weakly: when its
            owner is gone the hooks do nothing.
    """
    capture.detach()
    capture.connect(sink)
    compiled.guard_hooks()
    capture.handles.append(capture.model.register_forward_pre_hook(partial(_note_pass, capture), with_kwargs=True))
    capture.handles.append(capture.model.register_forward_hook(partial(_note_outputs, capture)))
    for index, site in enumerate(capture.sites):
        place = torch.tensor(index)  # a tensor, so that blocks compiled one by one share their code
        for module in (site.module, *site.twins):
            if site.is_sharded():
                capture.handles.append(module.register_forward_pre_hook(partial(_note_leaves, capture, site)))
            if site.rule.draws(module):
                capture.handles.append(module.register_forward_pre_hook(partial(_note_random, capture)))
            if site.rule.is_bilinear:
                capture.handles.append(module.register_forward_pre_hook(partial(_note_input, capture), with_kwargs=True))
            note = partial(_note_call, capture, site, place)
            # first of all: a hook that was there before may change what the module returns
            capture.handles.append(module.register_forward_hook(note, with_kwargs=True, prepend=True))


def _note_pass(
    capture: Capture, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:  # Any: modules'
    """Count the model's forward passes and note what they were called with."""
    if kwargs is None or not capture.counts:
        return None
    if torch.compiler.is_compiling():
        return compiled.begin(args, kwargs, capture.token)
    first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim > 0 and not x.is_nested), None)
    capture.begin(first)
    return None


def _note_outputs(capture: Capture, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # Any: as above
    """Hang a hook on the model's first output that has a batch and a gradient; a bare loss stands for its inputs."""
    if not capture.counts:
        return None
    if torch.compiler.is_compiling() and isinstance(output, Tensor):
        return compiled.arrive(output, capture.token)
    _hang_count(capture, output)
    return None


@_disable_dynamo  # as torch.compiler.disable, but imports Dynamo when first called
def _hang_count(capture: Capture, output: Any) -> None:  # Any: as above
    """The eager way."""
    found = [x for x in _tensors(output) if x.requires_grad and not x.is_nested]
    if found:
        first = next((x for x in found if x.ndim > 0), found[0])
        shape = capture.output_terms(first, capture.passes)
        first.register_hook(partial(capture.arrive, capture.passes, shape))


def _tensors(value: Any) -> Iterator[Tensor]:  # Any: as above
    """The tensors in nested sequences and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)


def _note_random(capture: Capture, module: nn.Module, args: tuple[Any, ...]) -> None:  # Any: as above
    """Keep the random state before a call that draws, for its repetition."""
    if capture.watches and not torch.compiler.is_compiling():
        capture.note_random(module)


def _note_leaves(capture: Capture, site: Site, module: nn.Module, args: tuple[Any, ...]) -> None:  # Any: as above
    """Note what stands in for parameters in pieces; after the call it may be gone already."""
    if capture.watches:
        capture.note_leaves(site)


def _note_input(capture: Capture, module: nn.Module, args: Any, kwargs: Any = None) -> Any:  # Any: as above
    """Give a layer's input a name of its own, so that a gradient there is of this call alone."""
    if kwargs is None or not capture.watches or torch.compiler.is_compiling():
        return None
    return tuple(map(_renamed, args)), {name: _renamed(value) for name, value in kwargs.items()}


def _renamed(value: Any) -> Any:  # Any: modules take what they like
    """The same tensor under another name in the graph."""
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value


def _note_call(
    capture: Capture, site: Site, place: Tensor, module: nn.Module, args: Any, *told: Any
) -> Any:  # Any: modules take and return what they like
    """Hang a hook on the output of a watched call. The call keeps no output: that would be a cycle, and memory."""
    if len(told) != 2 or not capture.watches:
        return None
    kwargs, output = told
    if torch.compiler.is_compiling() and compiled.can_watch(args, kwargs, output):
        return compiled.watch(output, args, place, capture.token)
    _hang(capture, site, module, args, kwargs, output)
    return None


@_disable_dynamo  # as torch.compiler.disable, but imports Dynamo when first called
def _hang(capture: Capture, site: Site, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # Any: as above
    """The eager way."""
    if not _is_as_found(site):
        return
    capture.begin_without()
    if any(x.is_nested for x in _tensors([args, kwargs, output])):
        capture.leave_out(site)
        return
    capture.follow(site)
    if isinstance(output, Tensor):
        capture.note_head(site, output)
    random = capture.take_random(module)
    if site in capture.resting:
        return
    target = site.rule.outputs(module, output)
    chained = not isinstance(target, Tensor) and len({y.grad_fn for y in target}) > 1
    call = Call(detached(args), detached(kwargs), None, module.training, random, chained)
    deliver = partial(capture.deliver, site, module, call, capture.passes)
    if isinstance(target, Tensor):
        if not target.requires_grad:
            return
        source = source_of(target)
        view = View.of(target, source)
        if not site.rule.is_bilinear:
            source.register_hook(lambda grad: deliver(view.read(grad)))
            return
        use = Use(capture, site, module, call, capture.passes, next(iter((*args, *kwargs.values()))))
        source.register_hook(partial(_deliver_or_follow, deliver, use, view))
        watch_tangents(use, target)
    elif target:
        sources = [x if site.rule.reuses(module, i) else source_of(x) for i, x in enumerate(target)]
        views = [View.of(x, source) for x, source in zip(target, sources, strict=True)]
        torch.autograd.graph.register_multi_grad_hook(
            sources, lambda grads: deliver([v.read(g) for v, g in zip(views, grads, strict=True)])
        )


def _deliver_or_follow(deliver: Callable[[Tensor], None], use: Use, view: View, grad: Tensor) -> Tensor | None:
    """Deliver the gradient at a layer's output; a pass that trains nothing but builds a graph is followed."""
    if use.capture.wants(use.site):
        deliver(view.read(grad))
    elif torch.is_grad_enabled():
        return use.follow(view, grad)
    return None


def _is_as_found(site: Site) -> bool:
    """Whether a site still trains what it did when it was found; false if it is frozen by now or computes for others."""
    if not site.is_itself():
        return False
    trained = [p.requires_grad for p in site.parameters().values()]
    if any(trained) and (not all(trained) or site.rule.blocks(site.module) != site.blocks):
        raise ValueError(
            f"{site.name or 'the model'} trains other parameters than when the optimizer was built: "
            "call opt.refresh_layout() after freezing or unfreezing parameters"
        )
    return all(trained)
