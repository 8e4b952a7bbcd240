"""The one step of natural-gradient methods that treat all parameters jointly, by the Gauss–Newton matrix of the whole network.

    observe outputs → S with SᵀS = G → damp → prepare a solver → solve (G + λI) v = g → trust → momentum or Adam → update

g is the gradient of the mean loss that `backward` left in `.grad`; G is of this batch alone (`heatbath.curvature.jacobian`),
so nothing is averaged and nothing grows old. The layerwise methods (`heatbath.optim.natural`) approximate G block by block.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from heatbath.curvature import Fisher, InputCapture, InputOnly, JacobianRoot, Passage, Reduction, Sighting, is_parallel, sight
from heatbath.operators import Gram, from_plain, scalar, to_plain
from heatbath.optim.base import CurvatureOptimizer
from heatbath.optim.coverage import Coverage, Covered
from heatbath.optim.damping import LevenbergMarquardt
from heatbath.optim.joint_policy import JointPolicy, check_repeats
from heatbath.optim.monitor import StepMonitor
from heatbath.optim.options import AdamW, check_generator, complete_group, own_parameters
from heatbath.optim.scaling import LossScale
from heatbath.optim.tally import Tally
from heatbath.optim.updates import adam_step, apply_momentum, apply_update
from heatbath.solvers import Full, SmallSide, Solution, Solver, usable


class JointNaturalGradient(CurvatureOptimizer):
    """Natural gradient with the Gauss–Newton matrix of all trainable parameters together.

    Use a constructor, `NGD` or `TNGD`; this class is what they share. One line is added to an ordinary loop:
    `outputs = opt.observe(model(x))`. The optimizer keeps the inputs of that call (by a hook on the model), because it runs
    the model again, as a function of its parameters.

    Args:
        model: the model; the same inputs must give the same outputs when it is run again (no Dropout in training mode).
        groups: complete parameter groups; λ is the first one's.
        defaults: their options.
        fisher: `ExactFisher`, `SampledFisher` or `EmpiricalFisher`.
        solver: for `Gram` operators.
        policy: the rest.
        adam: pass the natural gradient to Adam's rule instead of heavy-ball momentum.
        generator: randomness of sampled Fishers and noisy solvers; its state is checkpointed.

    Raises:
        TypeError: a Fisher that has no vectors at the outputs.
        ValueError: groups with different damping or l2.
    """

    KEY = "joint"
    OWN = (
        "model",
        "fisher",
        "solver",
        "policy",
        "adam",
        "generator",
        "steps",
        "_tally",
        "_memory",
        "capture",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        groups: Iterable[dict[str, Any]],
        defaults: dict[str, Any],  # Any: torch's own type
        fisher: Fisher,
        solver: Solver[Any],  # Any: any state
        policy: JointPolicy,
        adam: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(fisher, Fisher) or isinstance(fisher, InputOnly):
            raise TypeError(f"fisher must be ExactFisher, SampledFisher or EmpiricalFisher, got {type(fisher).__name__}")
        check_generator(generator, model)
        self.model = model
        super().__init__(list(groups), defaults)
        self.fisher, self.solver, self.policy = fisher, solver, policy
        self.adam, self.generator = adam, generator
        self.steps = 0
        self._tally = Tally()
        self._monitor = StepMonitor()
        self._matrix: Gram | None = None  # the damped curvature of this step
        self._divisor = torch.ones(())
        self._memory: Any = None  # Any: state of the solver, where it remembers
        self._seen: list[Sighting] = []
        self.capture = InputCapture(model)
        weakref.finalize(self, InputCapture.detach, self.capture).atexit = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # Any: torch's own type
        """Add parameters of the model; options left out are the defaults, λ and l2 those of the other groups.

        Raises:
            ValueError: an option out of range, another λ or l2, or a parameter that is not the
                model's.
        """
        param_group = {**param_group, "params": own_parameters(self.model, param_group)}
        group = complete_group(param_group, self.defaults, AdamW(0.0))
        if self.param_groups:
            for name in ("damping", "l2"):
                common = self.param_groups[0][name]
                if float(param_group.get(name, common)) != float(common):
                    raise ValueError(
                        "all parameters are solved for together, so groups cannot have their own "
                        f"{name}: got {param_group[name]}, the others have {common}"
                    )
                group[name] = common
        super().add_param_group(group)

    @_disable_dynamo  # as torch.compiler.disable, but imports Dynamo when first called
    def observe(self, outputs: Tensor, targets: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Tell the optimizer what the loss is computed from: the line between forward and loss, once for each forward pass.

        Args:
            outputs: of the model's last call, `[B, …]`.
            targets: the loss's targets, for likelihoods whose weights depend on them.
            mask: true where the loss counts, one entry for each term.

        Returns:
            The outputs.

        Raises:
            TypeError: outputs are no floating-point tensor.
            ValueError: the model was not called before, or shapes do not fit the likelihood.
        """
        if torch.is_grad_enabled():
            call = self.capture.take()
            if call is None:
                raise ValueError("observe found no call of the model since the last one: write opt.observe(model(x))")
            told = (targets, mask, self.policy.reduction)
            self._seen.append(sight(call, outputs, fisher=self.fisher, told=told, generator=self.generator))
        return outputs

    @property
    def adaptation(self) -> LevenbergMarquardt | None:
        """The policy's."""
        return self.policy.adapt

    def bring_up_to_date(self, scale: LossScale) -> bool:
        """Bring the curvature of the batch up to date; false where there is nothing to do.

        Args:
            scale: what a GradScaler did to the gradients.

        Raises:
            ValueError: nothing was observed, or outputs differ when the model is run again.
        """
        if not self._ready():
            return False
        terms = self._terms()
        self._divisor = terms if self.policy.reduction is Reduction.SUM else torch.ones_like(terms)
        self._matrix = self._curvature(terms, scale.captured)
        return True

    def finish_step(self) -> None:
        """Count a step, and forget what belongs to it."""
        self.steps += 1
        self._seen, self._matrix = [], None

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _parameters(self) -> list[Tensor]:
        """All that are trained, group by group."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _ready(self) -> bool:
        """Whether there is something to do."""
        if all(p.grad is None for p in self._parameters()):
            warnings.warn("step() found no gradients and changed nothing: call loss.backward() before step()", stacklevel=4)
            return False
        if self._seen:
            if is_parallel():
                raise ValueError("NGD and TNGD work in one process: G is of one batch, and would differ between processes")
            if any(each.observation is None and each.gradient is None for each in self._seen):
                raise ValueError("no gradient came to the observed outputs: compute the loss from what observe returns")
            return True
        if any(group["lr"] != 0 for group in self.param_groups):
            raise ValueError("step() has seen no outputs since the last one: write loss = loss_fn(opt.observe(model(x)), y)")
        if not self.state:  # torch.distributed.checkpoint rehearses with lr 0, to have something to load into
            zeros = [torch.zeros_like(p) for p in self._parameters()]
            self._move(zeros, torch.zeros((), dtype=torch.bool, device=zeros[0].device))
            for p in self._parameters():
                self.state[p]  # a defaultdict
        return False

    def _count(self) -> Tensor:
        """What gradients are divided by to be those of a mean over terms, 0-d."""
        return self._divisor

    def _apply(self, *, predict: bool = False) -> Tensor:
        """Solve, and move all parameters; returns the predicted reduction of the loss, 0-d, if asked to, else 0."""
        assert self._matrix is not None
        gradient = self._gradient(self._divisor)
        natural, finite = self._solve(self._matrix, gradient)
        scale = self._trust(natural, gradient)
        self._tally.add_step(scale, finite)
        old = _flat(self._parameters()) if predict else gradient
        self._move(self._split(natural * scale), finite)
        self._monitor.add(scale, finite, self._parameters())
        if not predict:
            return torch.zeros_like(scale)
        moved = old - _flat(self._parameters())
        return gradient @ moved - 0.5 * (moved @ (self._matrix @ moved))

    def _terms(self) -> Tensor:
        """D of what was observed, 0-d."""
        like = _flat([self._seen[0].outputs])
        return torch.stack([scalar(each.terms, like) for each in self._seen]).sum()

    def _curvature(self, terms: Tensor, scale: Tensor | None) -> Gram:
        """G + λI of what was observed, with the curvature of an L2 penalty.

        Args:
            terms: D, 0-d.
            scale: what a GradScaler multiplied gradients at the outputs by, 0-d.
        """
        names = {id(p): name for name, p in self.model.named_parameters()}
        parameters = {names[id(p)]: p for p in self._parameters()}
        for each in self._seen:
            if scale is not None and each.gradient is not None:
                each.gradient = each.gradient / scale
        passes = [Passage(each, terms) for each in self._seen]
        root = JacobianRoot(self.model, parameters, passes, terms, self.capture, self.policy.output)
        if self.steps == 0:
            check_repeats(root)
        first = self.param_groups[0]
        return Gram(root, scalar(first["damping"] + first["l2"], terms))

    def _gradient(self, count: Tensor) -> Tensor:
        """The gradient of the mean loss and its L2 penalty, `[n]`; zero where a parameter has none.

        Args:
            count: what a summed loss is divided by, 0-d.

        Raises:
            ValueError: a sparse one.
        """
        if any(p.grad is not None and p.grad.layout is not torch.strided for p in self._parameters()):
            raise ValueError("NGD and TNGD take no sparse gradients: build embeddings with sparse=False")
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters()]
        flat, l2 = _flat(parts) / count, self.param_groups[0]["l2"]
        return flat + l2 * _flat(self._parameters()) if l2 else flat

    def _solve(self, curvature: Gram, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The natural gradient, and whether it may be used; 0 where not."""
        state, work = self.solver.prepare(curvature, previous=self._memory, generator=self.generator)
        self._tally.add_prepared(work, self.solver.outcome(state))
        self._tally.refreshes += 1
        solution: Solution = self.solver.solve(state, gradient, generator=self.generator)
        self._tally.add_solve(solution)
        finite = torch.isfinite(solution.value @ gradient) & usable(solution.outcome)
        if isinstance(self.solver, Full | SmallSide):  # states of others hold the model, and belong to this batch
            self._memory = solution.state
        return torch.where(finite, solution.value, 0.0).to(gradient), finite

    def _trust(self, natural: Tensor, gradient: Tensor) -> Tensor:
        """The scale of v, 0-d."""
        if self.adam:
            return torch.ones_like(natural[0])
        reach = torch.cat(
            [
                scalar(group["lr"] / (1 - group["momentum"]), natural).expand(p.numel())
                for group in self.param_groups
                for p in group["params"]
                if p.requires_grad
            ]
        )
        step = reach * natural
        return self.policy.trust(step @ (reach * gradient), step.norm)

    def _move(self, natural: list[Tensor], finite: Tensor) -> None:
        """Momentum or Adam, then the update, of every parameter that has a gradient; nothing where not finite."""
        values = iter(natural)
        for group in self.param_groups:
            pairs = [(p, next(values)) for p in group["params"] if p.requires_grad]
            pairs = [(p, v.to(p.dtype)) for p, v in pairs if p.grad is not None]
            if not pairs:
                continue
            parameters, directions = [p for p, _ in pairs], [v for _, v in pairs]
            if self.adam:
                adam_step(parameters, directions, self.state, group, finite, lr=group["lr"])
            else:
                own = dict(zip(parameters, directions, strict=True))
                apply_update(apply_momentum(own, self.state, group["momentum"], finite), group, finite)

    def _split(self, flat: Tensor) -> list[Tensor]:
        """A vector as views shaped like the parameters."""
        parameters = self._parameters()
        pieces = flat.split([p.numel() for p in parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]

    # --- what it did, and its state ----------------------------------------------------------------------------------

    def coverage(self) -> Coverage:
        """Which parameter is treated how."""
        kinds = {id(p): type(m).__name__ for m in self.model.modules() for p in m.parameters(recurse=False)}
        rows = tuple(
            Covered(name, kinds[id(p)], "ngd" if p.requires_grad else "frozen", p.numel())
            for name, p in self.model.named_parameters()
        )
        held = sum(t.numel() * t.element_size() for s in self.state.values() for t in s.values() if isinstance(t, Tensor))
        return Coverage(rows, {"state": held})

    def _save(self) -> dict[str, Any]:  # Any: plain Python and tensors
        generator = None if self.generator is None else self.generator.get_state()
        return {"past": self._past(), "memory": to_plain(self._memory), "generator": generator}

    def _check(self, own: dict[str, Any]) -> None:  # Any: plain Python and tensors
        """Whatever has the same solver fits."""

    def _restore(self, own: dict[str, Any]) -> None:  # Any: plain Python and tensors
        self._load_common(own)
        self._memory, self._seen = from_plain(own["memory"]), []

    def __setstate__(self, state: dict[str, Any]) -> None:  # Any: attributes
        super().__setstate__(state)
        if "capture" in state:  # a copy, whose model has the copied hook; torch's load_state_dict comes by here too
            self._seen, self._matrix, self._monitor = [], None, StepMonitor()
            weakref.finalize(self, InputCapture.detach, self.capture).atexit = False


def _flat(parts: list[Tensor]) -> Tensor:
    """One vector `[n]`, at least float32."""
    flat = torch.cat([part.flatten() for part in parts])
    return flat if flat.dtype == torch.float64 else flat.float()
