"""A joint natural-gradient optimizer's own state as tensors and plain Python, and back; see `heatbath.optim.checkpoint`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from heatbath.operators import from_plain, to_plain
from heatbath.optim.checkpoint import recipe, tensors, texts

if TYPE_CHECKING:
    from heatbath.optim.joint import JointNaturalGradient

# attributes beside torch's own
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


def save(optimizer: JointNaturalGradient) -> dict[str, Any]:  # Any: plain Python and tensors
    """Counters, the solver's memory and random state."""
    past = {"solver": recipe(optimizer.solver), "steps": optimizer.steps, "tally": texts(optimizer._tally.to_plain())}
    generator = None if optimizer.generator is None else optimizer.generator.get_state()
    return {"past": json.dumps(past), "memory": to_plain(optimizer._memory), "generator": generator}


def check(optimizer: JointNaturalGradient, joint: dict[str, Any]) -> None:  # Any: plain Python and tensors
    """Whether what `save` made fits an optimizer.

    Raises:
        ValueError: it was saved with another solver.
    """
    there, here = json.loads(joint["past"])["solver"], recipe(optimizer.solver)
    if there != here:
        raise ValueError(
            f"this state_dict was saved with the solver {there}, this optimizer has {here}: build it with the solver it was "
            "saved with"
        )


def restore(optimizer: JointNaturalGradient, joint: dict[str, Any]) -> None:  # Any: plain Python and tensors
    """Put a saved state into an optimizer."""
    past = json.loads(joint["past"])
    optimizer.steps, optimizer._memory, optimizer._seen = past["steps"], from_plain(joint["memory"]), []
    optimizer._tally.load_plain(tensors(past["tally"]))
    if optimizer.generator is not None and joint["generator"] is not None:
        optimizer.generator.set_state(joint["generator"].cpu())
