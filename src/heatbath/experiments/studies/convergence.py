"""How many steps, and how much time, each optimizer needs on one task.

Digital K-FAC is tuned first, by compass search over learning rate, damping and clip on held-out training data. AdamW is tuned
over learning rate, β₁ and β₂ in the same way, and so are further baselines over what they have; each gets at least as many
trials. Thermodynamic K-FAC, by either method and at
each number of bits, takes over digital K-FAC's damping and clip, and searches its own learning rate on the same lattice: it has
fewer trials than AdamW, never more. Then the best of each is trained anew on all training data, from a few seeds with which
every optimizer shares start and batches, and measured on the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heatbath.experiments.compass import Compass, compass
from heatbath.experiments.optimizers import CURVED, THERMODYNAMIC, Choice, choose, known
from heatbath.experiments.records import Record
from heatbath.experiments.trials import Recipe, Trial, run_trials
from heatbath.experiments.tuned import Tuned

DIGITAL_AXES = ("lr", "damping", "kl_clip")
BASELINE = "adamw"
BASELINE_AXES = ("lr", "momentum", "square_decay")
OTHER_AXES = {  # what is searched for further baselines
    "sgd": ("lr", "momentum"),
    "adam": BASELINE_AXES,
    "nadamw": BASELINE_AXES,
    "muon": ("lr", "momentum"),
    "soap": BASELINE_AXES,
    "singd": ("lr", "damping", "momentum"),
}
THERMODYNAMIC_AXES = ("lr",)

Watch = Callable[[Trial, Record, bool], None]


@dataclass(frozen=True)
class Outcome:
    """What the study found for one optimizer.

    Args:
        tuned: the best hyper-parameters and what they cost to find.
        searched: names of the hyper-parameters that were searched.
        tuning: records of all its trials on held-out data.
        runs: records of the runs with the best, one per seed, measured on the test split.
    """

    tuned: Tuned
    searched: tuple[str, ...]
    tuning: Sequence[Record]
    runs: Sequence[Record] = ()

    @property
    def title(self) -> str:
        """The optimizer, for people."""
        return self.tuned.choice.title

    @property
    def curved(self) -> bool:
        """Whether it is K-FAC, by whichever solver."""
        return self.tuned.choice.optimizer in CURVED

    @property
    def analog(self) -> bool:
        """Whether a machine solves for it."""
        return self.tuned.choice.machine is not None


@dataclass(frozen=True)
class Convergence:
    """The study's setting.

    Args:
        recipe: returns the task.
        steps: of every trial and every run.
        seeds: runs of the best of each optimizer, seeds 1, 2, …; tuning has seed 0.
        bits: precisions of the machine.
        machine: a preset or file.
        batch_size: examples per step; None: the recipe's.
        eval_every: steps between two measurements on the test split; None: the recipe's.
        others: baselines besides AdamW, keys of `OTHER_AXES`.
        trials: at most, of each optimizer.

    Raises:
        ValueError: steps, seeds or trials below 1, or an unknown baseline.
    """

    recipe: Recipe
    steps: int
    seeds: int = 3
    bits: tuple[int, ...] = (8, 12)
    machine: str | None = None
    batch_size: int | None = None
    eval_every: int | None = None
    others: tuple[str, ...] = ()
    trials: int = 40

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seeds < 1 or self.trials < 1:
            raise ValueError(
                f"the study needs at least 1 step, 1 seed and 1 trial, got {self.steps}, {self.seeds} and {self.trials}"
            )
        for name in self.others:
            known(name, OTHER_AXES, "further baseline")

    def run(self, folder: Path, *, jobs: int = 1, watch: Watch = lambda trial, record, fresh: None) -> list[Outcome]:
        """Make the trials that are missing.

        Args:
            folder: of the records.
            jobs: processes.
            watch: as in `run_trials`.

        Returns:
            AdamW first, then the further baselines, digital K-FAC, and the thermodynamic ones.
        """
        task = self.recipe()
        tune = _Tuner(self, folder, jobs, watch)
        others = [(choose(task, name), OTHER_AXES[name]) for name in self.others]  # a missing package is said before any trial
        digital = tune(choose(task, "kfac"), DIGITAL_AXES)
        baselines = [(choose(task, BASELINE), BASELINE_AXES), *others]
        found = [tune(choice, axes, at_least=digital.tuned.trials) for choice, axes in baselines]
        found.append(digital)
        for bits in self.bits:
            for solver in THERMODYNAMIC:
                choice = choose(task, "kfac", solver=solver, machine=self.machine, bits=bits)
                choice = replace(choice, hyper=digital.tuned.choice.hyper)
                found.append(tune(choice, THERMODYNAMIC_AXES))
        plans = [[self._final(one.tuned.choice, seed) for seed in range(1, self.seeds + 1)] for one in found]
        by_seed = [trial for same_seed in zip(*plans, strict=True) for trial in same_seed]
        records = {record.name: record for record in run_trials(by_seed, folder, jobs=jobs, watch=watch)}
        return [replace(one, runs=[records[t.name] for t in plan]) for one, plan in zip(found, plans, strict=True)]

    def _final(self, choice: Choice, seed: int) -> Trial:
        return Trial(
            f"run-{choice.label}-seed{seed}",
            self.recipe,
            choice,
            steps=self.steps,
            seed=seed,
            batch_size=self.batch_size,
            eval_every=self.eval_every,
        )


@dataclass(frozen=True)
class _Tuner:
    """Compass search whose trials are records in a folder."""

    study: Convergence
    folder: Path
    jobs: int
    watch: Watch

    def __call__(self, choice: Choice, axes: tuple[str, ...], *, at_least: int = 1) -> Outcome:
        """The best of one optimizer; of the axes, those that it has a default for are searched."""
        names = tuple(name for name in axes if getattr(choice.hyper, name) is not None)
        how = Compass(names, at_least=at_least, at_most=self.study.trials)
        tried: list[Record] = []

        def measure(choices: Sequence[Choice]) -> list[Record]:
            trials = [self._trial(c, how) for c in choices]
            records = run_trials(trials, self.folder, jobs=self.jobs, watch=self.watch)
            tried.extend(records)
            return records

        return Outcome(compass(choice, how, measure), how.names, tried)

    def _trial(self, choice: Choice, how: Compass) -> Trial:
        values = "-".join(f"{name}{getattr(choice.hyper, name):g}" for name in how.names)
        return Trial(
            f"tune-{choice.label}-{values}",
            self.study.recipe,
            choice,
            steps=self.study.steps,
            held_out=True,
            batch_size=self.study.batch_size,
            eval_every=self.study.steps,
        )
