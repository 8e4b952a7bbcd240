"""One run in memory: everything that a step changes and a checkpoint must hold.

From one seed come the start of the network (torch's global generator, which dropout goes on to use), the order of the
examples, and the randomness of the optimizer, so runs with different optimizers and one seed share start and batches.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from heatbath.costs.count import model_work
from heatbath.experiments.checkpoint import random_state, set_random_state
from heatbath.experiments.choice import Choice
from heatbath.experiments.counting import Occasions, total_work
from heatbath.experiments.data import Dataset
from heatbath.experiments.experiment import Experiment
from heatbath.experiments.optimizers import build
from heatbath.optim import NaturalGradient, anisotropy
from heatbath.optim.joint import JointNaturalGradient
from heatbath.prediction import pass_work
from heatbath.work import Work

EVALUATION_BATCH = 1000


class BatchOrder:
    """Endless epochs over `size` examples, shuffled anew each time; a last, smaller batch is left out.

    Args:
        size: number of examples.
        batch_size: examples per batch; all of them at once if there are fewer.
        generator: on the CPU; decides the order.
    """

    def __init__(self, size: int, batch_size: int, generator: torch.Generator) -> None:
        self.size, self.batch_size, self.generator = size, min(batch_size, size), generator
        self.permutation = torch.empty(0, dtype=torch.int64)
        self.position = 0

    def next(self) -> Tensor:
        """Numbers of the next examples, int64 `[batch_size]`."""
        if self.position + self.batch_size > len(self.permutation):
            self.permutation = torch.randperm(self.size, generator=self.generator)
            self.position = 0
        self.position += self.batch_size
        return self.permutation[self.position - self.batch_size : self.position]

    def state(self) -> dict[str, Any]:  # Any: tensors and numbers
        """For a checkpoint."""
        return {"permutation": self.permutation, "position": self.position, "generator": self.generator.get_state()}

    def load(self, state: dict[str, Any]) -> None:  # Any: as above
        """From a checkpoint."""
        self.permutation, self.position = state["permutation"], state["position"]
        self.generator.set_state(state["generator"])


class Training:
    """A model, its optimizer, its data and its randomness. Seeds torch's global generator.

    Args:
        experiment: the task.
        dataset: loaded.
        choice: the optimizer.
        seed: of everything random.
        device: where to compute.
    """

    def __init__(self, experiment: Experiment, *, dataset: Dataset, choice: Choice, seed: int, device: torch.device) -> None:
        self.experiment, self.device = experiment, device
        self.dataset = dataset.to(device)
        torch.manual_seed(seed)
        self.model = experiment.model().to(device)
        self.order = BatchOrder(len(dataset.train), experiment.batch_size, torch.Generator().manual_seed(seed + 1))
        self.generator = torch.Generator(device).manual_seed(seed + 2)
        first = self.dataset.train.batch(torch.arange(self.order.batch_size))
        self.step_work = model_work(self.model, experiment.loss, first)
        bare = copy.deepcopy(self.model)  # without the hooks of the optimizer
        self.optimizer = build(choice, self.model, terms=experiment.terms, generator=self.generator)
        self.pass_work = pass_work(bare, self.optimizer, experiment.loss, first)
        check_separate(self.optimizer, self.dataset, first)
        self.step = 0
        self.occasions = Occasions()

    @property
    def parameters(self) -> int:
        """Trainable numbers of the model."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def advance(self) -> Tensor:
        """One update; returns the loss it was made from, a 0-d tensor on the device."""
        batch = self.dataset.train.batch(self.order.next())
        self.optimizer.zero_grad()
        output = self.model(*batch[:-1])
        if isinstance(self.optimizer, NaturalGradient | JointNaturalGradient):
            self.optimizer.observe(output, batch[-1])
        loss = self.experiment.loss(output, batch[-1])
        loss.backward()
        if isinstance(self.optimizer, NaturalGradient) and self.optimizer.policy.adapt is not None:
            self.optimizer.step(evaluate=lambda: self.experiment.loss(self.model(*batch[:-1]), batch[-1]))
        else:
            self.optimizer.step()
        self.step += 1
        return loss.detach()

    def count(self) -> None:
        """Note what the last update asked for; apart from `advance`, whose time is taken."""
        work = self.work()
        if work is not None:
            self.occasions.see(work)

    def measure(self) -> dict[str, float]:
        """The metrics on the test split."""
        outputs, targets = self._predict()
        with torch.no_grad():
            return {name: float(metric(outputs, targets)) for name, metric in self.experiment.metrics.items()}

    def start_loss(self) -> float:
        """The loss on the first examples before any update, without touching the order of batches."""
        batch = self.dataset.train.batch(torch.arange(self.order.batch_size))
        self.model.eval()
        with torch.no_grad():
            loss = float(self.experiment.loss(self.model(*batch[:-1]), batch[-1]))
        self.model.train()
        return loss

    def _predict(self) -> tuple[Tensor, Tensor]:
        test = self.dataset.test
        self.model.eval()
        with torch.no_grad():
            parts = []
            for indices in torch.arange(len(test)).split(EVALUATION_BATCH):
                batch = test.batch(indices)
                parts.append((self.model(*batch[:-1]), batch[-1]))
        self.model.train()
        return torch.cat([output for output, _ in parts]), torch.cat([target for _, target in parts])

    def work(self) -> Work | None:
        """Everything asked of hardware so far, measuring aside; None for an optimizer whose work is not counted."""
        return total_work(self.optimizer, model_step=self.step_work, steps=self.step, passes=self.pass_work)

    def report(self) -> dict[str, Any]:  # Any: plain numbers and words
        """What the optimizer says about itself, or nothing."""
        own = getattr(self.optimizer, "report", None)
        return dict(own()) if callable(own) else {}

    def preconditioner(self) -> dict[str, Any]:  # Any: plain numbers
        """What the preconditioner is like (`optim.anisotropy`), or nothing; draws from a copy of the optimizer's randomness."""
        if not isinstance(self.optimizer, NaturalGradient):
            return {}
        generator = torch.Generator(self.device)
        generator.set_state(self.generator.get_state())
        found = anisotropy(self.optimizer, generator=generator)
        return {} if found is None else asdict(found)

    def coverage(self) -> str | None:
        """Which layer is treated how, for optimizers that treat layers differently."""
        own = getattr(self.optimizer, "coverage", None)
        return str(own()) if callable(own) else None

    def state(self) -> dict[str, Any]:  # Any: tensors and plain Python
        """All that decides how the run goes on."""
        return {
            "step": self.step,
            "occasions": self.occasions.steps.to_json(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.state(),
            "generator": self.generator.get_state(),
            "random": random_state(self.device),
        }

    def load(self, state: dict[str, Any]) -> None:  # Any: as above
        """Restore `state`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        work = self.work()
        if work is not None:
            every = Work(dict.fromkeys(work.kernels, self.step), dict.fromkeys(work.jobs, self.step))
            self.occasions.load(Work.from_json(state["occasions"]) if "occasions" in state else every, work)  # else: old
        self.order.load(state["order"])
        self.generator.set_state(state["generator"])
        set_random_state(state["random"], self.device)


def check_separate(optimizer: torch.optim.Optimizer, dataset: Dataset, batch: tuple[Tensor, ...]) -> None:
    """Refuse joint methods, which run examples one by one, on batches whose examples are not rows of every tensor.

    Raises:
        ValueError: they are not.
    """
    if isinstance(optimizer, JointNaturalGradient) and any(len(tensor) != len(batch[-1]) for tensor in batch):
        raise ValueError(
            f"ngd and tngd run the examples of a batch one by one, but those of {dataset.name} are parts of larger tensors, as "
            "graphs are: use --optimizer kfac"
        )
