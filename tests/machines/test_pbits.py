"""Probabilistic bits against exact enumeration of small networks."""

import math

import pytest
import torch
from scipy import stats

from heatbath.machines import Ising, Order, PbitMachine, PbitSpec, pbit_presets


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(n: int = 6, seed: int = 1) -> Ising:
    root = torch.randn(n, n, generator=noise(seed), dtype=torch.float64) * (torch.rand(n, n, generator=noise(seed)) < 0.6)
    return Ising(torch.triu(root, 1) + torch.triu(root, 1).mT, 0.4 * torch.randn(n, generator=noise(seed + 1)).double())


def chi_square_p(spins: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of independent states `[chains, n]`; cells below 5 expected counts are pooled."""
    n = spins.shape[-1]
    index = ((spins > 0).long() << torch.arange(n)).sum(-1)
    counts = torch.bincount(index, minlength=2**n).double()
    expected = probabilities * len(spins)
    rare = expected < 5
    observed, wanted = counts[~rare], expected[~rare]
    if float(expected[rare].sum()) > 0:
        observed, wanted = torch.cat((observed, counts[rare].sum()[None])), torch.cat((wanted, expected[rare].sum()[None]))
    return float(stats.chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue)


def test_energy_is_the_sum_over_pairs_and_spins():
    model, m = small(5), torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0]).double()
    pairs = sum(model.couplings[i, j] * m[i] * m[j] for i in range(5) for j in range(i + 1, 5))
    torch.testing.assert_close(model.energy(m), -pairs - model.biases @ m)


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_samples_follow_the_boltzmann_distribution(order, beta):
    """8,000 independent chains, each read once: χ² on all states."""
    model, machine = small(), PbitMachine(PbitSpec("ideal"))
    samples = machine.run(machine.program(model), beta=beta, sweeps=40, chains=8_000, order=order, generator=noise())
    assert chi_square_p(samples.spins[0], model.probabilities(beta)) > 1e-3


def test_updating_coupled_bits_at_once_would_be_wrong():
    """The judge can fail: one colour for all samples another distribution."""
    from dataclasses import replace

    model, machine = small(), PbitMachine(PbitSpec("ideal"))
    network = replace(machine.program(model), colours=(torch.arange(6),))
    samples = machine.run(network, beta=1.0, sweeps=60, chains=20_000, generator=noise())
    assert chi_square_p(samples.spins[0], model.probabilities()) < 1e-9


def test_bits_of_one_colour_are_not_coupled():
    model = small(16)
    network = PbitMachine(PbitSpec("ideal")).program(model)
    assert sorted(torch.cat(network.colours).tolist()) == list(range(16))
    for bits in network.colours:
        assert not model.couplings[bits][:, bits].any()


def test_two_spins_have_the_closed_form_correlation():
    """E[m₀ m₁] = tanh(βJ); z-score of independent chains."""
    model, machine = Ising(torch.tensor([[0.0, 0.7], [0.7, 0.0]]).double(), torch.zeros(2).double()), PbitMachine(PbitSpec("x"))
    spins = machine.run(machine.program(model), beta=1.3, sweeps=50, chains=40_000, generator=noise()).spins[0].double()
    truth = math.tanh(1.3 * 0.7)
    assert abs(float(spins.prod(-1).mean()) - truth) < 4 * ((1 - truth**2) / 40_000) ** 0.5


def test_reads_along_a_chain_average_to_the_exact_mean():
    """Means over reads and chains; the standard error from the spread between independent chains."""
    model, machine = small(), PbitMachine(PbitSpec("ideal"))
    samples = machine.run(machine.program(model), beta=1.0, sweeps=400, read_every=2, chains=400, generator=noise())
    means = samples.spins[50:].double().mean(0)  # [chains, n], burn-in left out
    truth = model.probabilities() @ model.states()
    z = (means.mean(0) - truth) / (means.std(0) / 400**0.5)
    assert float(z.abs().max()) < 4.5


def test_a_machine_samples_what_it_holds():
    """Couplings of 3 bits: the distribution is that of the rounded model, not of the one asked for."""
    model, machine = small(), PbitMachine(PbitSpec("coarse", bits=3))
    network = machine.program(model)
    scale = float(torch.cat((model.couplings.flatten(), model.biases)).abs().max())
    torch.testing.assert_close(network.held.couplings, torch.round(model.couplings / scale * 3) * scale / 3)
    spins = machine.run(network, beta=1.0, sweeps=60, chains=20_000, generator=noise()).spins[0]
    assert chi_square_p(spins, network.held.probabilities()) > 1e-3
    assert chi_square_p(spins, model.probabilities()) < 1e-9


def test_work_counts_writes_updates_and_reads():
    model, machine = small(), PbitMachine(PbitSpec("x", update_seconds=1e-9))
    network = machine.program(model)
    work = machine.run(network, beta=1.0, sweeps=40, read_every=10, chains=3, generator=noise()).work
    ((job, count),) = work.jobs.items()
    assert (count, job.drives, job.updates, job.conversions_out) == (3, 4, 60, 6)
    assert work.analog_seconds == pytest.approx(3 * 40 * len(network.colours) * 1e-9)
    assert network.write.programmings == 1


def test_energies_agree_with_thrml():
    """thrml's IsingEBM: energy includes β, spins are booleans."""
    pytest.importorskip("thrml", reason="thrml (JAX) is not installed")
    import jax.numpy as jnp
    from thrml import Block, SpinNode
    from thrml.models import IsingEBM

    model, beta = small(), 0.7
    nodes = [SpinNode() for _ in range(6)]
    edges = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    theirs = IsingEBM(
        nodes,
        [(nodes[i], nodes[j]) for i, j in edges],
        jnp.array(model.biases.numpy()),
        jnp.array([float(model.couplings[i, j]) for i, j in edges]),
        jnp.array(beta),
    )
    for m in model.states()[::7]:
        energy = theirs.energy([jnp.array((m > 0).numpy())], [Block(nodes)])
        assert float(energy) == pytest.approx(beta * float(model.energy(m)), rel=1e-5)


def test_presets_name_their_source():
    for spec in pbit_presets().values():
        assert spec.source
        assert spec.notes


ZERO = torch.zeros(2, 2).double()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([[0.0, 1.0], [0.5, 0.0]]), torch.zeros(2)), ValueError, "not symmetric"),
        ((torch.eye(2), torch.zeros(2)), ValueError, "zero diagonal"),
        ((ZERO, torch.zeros(2)), TypeError, "biases must be a tensor of torch.float64"),
        ((ZERO, torch.zeros(3).double()), ValueError, "2 finite numbers"),
        ((ZERO, torch.full((2,), torch.nan).double()), ValueError, "finite"),
        ((ZERO.expand(3, 2, 2), torch.zeros(2).double()), ValueError, "one matrix"),
    ],
)
def test_what_is_no_ising_model_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Ising(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.0, "sweeps": 0}, "sweeps must be 1 or more"),
        ({"beta": torch.ones(3), "sweeps": 4}, "one for each; got 4 and 3"),
        ({"beta": -1.0, "sweeps": 4}, "beta must be finite and not negative"),
        ({"beta": 1.0, "sweeps": 4, "chains": 0}, "chains and read_every"),
        ({"beta": 1.0, "sweeps": 4, "read_every": 3}, "read_every must divide"),
        ({"beta": 1.0, "sweeps": 4, "start": torch.zeros(1, 6)}, "start must be"),
    ],
)
def test_runs_that_make_no_sense_are_refused(arguments, message):
    machine = PbitMachine(PbitSpec("x"))
    with pytest.raises(ValueError, match=message):
        machine.run(machine.program(small()), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits must be 2"),
        ({"update_energy": 0.0}, "update_energy must be positive"),
        ({"cells": -1}, "cells must be"),
    ],
)
def test_impossible_machines_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PbitSpec("x", **arguments)


def test_a_model_larger_than_the_machine_is_refused():
    with pytest.raises(ValueError, match="does not fit machine 'x' of 4 bits"):
        PbitMachine(PbitSpec("x", cells=4)).program(small())


def test_enumeration_has_a_limit():
    with pytest.raises(ValueError, match="at most 20"):
        Ising(torch.zeros(21, 21), torch.zeros(21)).states()
