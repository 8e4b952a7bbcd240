"""Uncertainty of a classifier that was trained on few examples: its mode beside its Laplace posterior.

The network is trained as the recipe says on a few of the training examples, δ is chosen on the held-out tenth of them, and
all is measured on the test split, upright and turned by growing angles, which leaves the distribution that was learned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher
from heatbath.experiments.calibration import Calibration, calibration, entropy, separation
from heatbath.experiments.checkpoint import load_checkpoint
from heatbath.experiments.data import Dataset, Source, Subset, held_out
from heatbath.experiments.experiment import Experiment, on_held_out_data
from heatbath.experiments.records import RunFiles
from heatbath.machines import Machine
from heatbath.samplers import (
    Laplace,
    WeightDraws,
    fit_laplace,
    most_predictive,
    predict_linearized,
    predict_sampled,
    sample_weights,
    sample_weights_on,
)

ANGLES = (0, 15, 30, 45, 60, 75, 90)  # degrees
SHIFTED = 3  # which of the angles stands for data unlike those of training
HEAD = (
    *("predictions", "accuracy", "NLL", "ECE", "by chance", "entropy"),
    *(f"{what} at {ANGLES[SHIFTED]}°" for what in ("NLL", "ECE", "entropy", "AUROC")),
)
BATCH = 256


@dataclass(frozen=True)
class Measured:
    """One way of predicting.

    Args:
        name: of the way.
        by_angle: calibration on the test split turned by each of `ANGLES`.
        auroc: how well entropy tells examples turned by 45° from upright ones.
    """

    name: str
    by_angle: tuple[Calibration, ...]
    auroc: float

    def cells(self) -> tuple[str, ...]:
        """Text of a table's row under `HEAD`."""
        here, there = self.by_angle[0], self.by_angle[SHIFTED]
        numbers = (
            here.accuracy,
            here.nll,
            here.ece,
            here.chance,
            here.entropy,
            there.nll,
            there.ece,
            there.entropy,
            self.auroc,
        )
        return (self.name, *(f"{v:.3f}" for v in numbers))


def few_examples(experiment: Experiment, count: int) -> Experiment:
    """The same task trained on `count` of its training examples and measured on the held-out ones.

    Raises:
        ValueError: not a task of classes, or fewer than one example.
    """
    if experiment.loss is not F.cross_entropy:
        raise ValueError(f"{experiment.name} has no classes to predict: choose a recipe whose loss is cross-entropy")
    if count < 1:
        raise ValueError(f"at least one example is needed to train on, got {count}")
    source = held_out(experiment.source)

    def load() -> Dataset:
        dataset = source.load()
        if count > len(dataset.train):
            raise ValueError(f"{dataset.name} has {len(dataset.train)} examples to train on, fewer than {count}")
        return replace(dataset, train=Subset(dataset.train, torch.arange(count)))

    return replace(on_held_out_data(experiment), source=replace(source, load=load))


def trained_model(experiment: Experiment, files: RunFiles) -> nn.Module:
    """The network of a run's last checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError: there is no checkpoint: nothing was trained.
        ValueError: the run took no step, or is of another task.
    """
    if not files.checkpoint.is_file():
        raise FileNotFoundError(f"{files.folder} holds no trained network: there is no {files.checkpoint.name}")
    state = load_checkpoint(files.checkpoint)
    if state["header"]["experiment"] != experiment.name:
        raise ValueError(f"{files.folder} holds a run of {state['header']['experiment']}, not of {experiment.name}")
    if not state["training"]["step"]:
        raise ValueError(f"the run in {files.folder} took no step, so its network is not trained: go on with it first")
    with torch.random.fork_rng(devices=[]):
        model = experiment.model()
    model.load_state_dict(state["training"]["model"])
    return model.eval()


def fit(model: nn.Module, dataset: Dataset, *, prior: float | None = None) -> Laplace:
    """The posterior of a trained network, with δ as given or as the held-out examples (`dataset.test`) like it best."""
    batches = (dataset.train.batch(part) for part in torch.arange(len(dataset.train)).split(BATCH))
    posterior = fit_laplace(model, batches, ExactFisher(Categorical()), prior=1.0 if prior is None else prior)
    if prior is not None:
        return posterior
    inputs, labels = dataset.test.batch(torch.arange(len(dataset.test)))
    return most_predictive(posterior, inputs, labels)


def measure(
    posterior: Laplace,
    source: Source,
    *,
    samples: int = 100,
    machine: Machine | None = None,
    generator: torch.Generator | None = None,
) -> tuple[list[Measured], WeightDraws | None]:
    """Predict the test split, upright and turned, by the mode and by the posterior; with the draws of a machine, if given.

    Args:
        posterior: from `fit`.
        source: of the whole set.
        samples: weights drawn.
        machine: draws weights, too.
        generator: source of randomness.
    """
    test = source.load().test
    images, labels = test.batch(torch.arange(len(test)))
    model = posterior.model
    draws = {"Laplace, drawn weights": sample_weights(posterior, samples, generator=generator)}
    analog = None
    if machine is not None:
        analog = sample_weights_on(posterior, machine, samples, chains=samples, generator=generator)
        draws[f"Laplace, drawn by {machine.spec.name}"] = analog
    predictions: dict[str, list[Tensor]] = {name: [] for name in ("mode", "Laplace, linearized", *draws)}
    for angle in ANGLES:
        turned = turn_images(images, angle)
        with torch.no_grad():
            predictions["mode"].append(torch.softmax(model(turned), -1))
        predictions["Laplace, linearized"].append(predict_linearized(posterior, turned).probit())
        for name, drawn in draws.items():
            predictions[name].append(torch.softmax(predict_sampled(model, turned, drawn.parameters), -1).mean(0))
    rows = [
        Measured(name, tuple(calibration(p, labels) for p in each), separation(entropy(each[0]), entropy(each[SHIFTED])))
        for name, each in predictions.items()
    ]
    return rows, analog


def turn_images(images: Tensor, degrees: float) -> Tensor:
    """Images `[N, 1, H, W]` turned about their middle, bilinearly, zeros from outside.

    Raises:
        ValueError: no images.
    """
    if images.ndim != 4:
        raise ValueError(f"only images [N, C, H, W] can be turned, got shape {tuple(images.shape)}")
    a = math.radians(degrees)
    matrix = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]], dtype=images.dtype)
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def write_measured(path: Path, rows: Sequence[Measured], posterior: Laplace, *, command: str) -> None:
    """All numbers as JSON."""
    content = {
        "command": command,
        "examples": posterior.examples,
        "parameters": posterior.parameters,
        "priors": posterior.priors,
        "effective_parameters": posterior.effective_parameters(),
        "angles": ANGLES,
        "predictions": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
