"""Options that mean the same in several commands: the type, and what `--help` says of it. Defaults are the commands'."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli.terminal import mistakes

OPTIMIZERS = "sgd, adam, adamw, nadamw, muon, kfac, kfac-quadratic, ngd, tngd, soap or singd"

LARGEST_SEED = 2**62  # torch takes 64 bits, and some seeds are one or two above that of the run

RECIPES = (  # their names alone: a mistyped one is answered before torch is imported, which takes seconds
    "digits-mlp",
    "digits-cnn",
    "digits-small",
    "mnist-autoencoder",
    "curves-autoencoder",
    "faces-autoencoder",
    "cifar-cnn",
    "cifar-vit",
    "char-gpt",
    "char-lstm",
    "molecules-gnn",
    "cora-gcn",
    "vit-s16-imagenet",
    "ogbg-gnn",
)


def _known_recipe(name: str) -> str:
    with mistakes():
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"there is no recipe {name!r}; {hint}known: {', '.join(RECIPES)}")
    return name


Recipe = Annotated[str, typer.Argument(help="What to train; see `heatbath recipes`.", callback=_known_recipe)]
RunSteps = Annotated[int | None, typer.Option(help="Updates in all; by default the recipe's.")]
RunSeed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the start, the batches and the machine's noise.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]

Machine = Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="A preset, or a file.")]
Bits = Annotated[int | None, typer.Option(help="Bits of all the machine's converters; by default its own.")]
Serial = Annotated[int, typer.Option(max=LARGEST_SEED, help="Serial number of the machine: decides its mismatch.")]
NoiseSeed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the machine's noise.")]

Trials = Annotated[Path | None, typer.Option("--runs", help="Folder of the trials' records. Default runs/STUDY-RECIPE.")]
Page = Annotated[Path | None, typer.Option("--out", help="Folder of the page; by default the folder page inside --runs.")]
TrialSteps = Annotated[int | None, typer.Option(help="Updates of every trial and run; by default the recipe's.")]
BatchSize = Annotated[int | None, typer.Option(help="Training examples per step; by default the recipe's.")]
EvalEvery = Annotated[int | None, typer.Option(help="Steps between two measurements; by default the recipe's.")]
StudiedMachine = Annotated[str | None, typer.Option(metavar="NAME|FILE.toml", help="A preset, or a file. Default tngd-2024.")]
Jobs = Annotated[int, typer.Option(help="Trials side by side, each on one thread.")]
