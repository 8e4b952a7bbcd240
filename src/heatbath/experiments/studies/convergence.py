"""How many steps, and how much time, each optimizer needs on one task.

Digital K-FAC is tuned first, by compass search over learning rate, damping and clip on held-out training data. AdamW is tuned
over learning rate, β₁ and β₂ in the same way, and so are further baselines over what they have; each gets at least as many
trials. Thermodynamic K-FAC, by either method and at each number of bits, takes over digital K-FAC's damping and clip, and
searches its own learning rate on the same lattice: it has fewer trials than AdamW, never more. With the quadratic model
the first damping alone is searched. Then the best of each is trained anew on all training data, from a few seeds with which
every optimizer shares start and batches, and measured on the test split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from heatbath.experiments.optimizers import THERMODYNAMIC, choose, known
from heatbath.experiments.studies.bench import Bench, Outcome, Setting
from heatbath.experiments.trials import Recipe, Watch, unwatched

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
    "kfac-quadratic": ("damping",),
}
THERMODYNAMIC_AXES = ("lr",)
CONTENDERS = {  # what is searched for digital K-FAC, and for it on machines
    "kfac": (DIGITAL_AXES, THERMODYNAMIC_AXES),
    "kfac-quadratic": (("damping",), ("damping",)),
}


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
        contender: the K-FAC of the study, digital and on machines, a key of `CONTENDERS`.

    Raises:
        ValueError: steps, seeds or trials below 1, an unknown baseline or contender, or one that is both.
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
    contender: str = "kfac"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seeds < 1 or self.trials < 1:
            raise ValueError(
                f"the study needs at least 1 step, 1 seed and 1 trial, got {self.steps}, {self.seeds} and {self.trials}"
            )
        for name in self.others:
            known(name, OTHER_AXES, "further baseline")
        if known(self.contender, CONTENDERS, "contender") in self.others:
            raise ValueError(f"{self.contender} is the contender, so it cannot be a baseline: leave it out of the baselines")

    def run(self, folder: Path, *, jobs: int = 1, watch: Watch = unwatched) -> list[Outcome]:
        """Make the trials that are missing.

        Args:
            folder: of the records.
            jobs: processes.
            watch: as in `run_trials`.

        Returns:
            AdamW first, then the further baselines, digital K-FAC, and the thermodynamic ones.
        """
        task = self.recipe()
        bench = Bench(Setting(self.recipe, self.steps, self.batch_size, self.eval_every), folder, jobs, watch)
        others = [(choose(task, name), OTHER_AXES[name]) for name in self.others]  # a missing package is said before any trial
        axes, analog_axes = CONTENDERS[self.contender]
        digital = bench.tune(choose(task, self.contender), axes, at_most=self.trials)
        baselines = [(choose(task, BASELINE), BASELINE_AXES), *others]
        found = [bench.tune(c, axes, at_least=digital.tuned.trials, at_most=self.trials) for c, axes in baselines]
        found.append(digital)
        for bits in self.bits:
            for solver in THERMODYNAMIC:
                choice = choose(task, self.contender, solver=solver, machine=self.machine, bits=bits)
                choice = replace(choice, hyper=digital.tuned.choice.hyper)
                found.append(bench.tune(choice, analog_axes, at_most=self.trials))
        runs = bench.runs({one.tuned.choice.label: one.tuned.choice for one in found}, range(1, self.seeds + 1))
        return [replace(one, runs=runs[one.tuned.choice.label]) for one in found]
