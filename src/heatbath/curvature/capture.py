"""Watching a model's ordinary forward and backward pass, without touching `.grad` or the user's loop.

A forward hook on each treated module notes what it was called with and hangs a hook on its output; when the gradient
arrives there, the layer's rule turns both into rows and hands them to a sink. The hook sits on the output tensor, not on the
module, so a first layer whose inputs need no gradient works (a full-backward hook would warn and miss it).

`Capture` is a plain object that the optimizer holds: `torch.compile` skips hooks that are bound methods of an
`Optimizer`, and hooks registered after the first compiled call. So hooks are registered once and switched by flags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from heatbath.layers import Block, Call, LayerRule, Rows, rule_for

Sink = Callable[["Site", int, tuple[Rows, ...]], None]


@dataclass(frozen=True, eq=False)
class Site:
    """A module whose curvature is captured.

    Args:
        name: qualified name in the model.
        module: the module.
        rule: how it becomes outer products.
        blocks: its matrices, fixed when the site was found.
    """

    name: str
    module: nn.Module
    rule: LayerRule
    blocks: tuple[Block, ...]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The module's parameters that its blocks treat, by their names within the module."""
        return {name: self.module.get_parameter(name) for block in self.blocks for name in block.parameters}


def find_sites(
    model: nn.Module, rules: Sequence[LayerRule], skip: Callable[[str, nn.Module], bool] | None = None
) -> list[Site]:
    """The modules of a model that have a rule, outermost first.

    A module inside a treated module is not treated again (attention owns its output projection), and parameters that two
    modules share are treated by the first.

    Args:
        model: the model.
        rules: rules to try, first match wins.
        skip: `skip(name, module)` is true for modules to leave to the fallback.
    """
    sites: list[Site] = []
    taken: set[int] = set()
    owners: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{owner}.") or owner == "" for owner in owners):
            continue
        rule = rule_for(module, rules)
        if rule is None or (skip is not None and skip(name, module)):
            continue
        site = Site(name, module, rule, rule.blocks(module))
        identities = {id(p) for p in site.parameters().values()}
        if not site.blocks or identities & taken:
            continue
        taken |= identities
        owners.append(name)
        sites.append(site)
    return sites


@dataclass(eq=False)
class Capture:
    """Hooks on a model's sites that deliver rows to a sink.

    Args:
        model: the model; its own forward calls delimit passes, so that a module used twice within one pass (tied or reused
            weights) is told apart from two micro-batches.
        sites: from `find_sites`.
        sink: called as `sink(site, pass_number, rows)` during the backward pass.
        enabled: whether forward passes are watched; switch it off where no factors are due.
        recording: whether gradients that arrive are delivered.
    """

    model: nn.Module
    sites: Sequence[Site]
    sink: Sink
    enabled: bool = True
    recording: bool = True
    passes: int = 0
    batches: list[int] = field(default_factory=list)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def attach(self) -> None:
        """Register the hooks; call it before the model is compiled."""
        self._handles.append(self.model.register_forward_pre_hook(partial(_note_pass, self), with_kwargs=True))
        for site in self.sites:
            self._handles.append(site.module.register_forward_hook(partial(_note_call, self, site), with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _note_pass(capture: Capture, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Count the model's forward passes and note their batch sizes."""
    if not torch.is_grad_enabled():
        return
    capture.passes += 1
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim > 0]
    capture.batches.append(tensors[0].shape[0] if tensors else 1)


def _detached(value: Any) -> Any:  # Any: modules take what they like
    """The same values without their graph, so that a hook never keeps a graph alive."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, value)


def _note_call(
    capture: Capture, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    """Hang a hook on the output of a watched call. The call keeps no output: that would be a cycle, and memory."""
    if not (capture.enabled and torch.is_grad_enabled()):
        return
    target = site.rule.outputs(module, output)
    call = Call(_detached(args), _detached(kwargs), None, module.training)
    deliver = partial(_deliver, capture, site, call, capture.passes)
    if isinstance(target, Tensor):
        if target.requires_grad:
            target.register_hook(deliver)
    elif target:
        torch.autograd.graph.register_multi_grad_hook(target, deliver)


@torch.no_grad()
def _deliver(capture: Capture, site: Site, call: Call, pass_number: int, grad: Any) -> None:  # Any: one gradient or several
    """Turn a call and its output gradients into rows."""
    if capture.recording:
        capture.sink(site, pass_number, site.rule.rows(site.module, call, _detached(grad)))
