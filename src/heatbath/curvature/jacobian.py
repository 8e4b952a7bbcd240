"""The Jacobian of a whole model's outputs, as products and as rows.

For outputs z = f(θ) of a batch, J = ∂z/∂θ, the Gauss–Newton matrix of a loss that is a mean over D terms is

    G = (1/D) Jᵀ H J = SᵀS,    S = RᵀJ/√D,    H = R Rᵀ,

with H the Hessian of the terms at the outputs, block by example (`heatbath.curvature.likelihoods`). `torch.func` runs the
model as a function of its parameters: J x by forward mode (jvp), Jᵀu by reverse mode (vjp), so that G x costs about two
forward passes and a backward one and holds nothing. Rows of S are Jᵀr for the columns r of R, one vjp for each example and
column, batched by vmap over examples in chunks.

The columns r come from a `Fisher`: all columns of the exact root, gradients at sampled targets, or the gradients of the loss
itself (the empirical Fisher; Kunstner, Balles & Hennig 2019, arXiv 1905.12558, on what that is worth).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from heatbath.curvature.fisher import ExactFisher, Fisher
from heatbath.curvature.lending import restored
from heatbath.curvature.likelihoods import Observation
from heatbath.curvature.reduction import Reduction
from heatbath.operators import Root
from heatbath.work import Work, elementwise

CHUNK = 2**24  # numbers of S that are made at once: 64 MiB in float32

Output = Callable[[Any], Tensor]  # Any: whatever a model returns


class InputCapture:
    """Keeps the inputs of the last call of a model that gradients are wanted of. A plain object: see `Capture` for why.

    Args:
        model: gets one forward pre-hook.
    """

    def __init__(self, model: nn.Module) -> None:
        self.enabled = True
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # Any: a model's inputs
        self._handle = model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # Any: a model's inputs
        if self.enabled and torch.is_grad_enabled():
            self.call = args, kwargs

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:  # Any: a model's inputs
        """The inputs, once."""
        call, self.call = self.call, None
        return call

    def detach(self) -> None:
        """Remove the hook."""
        self._handle.remove()


@dataclass(eq=False)
class Sighting:
    """What was seen of one forward pass.

    Args:
        call: the model's inputs, by position and by name; tensors lead with the batch.
        outputs: z `[B, …]`, detached.
        observation: what the likelihood says about them; None for the empirical Fisher.
        columns: r of a sampled root, `[k, *z]`; None where they follow from the observation or the gradient.
        gradient: of the loss at z, once it came; kept for the empirical Fisher only.
    """

    call: tuple[tuple[Any, ...], Mapping[str, Any]]  # Any: a model's inputs
    outputs: Tensor
    observation: Observation | None = None
    columns: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def terms(self) -> Tensor | float:
        """D of this pass."""
        return float(self.outputs.shape[0]) if self.observation is None else self.observation.terms


def sight(
    call: tuple[tuple[Any, ...], Mapping[str, Any]],  # Any: a model's inputs
    outputs: Tensor,
    *,
    fisher: Fisher,
    told: tuple[Tensor | None, Tensor | None, Reduction | None] = (None, None, None),
    generator: torch.Generator | None = None,
) -> Sighting:
    """See the outputs of one forward pass as a Fisher does.

    Args:
        call: the model's inputs.
        outputs: z with its graph.
        fisher: which root.
        told: targets, mask and reduction, as `Likelihood.observe` takes them.
        generator: of sampled Fishers.

    Raises:
        TypeError, ValueError: as `Likelihood.observe`.
    """
    if fisher.likelihood is None or not fisher.observes:
        if not isinstance(outputs, Tensor) or not outputs.requires_grad:
            raise TypeError(f"observe takes the tensor the loss is computed from, with its graph, got {type(outputs).__name__}")
        seen = Sighting(call, outputs.detach())
        outputs.register_hook(functools.partial(_note, seen))
        return seen
    observation = fisher.likelihood.observe(outputs, *told)
    seen = Sighting(call, outputs.detach(), observation)
    if not isinstance(fisher, ExactFisher):
        seen.columns = torch.stack(list(fisher.vectors(observation, generator)))
    return seen


def _note(seen: Sighting, gradient: Tensor) -> None:
    seen.gradient = gradient.detach()


@dataclass(frozen=True, eq=False)
class Passage:
    """One forward pass and the root R of its outputs' Hessian.

    Args:
        seen: the pass.
        terms: D of all passes together, 0-d.
    """

    seen: Sighting
    terms: Tensor

    @property
    def width(self) -> int:
        """k, columns of R for each example."""
        if self.seen.columns is not None:
            return self.seen.columns.shape[0]
        return 1 if self.seen.observation is None else self.seen.observation.rows[0].numel()

    @cached_property
    def vectors(self) -> Tensor:
        """The columns r, `[k, *z]`, with Σ r rᵀ = H by example."""
        seen = self.seen
        if seen.columns is not None:
            return seen.columns
        if seen.observation is not None:
            return torch.stack(list(ExactFisher(seen.observation.likelihood).vectors(seen.observation, None)))
        assert seen.gradient is not None
        return (seen.gradient * self.terms.to(seen.gradient)).unsqueeze(0)

    def bend(self, tangent: Tensor) -> Tensor:
        """H u for u shaped like the outputs."""
        if self.seen.columns is None and self.seen.observation is not None:
            seen = self.seen.observation
            return seen.as_outputs(seen.hessian(seen.as_rows(tangent))).to(tangent.dtype)
        flat, u = self.vectors.to(tangent.dtype).flatten(2), tangent.flatten(1)
        return torch.einsum("kbi,kb->bi", flat, torch.einsum("kbi,bi->kb", flat, u)).reshape(tangent.shape)


@dataclass(frozen=True, eq=False)
class JacobianRoot(Root):
    """S = RᵀJ/√D of a model at its present parameters.

    Args:
        model: the model.
        parameters: by name, those that J is taken in; all others are constants.
        passes: forward passes since the last step.
        terms: D of all of them, 0-d.
        capture: is deaf while the model runs here.
        output: from what the model returns to the tensor that was observed.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    passes: Sequence[Passage]
    terms: Tensor
    capture: InputCapture
    output: Output = field(default=lambda outputs: outputs)

    @property
    def shape(self) -> tuple[int, int]:
        rows = sum(p.width * p.seen.outputs.shape[0] for p in self.passes)
        return rows, sum(p.numel() for p in self.parameters.values())

    @property
    def stack(self) -> torch.Size:
        return torch.Size(())

    def work(self, vectors: int) -> Work:
        return Work.of(elementwise(vectors * sum(p.seen.outputs.numel() for p in self.passes), 4))

    def bend(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        bent = [self._bend(row) for row in rows]
        return torch.stack(bent).reshape(x.shape)

    def rows(self) -> Iterator[Tensor]:
        self._check_examples()
        for each in self.passes:
            vectors = each.vectors / self.terms.to(each.vectors).sqrt()
            k, count = vectors.shape[:2]
            step = max(1, CHUNK // max(k * self.shape[1], 1))
            for begin in range(0, count, step):
                yield self._rows(each, vectors[:, begin : begin + step], slice(begin, begin + step))

    def outputs(self) -> list[Tensor]:
        """The outputs as the model gives them when it is run again."""
        return [values for values, _ in self._pullbacks]

    # --- inside -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _point(self) -> dict[str, Tensor]:
        """Parameters without their history."""
        return {name: p.detach() for name, p in self.parameters.items()}

    @cached_property
    def _pullbacks(self) -> list[tuple[Tensor, Any]]:  # Any: torch's own, a function from u to a tuple
        """Outputs and u ↦ Jᵀu of each pass."""
        found = []
        for each in self.passes:
            values, pull, *_ = vjp(lambda point, each=each: self._run(point, *each.seen.call), self._point)
            found.append((values, pull))
        return found

    def _run(self, point: dict[str, Tensor], args: Any, kwargs: Any) -> Tensor:  # Any: a model's inputs
        """The observed outputs as a function of parameters.

        Buffers are copied, so that nobody's averages move; attention and recurrent layers take their plain form, for fused
        ones know neither forward mode nor vmap.
        """
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        listening, self.capture.enabled = self.capture.enabled, False
        try:
            with sdpa_kernel(SDPBackend.MATH), _plain_lstm(self.model), restored(self.model):
                return self.output(functional_call(self.model, {**buffers, **point}, tuple(args), dict(kwargs)))
        finally:
            self.capture.enabled = listening

    def _bend(self, x: Tensor) -> Tensor:
        """G x of one vector `[n]`."""
        tangent, total = self._split(x), torch.zeros_like(x)
        for each, (_, pull) in zip(self.passes, self._pullbacks, strict=True):
            pushed = jvp(lambda point, each=each: self._run(point, *each.seen.call), (self._point,), (tangent,))[1]
            total = total + self._join(pull(each.bend(pushed))[0]).to(x.dtype)
        return total / self.terms.to(x)

    def _rows(self, each: Passage, vectors: Tensor, part: slice) -> Tensor:
        """Rows Jᵀr of some examples, `[k·c, n]`."""
        count = each.seen.outputs.shape[0]
        given, named = each.seen.call
        args, kwargs = [_part(a, part, count) for a in given], {k: _part(v, part, count) for k, v in named.items()}
        batched = [_batched(a, count) for a in given], {k: _batched(v, count) for k, v in named.items()}

        def example(own: Tensor, args: list[Any], kwargs: dict[str, Any]) -> Tensor:  # Any: a model's inputs
            single = [a.unsqueeze(0) if b is not None else a for a, b in zip(args, batched[0], strict=True)]
            by_name = {k: v.unsqueeze(0) if batched[1][k] is not None else v for k, v in kwargs.items()}
            pull = vjp(lambda point: self._run(point, single, by_name).squeeze(0), self._point)[1]
            return self._join(vmap(pull)(own)[0], lead=1)

        found: Tensor = vmap(example, in_dims=(1, *batched))(vectors.to(each.seen.outputs.dtype), args, kwargs)
        return found.flatten(0, 1)

    def _join(self, parts: Mapping[str, Tensor], lead: int = 0) -> Tensor:
        """One vector of all parameters, at least float32."""
        flat = [parts[name].flatten(lead) for name in self.parameters]
        return torch.cat([f if f.dtype == torch.float64 else f.float() for f in flat], -1)

    def _split(self, x: Tensor) -> dict[str, Tensor]:
        """The inverse."""
        pieces = x.split([p.numel() for p in self.parameters.values()])
        named = zip(self.parameters.items(), pieces, strict=True)
        return {name: piece.reshape(p.shape).to(p.dtype) for (name, p), piece in named}

    def _check_examples(self) -> None:
        """Refuse layers that mix the examples of a batch, or that vmap cannot take apart by example.

        Raises:
            ValueError: a BatchNorm that uses the statistics of the batch, one of PyTorch's recurrent layers, PReLU or RReLU.
        """
        for name, module in self.model.named_modules():
            if isinstance(module, nn.RNNBase | nn.PReLU | nn.RReLU):
                raise ValueError(
                    f"{name or 'model'} is a {type(module).__name__}, which torch.func cannot take apart by example: use "
                    "solver=ConjugateGradient(), KFAC, or a layer written out in plain operations"
                )
            if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
                raise ValueError(
                    f"{name or 'model'} is a {type(module).__name__} in training mode, which mixes the examples of a batch: "
                    "there is no Jacobian of each: put it into eval mode, use GroupNorm or LayerNorm, or "
                    "solver=ConjugateGradient()"
                )


@contextmanager
def _plain_lstm(model: nn.Module) -> Iterator[None]:
    """LSTMs on the CPU without oneDNN, whose fused kernel knows no forward mode."""
    backend: Any = torch.backends.mkldnn  # Any: torch types its flags as descriptors
    before = backend.enabled
    backend.enabled = before and not any(isinstance(module, nn.LSTM) for module in model.modules())
    try:
        yield
    finally:
        backend.enabled = before


def _batched(value: Any, count: int) -> int | None:  # Any: a model's input
    """The batch dimension of an input, for vmap."""
    return 0 if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count else None


def _part(value: Any, part: slice, count: int) -> Any:  # Any: a model's input
    """Some examples of an input."""
    return value[part] if _batched(value, count) is not None else value
