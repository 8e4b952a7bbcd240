"""What a model's ordinary passes show: which calls count, how many terms the loss has, where rows go.

The record without the hooks, which `heatbath.curvature.capture.hooks` puts on a model.

How many terms the loss has is read from the model's first output whose gradient arrives, or from its inputs. Where the
model's own forward is never called (a LightningModule whose training step calls its parts), layers count for themselves.

A gradient counts only if the pass that brings it also computes the gradient of the site's
parameters: `loss.backward()` does, the `autograd.grad(u, x, create_graph=True)` of a
physics-informed loss does not. `autograd.grad(loss, parameters)` does as long as no `.grad` is
there, for a loop that fills it in by itself; beside one it is a diagnosis, and does not. And if a
pass comes to a site whose parameters have no `.grad`, an accumulation begins: what earlier passes
brought was discarded with their gradients (a generator's pass through the discriminator, say),
whoever set them to None. Gradients that are filled with zeros instead look like any other, so then
it is the optimizer's `zero_grad` that must be called.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from heatbath.curvature.capture.sites import Site
from heatbath.curvature.capture.terms import Head, Inputs, Shape, output_terms
from heatbath.curvature.likelihoods import Likelihood
from heatbath.layers import Call, RandomState, Rows, without_autocast

Sink = Callable[[Site, int, tuple[Rows, ...]], None]
_Leaf = tuple[Any, torch.dtype, torch.device]  # Any: a node of the autograd graph, which a cast parameter no longer ends in
_tokens = count()
CAPTURES: weakref.WeakValueDictionary[int, Capture] = weakref.WeakValueDictionary()  # by token, for compiled graphs


@dataclass(eq=False)
class Capture:
    """What the passes of a model have shown, and where rows go.

    Args:
        model: the model; its own forward calls delimit passes, so that a module used twice within one pass (tied or reused
            weights) is told apart from two micro-batches.
        sites: from `find_sites`.
        enabled: whether forward passes are watched; switch it off where no factors are due.
        listening: whether ordinary backward passes are delivered; `pull_back` delivers others.
        counting: whether terms of the loss are counted even where `enabled` is off.
        batch_dim: 1 where positions come before examples, in the model's inputs and outputs and in layers that act position by
            position; those that know better by themselves (attention, recurrent layers) are asked.
        likelihood: says which dimension of the outputs holds features; None: shapes have to tell.
        terms: examples and positions of each forward pass that a training backward pass came back to; 0 positions if unknown.
        derived: whether the loss has met input derivatives since the last step, so that weights have uses beyond the outputs.
        pull: number of the present pull through one forward pass, from 0.
        anew: whether the rows handed over now are the first of their site since its gradients were set to None.
        called: whether any hook has run since the last step while capture was enabled.
        resting: sites that are not watched at present, though others are.
        unread: sites that were called with nested tensors, which have no rows.
    """

    model: nn.Module
    sites: Sequence[Site]
    enabled: bool = True
    listening: bool = True
    counting: bool = False
    batch_dim: int = 0
    likelihood: Likelihood | None = None
    passes: int = 0
    terms: dict[int, Shape] = field(default_factory=dict)
    derived: bool = False
    pull: int = 0
    anew: bool = False
    called: bool = False
    resting: set[Site] = field(default_factory=set)
    unread: set[Site] = field(default_factory=set)
    token: int = -1
    _pulling: bool = False
    _own: bool = False  # whether the model's own forward ran since the last step
    _returned: bool = False  # whether a gradient came back since a pass began without it
    _sink: weakref.WeakMethod[Any] | None = None  # Any: a Sink
    _inputs: dict[int, Inputs] = field(default_factory=dict)  # by pass, as are heads
    _heads: dict[int, list[Head]] = field(default_factory=dict)
    _task: int = -1  # number of the last backward pass that terms were counted in
    _tasks: dict[Site, int] = field(default_factory=dict)  # of the last one that brought rows of a site
    _random: dict[int, RandomState] = field(default_factory=dict)
    _leaves: dict[int, list[_Leaf]] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)

    def connect(self, sink: Sink) -> None:
        """Deliver to `sink` from now on, through hooks that are already there (in a copy of the model)."""
        self.token = next(_tokens)
        CAPTURES[self.token] = self
        self._sink = weakref.WeakMethod(sink)
        self._leaves.clear()
        for site in self.sites:
            self.note_leaves(site)

    def note_leaves(self, site: Site) -> None:
        """Note where the gradients of a site's parameters are accumulated now."""
        self._leaves[id(site)] = _leaves(site)

    def note_random(self, module: nn.Module) -> None:
        """Keep the random state before a call that draws, for its repetition."""
        self._random[id(module)] = RandomState.now(next(module.parameters()).device)

    def take_random(self, module: nn.Module) -> RandomState | None:
        """The random state before the call that has just ended."""
        return self._random.pop(id(module), None)

    def follow(self, site: Site) -> None:
        """Find the ends of the autograd graph of a site whose parameters were cast after the optimizer was built.

        Raises:
            ValueError: they are on another device, or double where they were not: sums and states would not fit.
        """
        if site.is_sharded():
            return  # what stands in for its parameters is noted before each call
        known, parameters = self._leaves[id(site)], site.held.values()
        if all(n is not None and p.dtype == d and p.device == v for (n, d, v), p in zip(known, parameters, strict=True)):
            return
        for (_, dtype, device), p in zip(known, parameters, strict=True):
            if p.device != device or (p.dtype != dtype and torch.float64 in (p.dtype, dtype)):
                raise ValueError(
                    f"{site.name or 'the model'} became {p.dtype} on {p.device} after the optimizer was built for {dtype} on "
                    f"{device}: move and cast a model first, or call opt.refresh_layout()"
                )
        self._leaves[id(site)] = _leaves(site)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    @property
    def watches(self) -> bool:
        """Whether a call that is made now is watched."""
        return self.enabled and torch.is_grad_enabled() and not torch.jit.is_tracing()  # type: ignore[attr-defined]

    @property
    def counts(self) -> bool:
        """Whether a pass that begins or ends now is counted."""
        return self.watches or (self.counting and torch.is_grad_enabled())

    def pull_back(self, outputs: Tensor, vectors: Iterable[Tensor], parameters: Sequence[Tensor]) -> int:
        """Deliver the gradients that each of some vectors at observed outputs brings, without touching `.grad`.

        Args:
            outputs: of the model, with their graph.
            vectors: shaped like the outputs.
            parameters: of each site one or more, so that the pass goes as far as its output; if `derived` all, for a use in a
                derivative may lead to the weight alone.

        Returns:
            How many backward passes that took.
        """
        wanted = [p for p in parameters if p.requires_grad]
        if not wanted or not outputs.requires_grad:
            return 0
        self._pulling, passes = True, 0
        try:
            for self.pull, vector in enumerate(vectors):
                passes += 1
                torch.autograd.grad(outputs, wanted, vector.to(outputs.dtype), retain_graph=True, allow_unused=True)
        finally:
            self._pulling, self.pull = False, 0
        return passes

    def begin(self, first: Tensor | None) -> None:
        """Note a forward pass and its first input."""
        self.passes += 1
        self._own = self.called = True
        if first is not None:
            self._inputs[self.passes] = Inputs.from_tensor(first)

    def begin_without(self) -> None:
        """Note a call while the model's own forward is not used: a pass begins with the first one after a backward pass."""
        self.called = True
        if not self._own and self._returned:
            self.passes += 1
            self._returned = False

    def arrive(self, pass_number: int, shape: Shape | None, _: Any = None) -> None:  # Any: the gradient
        """Note that a gradient came to the output of a pass with so many examples and positions; None: as its inputs have."""
        shape = self._input_terms(pass_number) if shape is None else shape
        if shape is not None and not self._pulling:
            self._count(pass_number, shape)

    def leave_out(self, site: Site) -> None:
        """Say once that a site was called with nested tensors, which have no rows."""
        if site not in self.unread:
            self.unread.add(site)
            name = site.name or "the model"
            warnings.warn(f"{name} was called with nested tensors, which have no curvature: AdamW trains it", stacklevel=2)

    def note_head(self, site: Site, output: Tensor) -> None:
        """Note the output of a linear layer or convolution, which may be the model's."""
        if site.rule.is_bilinear:
            block = site.blocks[0]
            channels_first = not site.rule.positionwise(site.module)
            head = Head(output.numel(), block.places * block.domain[0], channels_first)
            heads = self._heads.setdefault(self.passes, [])
            if not heads or heads[-1] != head:
                heads.append(head)

    def output_terms(self, outputs: Tensor, pass_number: int) -> Shape | None:
        """Examples and positions of a pass's outputs; None for a bare loss."""
        if outputs.ndim == 0:
            return None
        inputs, heads = self._inputs.get(pass_number), self._heads.get(pass_number, ())
        return output_terms(outputs, self.batch_dim, self.likelihood, inputs, heads)

    def _input_terms(self, pass_number: int) -> Shape | None:
        """Examples and positions of a pass's inputs, if they are known."""
        inputs = self._inputs.get(pass_number)
        return None if inputs is None else inputs.terms(self.batch_dim, self._heads.get(pass_number, ()))

    def _count(self, pass_number: int, shape: Shape) -> None:
        """Count a pass, if it trains; if it is the first one of an accumulation, as the only one."""
        trained = [site for site in self.sites if self._trains(site)]
        if trained:
            task, self._task = self._task, torch._C._current_graph_task_id()
            if task != self._task and not any(map(_has_gradient, trained)):
                self.terms.clear()
            self.terms[pass_number] = shape

    def forget(self) -> None:
        """Drop what was counted."""
        self.derived = False
        self.terms.clear()
        self._inputs.clear()
        self._heads.clear()
        self._own = self.called = False

    @torch.no_grad()
    def deliver(self, site: Site, module: nn.Module, call: Call, pass_number: int, grad: Any) -> None:  # Any: one or several
        """Turn a call and its output gradients into rows."""
        if self.wants(site):
            if self.turns(site, module, grad):
                call, grad = call.transposed(), grad.transpose(0, 1)
            self.hand_over(site, pass_number, site.rule.rows(module, call, detached(grad)))

    def turns(self, site: Site, module: nn.Module, grad: Any) -> bool:  # Any: one or several
        """Whether a layer's inputs and outputs have positions before examples."""
        return bool(self.batch_dim) and site.rule.positionwise(module) and grad.ndim > 2

    def wants(self, site: Site) -> bool:
        """Whether rows of a site are to be delivered from the pass that runs now."""
        return site not in self.resting and (self._pulling or (self.listening and self._trains(site)))

    def hand_over(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        """Give rows to the sink, if it is still there."""
        sink = None if self._sink is None else self._sink()
        if sink is None:
            return
        inputs = None if self._pulling or pass_number in self.terms else self._input_terms(pass_number)
        if inputs is not None:
            self._count(pass_number, inputs)
        self._returned = True
        task = torch._C._current_graph_task_id()
        self.anew = not self._pulling and self._tasks.get(site) != task and not _has_gradient(site)
        self._tasks[site] = task
        with without_autocast(rows[0].outputs.device):  # sums of outer products are as exact as their tensors
            sink(site, pass_number, rows)

    def _trains(self, site: Site) -> bool:
        """Whether the backward pass that runs now computes the gradient of a site's parameters."""
        asked = False
        for node, *_ in self._leaves[id(site)]:
            if node is None:
                continue
            try:
                if torch._C._will_engine_execute_node(node):
                    return True
            except RuntimeError:  # autograd.grad was asked for this very parameter
                asked = True
        return asked and not _has_gradient(site)

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        empty: dict[str, Any] = {name: {} for name in ("_leaves", "_random", "_tasks")}
        return {**self.__dict__, **empty, "_sink": None, "enabled": False, "token": -1}


def _has_gradient(site: Site) -> bool:
    """Whether a site has gradients to add to; sharded parameters may keep theirs elsewhere."""
    return site.is_sharded() or any(p.grad is not None for p in site.held.values())


def _leaves(site: Site) -> list[_Leaf]:
    """Where the gradients of a site's parameters are accumulated; None for one that is frozen by now."""
    if site.is_sharded():
        return [(node, *next((p.dtype, p.device) for p in site.held.values())) for node in site.leaves()]
    return [(get_gradient_edge(p).node if p.requires_grad else None, p.dtype, p.device) for p in site.held.values()]


def detached(value: Any) -> Any:  # Any: modules take what they like
    """The same values without their graph, so that a hook never keeps a graph alive."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, value)
