"""Where a study makes its trials: one setting, one folder, names that say what a trial is.

Hyper-parameters are searched by compass search on held-out training data, with seed 0, or with several seeds: then a trial is
as good as its worst run, so that what is found is not the luck of one start. What was found is then run anew on all training
data, with seeds of which every optimizer has the same start and batches, and measured on the test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from heatbath.experiments.choice import Choice
from heatbath.experiments.compass import Compass, compass
from heatbath.experiments.optimizers import CURVED
from heatbath.experiments.records import Record
from heatbath.experiments.runner import Ending
from heatbath.experiments.trials import Recipe, Trial, Watch, run_trials, unwatched
from heatbath.experiments.tuned import Score, Tuned, score


@dataclass(frozen=True)
class Outcome:
    """What a study found for one optimizer.

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
class Setting:
    """What all trials of a study have in common.

    Args:
        recipe: returns the task.
        steps: of every trial and every run.
        batch_size: examples per step; None: the recipe's.
        eval_every: steps between two measurements; None: the recipe's.

    Raises:
        ValueError: steps below 1.
    """

    recipe: Recipe
    steps: int
    batch_size: int | None = None
    eval_every: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a study needs at least 1 step, got {self.steps}")


@dataclass(frozen=True)
class Bench:
    """Makes the trials that are missing.

    Args:
        setting: of all trials.
        folder: of the records.
        jobs: processes.
        watch: as in `run_trials`.
        prefix: of the names of trials, where one folder holds several settings.
        rank: what is searched for, lower is better.
        search_seeds: runs of each trial of a search, of which the worst counts.
        tuning: how a trial of the search ends.
        ending: how a run ends.
    """

    setting: Setting
    folder: Path
    jobs: int = 1
    watch: Watch = unwatched
    prefix: str = ""
    rank: Score = score
    search_seeds: Sequence[int] = (0,)
    tuning: Ending = field(default_factory=Ending)
    ending: Ending = field(default_factory=Ending)

    def tune(self, choice: Choice, axes: Sequence[str], *, at_least: int = 1, at_most: int = 40) -> Outcome:
        """Search the best of one optimizer.

        Args:
            choice: with its defaults, where the search starts.
            axes: hyper-parameters to search, of those that the choice has.
            at_least: trials to make.
            at_most: trials to stop at.
        """
        names = tuple(name for name in axes if getattr(choice.hyper, name) is not None)
        how = Compass(names, at_least=at_least, at_most=at_most)
        tried: list[Record] = []

        def measure(choices: Sequence[Choice]) -> list[Record]:
            trials = [self._search_trial(c, names, seed) for c in choices for seed in self.search_seeds]
            records = run_trials(trials, self.folder, jobs=self.jobs, watch=self.watch)
            tried.extend(records)
            width = len(self.search_seeds)
            return [max(records[i : i + width], key=self.rank) for i in range(0, len(records), width)]

        return Outcome(compass(choice, how, measure, rank=self.rank), names, tried)

    def runs(self, choices: Mapping[str, Choice], seeds: Sequence[int]) -> dict[str, list[Record]]:
        """Run choices on all training data.

        Args:
            choices: by the name of their runs.
            seeds: one run each.

        Returns:
            Records by name, in the order of the seeds.
        """
        plan = [self._run_trial(name, choice, seed) for seed in seeds for name, choice in choices.items()]
        records = {r.name: r for r in run_trials(plan, self.folder, jobs=self.jobs, watch=self.watch)}
        return {name: [records[self._run_name(name, seed)] for seed in seeds] for name in choices}

    def _search_trial(self, choice: Choice, names: Sequence[str], seed: int) -> Trial:
        values = "-".join(f"{name}{getattr(choice.hyper, name):g}" for name in names)
        setting = self.setting
        return Trial(
            f"{self.prefix}tune-{choice.label}-{values}" + (f"-seed{seed}" if len(self.search_seeds) > 1 else ""),
            setting.recipe,
            choice,
            steps=setting.steps,
            seed=seed,
            held_out=True,
            batch_size=setting.batch_size,
            eval_every=setting.eval_every if self.tuning.target else setting.steps,
            ending=self.tuning,
        )

    def _run_name(self, name: str, seed: int) -> str:
        return f"{self.prefix}run-{name}-seed{seed}"

    def _run_trial(self, name: str, choice: Choice, seed: int) -> Trial:
        setting = self.setting
        return Trial(
            self._run_name(name, seed),
            setting.recipe,
            choice,
            steps=setting.steps,
            seed=seed,
            batch_size=setting.batch_size,
            eval_every=setting.eval_every,
            ending=self.ending,
        )
