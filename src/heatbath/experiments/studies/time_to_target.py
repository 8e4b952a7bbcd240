"""Steps that were measured, times a step that is predicted: when a run would be at its target on given hardware.

Steps come from the page of a convergence study (`result.json`); refreshes are counted by the interval those runs had, which is
short at first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from heatbath.costs import Bill
from heatbath.experiments.choice import Choice, choice_from_json
from heatbath.experiments.counting import model_work, update_work
from heatbath.experiments.optimizers import DIGITAL, THERMODYNAMIC, build
from heatbath.experiments.studies.networks import Network
from heatbath.experiments.studies.step_bill import Hardware, step_prices
from heatbath.experiments.studies.step_work import StepWork, second_order_step
from heatbath.machines import Machine
from heatbath.optim import Policy
from heatbath.solvers import Eigen, Factorwise


@dataclass(frozen=True)
class Arrival:
    """When one optimizer would be at the target.

    Args:
        title: of the optimizer.
        steps: at the target, for each seed; None where it never was.
        one: predicted bill with one machine, mean over the seeds that arrived; None if none did.
        many: the same with a machine for every matrix.
    """

    title: str
    steps: Sequence[int | None]
    one: Bill | None
    many: Bill | None


def read_result(folder: Path) -> dict[str, Any]:  # Any: JSON values
    """The numbers of a convergence study's page.

    Raises:
        ValueError: the folder holds none.
    """
    path, hint = folder / "result.json", "give the folder of a page of `heatbath study convergence`"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}; give the folder of a page of `heatbath study convergence`"
        ) from error
    if not isinstance(result, dict) or result.get("study") != "convergence":
        raise ValueError(f"{path} is not of a convergence study; {hint}")
    return result


def arrivals(result: Mapping[str, Any], network: Network, hardware: Hardware, *, metric: str) -> list[Arrival]:  # Any: as above
    """Predict for every optimizer of a study whose work is known.

    Args:
        result: from `read_result`.
        network: shapes of its recipe at its batch size.
        hardware: the digital side; machines are those of the runs.
        metric: whose target counts, a key of `steps_to_baseline`.
    """
    found = []
    for outcome in result["outcomes"]:
        choice = choice_from_json(outcome["choice"])
        step = step_of(choice, network)
        if step is None:
            continue
        steps = outcome["steps_to_baseline"][metric]
        known = [count for count in steps if count is not None]
        bills: list[Bill | None] = [None, None]
        if known:
            spec = choice.machine or hardware.spec
            for i, machines in enumerate((1, None)):
                fleet = Hardware(hardware.digital, spec, hardware.half, machines=machines)
                prices = step_prices(step, fleet)
                runs = [prices.of_run(count, Policy().refresh) for count in known]
                bills[i] = sum(runs, Bill()) * (1 / len(runs))
        found.append(Arrival(outcome["title"], steps, *bills))
    return found


def step_of(choice: Choice, network: Network) -> StepWork | None:
    """The step of a choice; None where its work is not counted."""
    if choice.solver is None:
        with torch.device("meta"):
            model, batch = network.model(), network.batch()
        update = update_work(build(choice, model, generator=torch.Generator()))
        return None if update is None else StepWork(model_work(model, network.loss, batch), update)
    if choice.machine is None:
        inner = DIGITAL[choice.solver]()
        return second_order_step(network, inner if isinstance(inner, Eigen) else Factorwise(inner))
    return second_order_step(network, Factorwise(THERMODYNAMIC[choice.solver](Machine(choice.machine, tolerance=0))))


def mean_steps(arrival: Arrival) -> float | None:
    """Mean over the seeds that arrived."""
    known = [steps for steps in arrival.steps if steps is not None]
    return fmean(known) if known else None
