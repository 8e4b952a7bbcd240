"""Checkpoints: one file that is either the old one or the new one, never half of each."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
SPARE_BYTES = 16 * 2**20  # room for the record beside the checkpoints


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:  # Any: tensors and plain Python
    """Write beside the old file, reach the disk, then take its place in one rename.

    Raises:
        OSError: it could not be written; the old checkpoint is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write the checkpoint {path} ({error}); the one before it is kept") from error


def load_checkpoint(path: Path) -> dict[str, Any]:  # Any: as above
    """Read a checkpoint onto the CPU, tensors and plain Python only.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}, so nothing to resume: start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"the checkpoint {path} is damaged ({str(error).splitlines()[0]}): start anew in another folder"
        ) from error
    if state.get("format") != FORMAT:
        raise ValueError(f"the checkpoint {path} has format {state.get('format')}, this version reads {FORMAT}")
    return dict(state)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's global generators that a run on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore `random_state`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def check_folder(folder: Path, *, needed_bytes: int) -> None:
    """Make a folder and see that it can be written to, before any work is done.

    Args:
        folder: to be made with its parents.
        needed_bytes: what a checkpoint will take; two must fit while one replaces the other.

    Raises:
        OSError: it cannot be made, written to, or holds too little.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:  # of its own name: other processes may try the same folder
            probe.write(b"probe")
            probe.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OSError(
            f"the output folder {folder} cannot be written ({error.strerror or error}): choose another with --out"
        ) from error
    needed = 2 * needed_bytes + SPARE_BYTES
    if free < needed:
        raise OSError(
            f"the output folder {folder} has {free / 2**20:.0f} MiB left and this run needs about {needed / 2**20:.0f} MiB: "
            "free some space or choose another with --out"
        )
