"""How many steps does the exact natural gradient save against SGD and Adam, tuned alike?

Two tasks: 8×8 digits by a network 64-16-10 until 95 % of the held-out images are right, and the strength of concrete (UCI,
1,030 rows of 8) by a network 8-20-1 until the held-out error is 0.4 standard deviations. Each method takes the setting from its
grid that needs fewest steps on the validation split (seeds 0 and 1), and is then run on the test split with five other seeds.
"More than the limit" counts as the limit. Batches are the same for all methods.

    python benchmarks/natural_gradient.py      # some minutes; writes benchmarks/results/natural_gradient.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb
from heatbath.experiments.data import digits
from heatbath.experiments.data.uci import read_table
from heatbath.experiments.environment import host, versions

RESULTS = Path(__file__).parent / "results" / "natural_gradient.json"
TUNING, TESTING, LIMIT = (0, 1), range(10, 15), 300
Make = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Task:
    """Inputs and targets of training, validation and test; a network; a loss; when held-out outputs are good enough."""

    splits: Mapping[str, tuple[Tensor, Tensor]]
    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    done: Callable[[Tensor, Tensor], bool]
    fisher: hb.ExactFisher
    batch: int


def digits_task() -> Task:
    data = digits.load()
    (images, labels), test = data.train.tensors, data.test.tensors
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[labels.argsort(stable=True)[2::5]] = True
    return Task(
        {
            "train": (images[~held].flatten(1), labels[~held]),
            "validation": (images[held].flatten(1), labels[held]),
            "test": (test[0].flatten(1), test[1]),
        },
        lambda: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
        F.cross_entropy,
        lambda z, y: (z.argmax(-1) == y).float().mean().item() >= 0.95,
        hb.ExactFisher(hb.Categorical()),
        batch=64,
    )


def concrete_task() -> Task:
    table, masks, _ = read_table("concrete")
    table = table.float()
    test, validation = masks[:, 0], masks[:, 1] & ~masks[:, 0]
    rest = table[~test & ~validation]
    table = (table - rest.mean(0)) / rest.std(0)
    parts = {"train": ~test & ~validation, "validation": validation, "test": test}
    return Task(
        {name: (table[mask, :-1], table[mask, -1:]) for name, mask in parts.items()},
        lambda: nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 1)),
        F.mse_loss,
        lambda z, y: (z - y).square().mean().sqrt().item() <= 0.4,
        hb.ExactFisher(hb.Gaussian()),
        batch=128,
    )


def steps_needed(task: Task, make: Make, seed: int, split: str) -> int:
    """Steps until the held-out outputs are good enough, at most LIMIT."""
    torch.manual_seed(seed)
    model, generator = task.network(), torch.Generator().manual_seed(1000 + seed)
    optimizer = make(model)
    observe = getattr(optimizer, "observe", lambda outputs: outputs)
    (x, y), held = task.splits["train"], task.splits[split]
    for step in range(LIMIT):
        with torch.no_grad():
            if task.done(model(held[0]), held[1]):
                return step
        part = torch.randint(len(x), (task.batch,), generator=generator)
        optimizer.zero_grad()
        task.loss(observe(model(x[part])), y[part]).backward()
        optimizer.step()
    return LIMIT


def grids(task: Task) -> dict[str, dict[str, Make]]:
    """Settings of each method by name."""
    rates = [10.0**k * m for k in (-3, -2, -1) for m in (1, 3)] + [1.0]
    return {
        "SGD, momentum 0.9": {f"lr {r:g}": lambda m, r=r: torch.optim.SGD(m.parameters(), lr=r, momentum=0.9) for r in rates},
        "Adam": {f"lr {r:g}": lambda m, r=r: torch.optim.Adam(m.parameters(), lr=r) for r in rates},
        "NGD": {
            f"lr {r:g}, damping {d:g}": lambda m, r=r, d=d: hb.NGD(m, fisher=task.fisher, lr=r, damping=d)
            for r in (0.3, 1.0)
            for d in (0.1, 0.03, 0.01)
        },
    }


def measure(task: Task) -> dict[str, Any]:
    rows = {}
    for method, settings in grids(task).items():
        tuned = {
            name: sum(steps_needed(task, make, s, "validation") for s in TUNING) / len(TUNING)
            for name, make in settings.items()
        }
        best = min(tuned, key=lambda name: tuned[name])
        begin = time.process_time()
        steps = [steps_needed(task, settings[best], seed, "test") for seed in TESTING]
        seconds = (time.process_time() - begin) / sum(steps)
        rows[method] = {"validation": tuned, "setting": best, "test": steps, "CPU seconds a step": round(seconds, 4)}
        mean = sum(steps) / len(steps)
        print(f"  {method:18} {best:22} steps {steps}, mean {mean:.1f}, {1e3 * seconds:.1f} ms a step", flush=True)
    return rows


def main() -> None:
    found: dict[str, Any] = {"question": __doc__.splitlines()[0], "limit": LIMIT}
    for name, task in {"digits": digits_task(), "concrete": concrete_task()}.items():
        print(name, flush=True)
        found[name] = measure(task)
    found["environment"] = {**host(torch.device("cpu")), "packages": versions()}
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
