"""The situations that `peers.py` puts optimizers into."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import peers_judges as judges
import peers_networks as networks
from peers_adapters import Adapter
from peers_judges import Cell, first_line, told
from peers_networks import Net
from torch import nn

Situation = Callable[[type[Adapter]], Cell]
VECTOR, IMAGE, SEQUENCE = (8,), (4, 6, 6), (8, 3)


def trains(make: Callable[[], nn.Module], **options: Any) -> Situation:
    return partial(judges.training, make, VECTOR, **options)


def holds(make: Callable[[], Net], shape: tuple[int, ...] = VECTOR, **options: Any) -> Situation:
    return partial(judges.curvature, make, shape, **options)


SITUATIONS: dict[str, Situation] = {
    "every example four times": judges.duplicated,
    "convolution": holds(partial(networks.conv_net, padding=1), IMAGE),
    "convolution, dilated": holds(partial(networks.conv_net, dilation=2), IMAGE),
    "convolution, groups": holds(partial(networks.conv_net, groups=2), IMAGE),
    "convolution, padding='same'": holds(partial(networks.conv_net, padding="same"), IMAGE),
    "MultiheadAttention": trains(lambda: Net(nn.MultiheadAttention(4, 2, batch_first=True), 4, networks.attended)),
    "LayerNorm": trains(lambda: Net(nn.LayerNorm(8), 8, networks.normed, first=nn.Linear(8, 8))),
    "Embedding": trains(lambda: Net(nn.Embedding(5, 4), 4, networks.looked_up)),
    "bare Parameter": trains(networks.Shifted),
    "unused layer": trains(networks.unused, expected=networks.all_but("idle")),
    "frozen layer": trains(networks.frozen, expected=networks.all_but("first")),
    "layer frozen in mid-training": trains(networks.deeper, expected=networks.all_but("first"), midway=networks.freeze),
    "layer used twice": holds(lambda: Net(nn.Linear(8, 8, bias=False), 8, networks.twice)),
    "inputs not contiguous": holds(lambda: Net(nn.Linear(8, 6, bias=False), 6, networks.transposed), SEQUENCE),
    "in-place activation": holds(lambda: Net(nn.Linear(8, 6, bias=False), 6, networks.in_place)),
    "activation checkpointing": holds(lambda: Net(nn.Linear(8, 6, bias=False), 6, networks.checkpointed)),
    "two forwards, one backward": holds(
        lambda: Net(nn.Linear(8, 6, bias=False), 6, networks.plain), forward=networks.in_halves
    ),
    "four micro-batches": judges.accumulated,
    "GradScaler": judges.scaled,
    "eval pass in between": partial(judges.interrupted, training=False),
    "no-grad pass in between": partial(judges.interrupted, training=True),
    "no clip": judges.without_clip,
    ".grad after a step": judges.gradients_left,
    "checkpoint in mid-interval": judges.resumed,
    "two processes, DDP": partial(judges.parallel, join=judges.by_wrapper),
    "two processes, no wrapper": partial(judges.parallel, join=judges.by_itself),
    "two processes, fully_shard": partial(judges.parallel, join=judges.in_pieces),
}


def look(peer: type[Adapter], situation: Situation) -> Cell:
    """Put a peer into a situation; whatever happens is a result."""
    with gathered() as said:
        try:
            cell = situation(peer)
        except Exception as error:
            if Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent == Path(__file__).parent:
                raise  # a mistake of these files, not of a peer
            return Cell("raises", None, told(error))
    if cell.verdict == "not trained":
        warned = next((line for line in said if "train" in line), None)
        return Cell("not trained, warns" if warned else "not trained, silent", None, f"{cell.detail}; {warned or 'no warning'}")
    return cell


@contextmanager
def gathered() -> Iterator[list[str]]:
    """First lines of the warnings that come up."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield said
        finally:
            said += [first_line(each.message) for each in caught]
