"""The choices of a natural-gradient optimizer that are neither solver nor learning rate, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from heatbath.curvature import EmpiricalFisher, Fisher, Reduction, Sharing
from heatbath.layers import LayerRule, default_rules
from heatbath.optim.arguments import as_reduction, check_kind
from heatbath.optim.damping import Damping, LevenbergMarquardt
from heatbath.optim.options import SCALE_FREE, AdamW
from heatbath.optim.quadratic import QuadraticModel
from heatbath.optim.schedule import Interval, Timetable
from heatbath.optim.trust import KLClip, MatchedRMS, Trust


@dataclass(frozen=True)
class Policy:
    """When to look at curvature, how to average, damp and trust it, and which layers have it.

    Args:
        factor_every: steps between captures of the factors, in the long run.
        refresh_every: steps between preparations of the solver, in the long run.
        patience: steps spent at each length while both intervals grow from 1; 0: full length at once, which is unsafe. None: 40
            from 3 steps on for `MatchedRMS`, else 5.
        stagger: spread layers over the steps of both intervals, by the n³ of their factors, so that no step is much dearer than
            another; each layer still comes as often, and is refreshed one step after it captured. Fishers that observe outputs
            capture all layers at once, as that takes a pass through the network, and spread refreshes only. Stacks are cut to
            at most a share of the work each.
        decay: β of the moving averages, in [0, 1).
        trust: the step rule: how long a step is, and with it whether momentum is that of the gradients and damping relative;
            None: `MatchedRMS`, but `KLClip` for `preconditioned` and beside `quadratic` or `adapt`, which need the loss's unit.
        quadratic: takes learning rate and momentum from the exact quadratic model instead of trust; None: does not.
        damping_rule: how λ joins the curvature; None: relative for `MatchedRMS`; else exact for `Eigen`, on the inputs
            for `InputOnly`, factored Tikhonov for the rest.
        adapt: adapts λ from the loss after a step, `step(evaluate=…)`; None: λ stays as it is.
        fisher: which Fisher matrix the factors are made of.
        reduction: how the loss joins its terms, or its name ("rows"); None: a mean over all
            terms of observed outputs, over examples where nothing is observed.
        batch_dim: 1 for sequence-first models, whose inputs and outputs are `[T, B, …]`, and so those of their linear layers,
            embeddings and layer norms. Attention and recurrent layers say it by their own `batch_first`.
        sharing: by module name, how shared positions enter; expand where not named.
        rules: layer rules.
        skip: `skip(name, module)` is true for modules to leave to AdamW.
        fallback_lr: AdamW's learning rate for parameters without curvature; schedules scale it along with lr (see `KFAC`).
            None: lr for `MatchedRMS`, else 1e-3.
        corrected: correct eigenvalues (EKFAC); needs `Eigen`. Embeddings keep their Kronecker product.
        max_dim: the largest factor held in full. None: no limit. `Eigen` takes whole factors whatever this says.
        rank: of the low-rank form in which larger factors are held (`heatbath.operators.Sketched`); None, or where it is half a
            factor's size or more: they are cut into diagonal blocks of at most `max_dim`.
        l2: factor of ½‖θ‖² in the loss, added to gradients and to damping; unlike weight decay it is preconditioned. A default
            for groups.
        distributed: average factors over the processes of PyTorch's default group, where that is initialised. Solvers with
            noise then need generators that start alike in all processes.

    Raises:
        TypeError: a value of another kind, or a class in the place of its instance.
        ValueError: a number out of range, or an unknown reduction.
    """

    factor_every: int = 10
    refresh_every: int = 10
    patience: int | None = None
    stagger: bool = False
    decay: float = 0.95
    trust: MatchedRMS | Trust | None = None
    quadratic: QuadraticModel | None = None
    damping_rule: Damping | None = None
    adapt: LevenbergMarquardt | None = None
    fisher: Fisher = field(default_factory=EmpiricalFisher)
    reduction: Reduction | None = None
    batch_dim: int = 0
    sharing: Mapping[str, Sharing] = field(default_factory=dict)
    rules: Sequence[LayerRule] = field(default_factory=default_rules)
    skip: Callable[[str, nn.Module], bool] | None = None
    fallback_lr: float | None = None
    corrected: bool = False
    max_dim: int | None = 2048
    rank: int | None = 256
    l2: float = 0.0
    distributed: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "reduction", as_reduction(self.reduction))
        check_kind("fisher", self.fisher, Fisher, "a Fisher such as EmpiricalFisher()")
        for name, value, kind, instead in (
            ("trust", self.trust, None, "a step rule such as KLClip(kappa=0.01), or None"),
            ("quadratic", self.quadratic, QuadraticModel, "QuadraticModel(likelihood), or None"),
            ("damping_rule", self.damping_rule, None, "a rule such as FactoredDamping(), or None"),
            ("adapt", self.adapt, LevenbergMarquardt, "LevenbergMarquardt(), or None"),
        ):
            if value is not None:
                check_kind(name, value, kind, instead)
        self._interval(self.factor_every), self._interval(self.refresh_every)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")
        for name, number in (("fallback_lr", self.fallback_lr), ("l2", self.l2)):
            if number is not None and not number >= 0:
                raise ValueError(f"{name} must be at least 0, got {number}")
        if self.batch_dim not in (0, 1):
            raise ValueError(f"batch_dim must be 0, or 1 for sequence-first models, got {self.batch_dim}")
        if self.max_dim is not None and self.max_dim < 1:
            raise ValueError(f"max_dim must be at least 1, got {self.max_dim}; None sets no limit")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}; None cuts large factors into diagonal blocks")

        if isinstance(self.trust, MatchedRMS) and (self.quadratic is not None or self.adapt is not None):
            raise ValueError("the quadratic model and damping that adapts need the loss's unit: leave out trust=MatchedRMS()")

    def completed(self, rule: MatchedRMS | Trust) -> Policy:
        """The policy with a step rule: `rule` where it names none."""
        if self.trust is not None:
            return self
        return replace(self, trust=rule if self.quadratic is None and self.adapt is None else KLClip())

    @property
    def scale_free(self) -> bool:
        """Whether steps know no unit of the loss."""
        return isinstance(self.trust, MatchedRMS)

    @property
    def fallback(self) -> AdamW:
        """AdamW's options for parameters without curvature."""
        fallback = SCALE_FREE if self.scale_free else AdamW()
        return fallback if self.fallback_lr is None else replace(fallback, lr=self.fallback_lr)

    def _interval(self, every: int) -> Interval:
        """An interval that grows to `every`."""
        if self.patience is not None:
            return Interval(every, self.patience)
        return Interval(every, 40, first=3) if self.scale_free else Interval(every, 5)

    @property
    def factors(self) -> Interval:
        """When factors are captured."""
        return self._interval(self.factor_every)

    @property
    def refresh(self) -> Interval:
        """When the solver is prepared."""
        return self._interval(self.refresh_every)

    @property
    def parts(self) -> int:
        """How many shares a staggered refresh is divided into."""
        return min(self.factor_every, self.refresh_every) if self.stagger else 1

    def timetable(self, costs: Sequence[float]) -> Timetable:
        """When stacks whose refreshes cost so much capture and are refreshed."""
        together = self.fisher.observes
        return Timetable.of(costs, self.factors, self.refresh, stagger=self.stagger, together=together)
