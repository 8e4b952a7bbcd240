"""Where and with what a run was made, for its record and its report."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("heatbath", "torch", "numpy", "scipy", "scikit-learn")
SOURCE = Path(__file__).resolve().parent.parent  # of the package heatbath
UNKNOWN = "unknown"


@lru_cache
def commit(folder: Path = SOURCE) -> str:
    """The git commit of the code that runs, read once in a process.

    Args:
        folder: of the package.

    Returns:
        The full hash, with " + uncommitted changes" where files of the folder differ from it; "unknown" where the folder is
        not tracked by git, such as an installed package, or git cannot be run.
    """

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(folder), *arguments]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", "."):  # a virtual environment inside somebody else's checkout
            return UNKNOWN
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "HEAD") + (" + uncommitted changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def versions() -> dict[str, str]:
    """The commit, Python and the packages that decide the numbers."""
    found = {"commit": commit(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "torch": str(torch.__version__)}  # with its build (+cu132), which the metadata of some wheels lacks


def host(device: torch.device) -> dict[str, Any]:  # Any: JSON values
    """The hardware and the operating system, without names of users or machines."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(device)
    return facts


def command() -> str:
    """The command line that is running, as it can be pasted into a shell."""
    program = os.path.basename(sys.argv[0]) or "python"
    return shlex.join([program.removesuffix(".py") if program == "heatbath.py" else program, *sys.argv[1:]])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
