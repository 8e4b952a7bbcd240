"""Recipes on text and graphs, on what a package ships where nothing can be downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heatbath.experiments import RunFiles, RunOptions, choose, run
from heatbath.experiments.training import Training
from heatbath.optim import NaturalGradient
from heatbath.optim.observing import passed_terms
from heatbath.recipes import recipes

TERMS = {"char-gpt": 4 * 64, "char-lstm": 4 * 64, "molecules-gnn": 4, "cora-gcn": 4}  # of a batch of four


@pytest.mark.parametrize("name", TERMS)
def test_kfac_trains_every_parameter_and_counts_the_terms_of_the_loss(
    name: str, nothing_at_hand: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters, molecules, labelled nodes: what the loss is a mean over, whatever number of rows the layers see."""
    experiment = replace(recipes()[name], batch_size=4)
    dataset, counted = experiment.source.load(), list[float]()
    with torch.random.fork_rng(devices=[]):
        run = Training(experiment, dataset=dataset, choice=choose(experiment, "kfac"), seed=0, device=torch.device("cpu"))
    optimizer = run.optimizer
    assert isinstance(optimizer, NaturalGradient)
    assert all(row.treatment.startswith("kfac") for row in optimizer.coverage().rows)

    def finish() -> None:
        assert optimizer._seen.terms is not None
        counted.extend([float(optimizer._seen.terms), float(passed_terms(optimizer.capture, experiment.terms.reduction) or 0)])

    monkeypatch.setattr(optimizer, "finish_step", finish)
    run.advance()
    assert counted == [TERMS[name]] * 2  # by what was observed, and by what came back


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["cholesky", "thermodynamic-inverse", "thermodynamic-solve"])
@pytest.mark.parametrize("name", ["char-gpt", "char-lstm", "molecules-gnn", "cora-gcn"])
def test_with_defaults_the_loss_on_text_and_graphs_falls(name: str, solver: str, nothing_at_hand: None, tmp_path: Path) -> None:
    experiment = replace(recipes()[name], eval_every=20)
    choice = choose(experiment, "kfac", solver=solver, bits=8 if "thermo" in solver else None)
    options = RunOptions(steps=20, checkpoint_every=0)
    record = run(experiment, choice, options=options, files=RunFiles(tmp_path))
    losses = record.metric("loss")[2]
    assert [event["event"] for event in record.events] == ["finished"]
    assert losses[-1] < 0.9 * losses[0]
