"""Equilibrium propagation against autograd through the fixed point, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.experiments.data import digits
from heatbath.experiments.studies.networks import NETWORKS, Network
from heatbath.layers import symmetric_layers
from heatbath.machines import MachineSpec
from heatbath.optim import EquilibriumPropagation

SPEC = MachineSpec(name="m", tau=1e-6, settle_taus=40.0, matrix_bits=8, drive_bits=4, read_bits=6)


def network(*sizes: int, gain: float = 0.2, bias: float = 0.4) -> nn.Sequential:
    """Units stay off the ends of their range for a small gain."""
    generator = torch.Generator().manual_seed(1)
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(gain * torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) / inputs**0.5)
            layer.bias.fill_(bias)
        parts += [layer, nn.Hardtanh(0.0, 1.0)]
    return nn.Sequential(*parts[:-1])


def batch(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.rand(6, n, generator=generator, dtype=torch.float64) for n in (inputs, outputs))  # type: ignore[return-value]


def gradients_through_the_fixed_point(net: nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    """Backpropagation through 400 simultaneous gradient steps on the energy: no code of the trainer's."""
    layers = [m for m in net if isinstance(m, nn.Linear)]
    state = [torch.zeros(len(x), layer.out_features, dtype=x.dtype) for layer in layers]
    for _ in range(400):
        new = []
        for i, layer in enumerate(layers):
            force = layer(x if i == 0 else state[i - 1]) - state[i]
            if i + 1 < len(layers):
                force = force + state[i + 1] @ layers[i + 1].weight
            moved = state[i] + 0.3 * force
            new.append(moved.clamp(0, 1) if i + 1 < len(layers) else moved)
        state = new
    loss = 0.5 * (state[-1] - y).square().sum() / len(x)
    return list(torch.autograd.grad(loss, list(net.parameters())))


def error(net: nn.Sequential, x: Tensor, y: Tensor, beta: float) -> float:
    net.zero_grad()
    EquilibriumPropagation(net, beta=beta, free_sweeps=300, nudged_sweeps=300).backward(x, y)
    truth = gradients_through_the_fixed_point(net, x, y)
    found = [p.grad for p in net.parameters()]
    return float(torch.cat([(f - t).flatten() for f, t in zip(found, truth, strict=True) if f is not None]).norm()) / float(
        torch.cat([t.flatten() for t in truth]).norm()
    )


@pytest.mark.parametrize("sizes", [(3, 5, 2), (3, 5, 4, 2)])
def test_gradients_approach_backpropagation_through_the_fixed_point_as_the_square_of_beta(sizes: tuple[int, ...]) -> None:
    net, (x, y) = network(*sizes), batch(sizes[0], sizes[-1])
    state = EquilibriumPropagation(net, free_sweeps=300).relax(x)
    assert all(bool(((s > 0.05) & (s < 0.95)).all()) for s in state[:-1])  # no unit at an end: the cost is smooth here
    errors = [error(net, x, y, beta) for beta in (0.4, 0.2, 0.1, 0.05)]
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert ratios[-1] == pytest.approx(4, rel=0.1)
    assert errors[-1] < 1e-2


def test_gradients_agree_where_units_are_at_the_ends_of_their_range() -> None:
    net, (x, y) = network(4, 12, 3, gain=0.5, bias=0.2), batch(4, 3)
    hidden = EquilibriumPropagation(net, free_sweeps=300).relax(x)[0]
    at_end = (hidden == 0) | (hidden == 1)
    assert 0.1 < at_end.double().mean() < 0.9
    assert error(net, x, y, 1e-4) < 1e-6  # O(β²)


def test_one_linear_layer_has_the_gradient_of_least_squares() -> None:
    """Then s = Wx + b and dC/dW is known; a nudge of β moves the output by β/(1 ± β), so the estimate is that over 1 − β²."""
    net, (x, y) = network(3, 2), batch(3, 2)
    EquilibriumPropagation(net, beta=0.3).backward(x, y)
    layer = net[0]
    assert isinstance(layer, nn.Linear) and layer.weight.grad is not None
    residual = (layer(x) - y).detach()
    pulled, pushed = (layer(x).detach() - residual * b / (1 + b) for b in (0.3, -0.3))
    torch.testing.assert_close(layer.weight.grad, (pushed - pulled).T @ x / (0.6 * 6))
    torch.testing.assert_close(layer.weight.grad, residual.T @ x / 6 / (1 - 0.09))


def test_no_sweep_raises_the_energy_and_the_last_one_changes_nothing() -> None:
    net, (x, _) = network(4, 12, 7, 3, gain=2.0), batch(4, 3)
    energies = []
    for sweeps in range(1, 60):
        trainer = EquilibriumPropagation(net, free_sweeps=sweeps)
        energies.append(trainer.energy(x, trainer.relax(x)).detach())
    falls = torch.stack(energies).diff(dim=0)
    assert bool((falls <= 1e-12).all())
    assert bool((falls[-1].abs() < 1e-9).all())


def test_gradients_add_up_as_those_of_backward() -> None:
    net, (x, y) = network(3, 5, 2), batch(3, 2)
    trainer = EquilibriumPropagation(net)
    loss = trainer.backward(x, y)
    once = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    trainer.backward(x, y)
    torch.testing.assert_close([p.grad for p in net.parameters()], [2 * g for g in once])
    torch.testing.assert_close(loss, 0.5 * (trainer.relax(x)[-1] - y).square().sum(-1).mean())


def test_work_of_a_machine_is_three_settlings_an_example_and_the_weights_once() -> None:
    trainer = EquilibriumPropagation(network(3, 5, 2))
    work = trainer.machine_work(10, SPEC)
    upload = sum(job.upload_bits * count for job, count in work.jobs.items())
    assert upload == (3 * 5 + 5 * 2 + 7) * 8
    assert work.analog_seconds == pytest.approx(3 * 10 * 40e-6)
    reads = sum(job.read_bits * job.drives * count for job, count in work.jobs.items())
    assert reads == pytest.approx(2 * 10 * 7 * 6)
    assert work.flops == 2 * 2 * 10 * (3 * 5 + 5 * 2)
    spread = trainer.machine_work(10, SPEC, machines=4)
    assert spread.analog_seconds == pytest.approx(work.analog_seconds)
    assert spread.programmings == 4
    assert max(job.drives for job in spread.jobs) == 3
    assert spread.conversions == work.conversions == 10 * (3 * (3 + 2) + 2 * 7)  # in at every settling, out at two


def test_work_of_an_emulation_counts_the_products_of_its_sweeps() -> None:
    trainer = EquilibriumPropagation(network(3, 5, 2), free_sweeps=4, nudged_sweeps=3)
    products = sum(k.flops * n for k, n in trainer.digital_work(10).kernels.items() if k.name == "matmul")
    assert products == 2 * 10 * (3 * (3 * 5) + 10 * 2 * (5 * 2) + 2 * (3 * 5 + 5 * 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.TransformerEncoderLayer(8, 2), r"self_attn \(MultiheadAttention\): attention multiplies three signals"),
        (nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)), r"cannot train 0 \(Embedding\): an embedding looks a row up"),
        (nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2)), r"\(LayerNorm\): a norm divides by a statistic"),
        (nn.LSTM(3, 2), r"the model \(LSTM\): a recurrent layer's weights act forward in time only"),
        (nn.GRUCell(3, 2), r"\(GRUCell\): a recurrent layer's weights"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), r"\(Conv2d\): convolutions have such an energy"),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout()), r"\(Dropout\): dropout draws another network"),
        (nn.Linear(3, 2), r"cannot train Linear: its forward pass is code"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), r"cannot train ReLU\(\): its units stay in \[0, 1\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), r"cannot train Tanh\(\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), r"cannot train Flatten"),
        (nn.Sequential(nn.Linear(3, 2), nn.Hardtanh(), nn.Linear(2, 1)), r"cannot train Hardtanh\(min_val=-1"),
        (nn.Sequential(nn.Linear(3, 2), nn.Hardtanh(0.0, 1.0)), "in turn, Linear first and last"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), "in turn, Linear first and last"),
        (nn.Sequential(), "in turn, Linear first and last"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_without_a_symmetric_energy_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        EquilibriumPropagation(model)


@pytest.mark.parametrize("shapes", NETWORKS, ids=lambda n: n.name)
def test_none_of_the_large_networks_can_be_trained(shapes: Network) -> None:
    with torch.device("meta"):
        model = shapes.model()
    with pytest.raises(TypeError, match="equilibrium propagation cannot train"):
        symmetric_layers(model)


def test_values_out_of_range_are_refused() -> None:
    net = network(3, 2)
    for beta in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"beta must lie between 0 and 1"):
            EquilibriumPropagation(net, beta=beta)
    with pytest.raises(ValueError, match="at least one sweep, got 0 and 15"):
        EquilibriumPropagation(net, free_sweeps=0)
    with pytest.raises(ValueError, match="at least one machine, got 0"):
        EquilibriumPropagation(net).machine_work(1, SPEC, machines=0)
    with pytest.raises(ValueError, match="the network has 5 units, machine 'm' has 4 cells"):
        EquilibriumPropagation(net).machine_work(1, MachineSpec(name="m", tau=1e-6, cells=4))


@pytest.mark.slow
def test_digits_are_learned() -> None:
    torch.manual_seed(0)
    data = digits.load()
    x, labels = data.train.batch(torch.arange(len(data.train)))
    x_test, labels_test = data.test.batch(torch.arange(len(data.test)))
    net = nn.Sequential(nn.Linear(64, 128), nn.Hardtanh(0.0, 1.0), nn.Linear(128, 10))
    trainer = EquilibriumPropagation(net, free_sweeps=20, nudged_sweeps=8)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(10):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            trainer.backward(x[rows].flatten(1), F.one_hot(labels[rows], 10).float())
            optimizer.step()
    right = trainer.relax(x_test.flatten(1))[-1].argmax(-1) == labels_test
    assert right.double().mean() >= 0.95
