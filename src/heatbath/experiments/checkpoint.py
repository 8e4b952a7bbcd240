"""Checkpoints: written whole, verified before they are read, and the one before the last is kept.

A checkpoint is a zip file, and each of its members carries a CRC-32. `torch.load` does not look at
it and reads a flipped bit as another weight; here it is verified first (`zipfile`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

FORMAT = 1
SPARE_BYTES = 16 * 2**20  # room for the record beside the checkpoints


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(path.name + ".1")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:  # Any: tensors and plain Python
    """Write a new file, reach the disk, and rename: the old checkpoint to `previous`, the new one to `path`.

    Raises:
        OSError: it could not be written; the old checkpoint is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write the checkpoint {path} ({error}); the one before it is kept") from error


def load_checkpoint(path: Path) -> dict[str, Any]:  # Any: as above
    """Verify and read one checkpoint onto the CPU, tensors and plain Python only.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it may not be read.
        ValueError: it is damaged or of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}, so nothing to resume: start without --resume")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise PermissionError(f"the checkpoint {path} may not be read: change its permissions") from error
    except Exception as error:  # damage makes the readers of zip files and pickles raise nearly anything
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(f"the checkpoint {path} is damaged ({reason}): start anew in another folder") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = f"has format {state.get('format')}" if isinstance(state, dict) else "is no checkpoint of a run"
        raise ValueError(f"the checkpoint {path} {found}, this version reads {FORMAT}")
    return state


def resume_checkpoint(path: Path) -> tuple[dict[str, Any], str]:  # Any: as above
    """The last checkpoint or, where it is damaged or missing, the one before it.

    A damaged file is kept under the ending ".damaged", so that the next save does not push the good
    one out.

    Returns:
        The state, and why it is not that of the last checkpoint; "" where it is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: all that there are are damaged or of another format.
        OSError: a file may not be read or renamed.
    """
    try:
        return load_checkpoint(path), ""
    except (FileNotFoundError, ValueError) as error:
        older = previous(path)
        if not older.is_file():
            raise
        try:
            state = load_checkpoint(older)
        except ValueError as another:
            raise ValueError(f"{error}; and the one before it does not help: {another}") from another
        why = f"{path} is missing"
        if path.is_file():
            kept = path.with_name(path.name + ".damaged")
            os.replace(path, kept)
            why = f"{path} was damaged and is kept as {kept.name}"
        return state, f"{why}, so from {older}, the checkpoint before it"


@contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Hold the lock of what is written at `path` for the length of the block.

    The lock is the operating system's, on a file in the folder `.locks`: a process that ends, however
    it ends, holds it no more, and the file that it leaves means nothing.

    Raises:
        OSError: another process, or another run of this one, holds it.
    """
    file = path.parent / ".locks" / f"{path.name}.lock"
    file.parent.mkdir(exist_ok=True)
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(
            f"another process is writing {path} at this moment: wait for its end or stop it, "
            "or choose another folder with --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


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
        needed_bytes: what a checkpoint will take; the last two are kept while a third is written.

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
    needed = 3 * needed_bytes + SPARE_BYTES
    if free < needed:
        raise OSError(
            f"the output folder {folder} has {free / 2**20:.0f} MiB left and this run needs about {needed / 2**20:.0f} MiB: "
            "free some space or choose another with --out"
        )
