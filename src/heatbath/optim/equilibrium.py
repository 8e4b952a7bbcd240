"""Equilibrium propagation: gradients from two relaxations of a physical network, without a backward pass.

Units s_0 = x, s_1, …, s_L, couplings W_l that act both ways, and an energy

    E(s) = Σ_l ½‖s_l‖² − Σ_l s_lᵀ (W_l s_{l−1} + b_l),     hidden units in [0, 1],     C = ½‖s_L − y‖²

Left alone the network falls to a minimum s⁰ of E; pulled at its outputs by β, to a minimum s^β of E + βC. Then

    dC(s⁰)/dθ = lim_{β→0} (1/2β) [∂E/∂θ(s^β) − ∂E/∂θ(s^{−β})],      ∂E/∂W_l = −s_l s_{l−1}ᵀ

(Scellier & Bengio 2017, Frontiers in Computational Neuroscience 11:24, arXiv 1602.05179). With both signs of β the error is
O(β²) (Laborieux et al. 2021, arXiv 2006.03824). Both states are local, so a chip can do it all. That is the limit, too:
what has no energy with symmetric couplings (attention, norms, embeddings, gates) it cannot train.

Differences from the paper: 1. the energy is ½‖s‖² on a box, whose minima are those of the paper's with a hard-sigmoid ρ;
2. the emulator minimizes layer by layer, s_l ← clip(W_l s_{l−1} + b_l + W_{l+1}ᵀ s_{l+1}), which never raises the energy, where
a chip follows its gradient; 3. both nudged phases start from the free one's end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heatbath.layers import symmetric_layers
from heatbath.machines import MachineSpec
from heatbath.work import Job, Kernel, Work, elementwise, matmul


class EquilibriumPropagation:
    """Gradients of ½‖output − target‖² of a layered network, by a free and two nudged relaxations.

    It fills `.grad`; any `torch.optim` optimizer takes the step. Prefer backpropagation on digital hardware, where a relaxation
    costs `sweeps` forward passes; on hardware that relaxes by itself each phase costs one settling time.

    Args:
        network: `nn.Sequential` of `nn.Linear` with `nn.Hardtanh(0, 1)` between them.
        beta: strength of the nudge, in (0, 1).
        free_sweeps: passes over the layers to the free minimum.
        nudged_sweeps: passes from there to a nudged one.

    Raises:
        TypeError: an architecture without such an energy; the message says which part and why.
        ValueError: a beta outside (0, 1), or no sweeps.

    >>> ep = EquilibriumPropagation(nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(0.0, 1.0), nn.Linear(3, 1)))
    >>> ep.backward(torch.ones(4, 2), torch.zeros(4, 1)).shape
    torch.Size([])
    """

    def __init__(self, network: nn.Module, *, beta: float = 0.2, free_sweeps: int = 30, nudged_sweeps: int = 15) -> None:
        self.layers = symmetric_layers(network)
        if not 0 < beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, got {beta}: above 1 the pull away from the target has no minimum")
        if free_sweeps < 1 or nudged_sweeps < 1:
            raise ValueError(f"each phase needs at least one sweep, got {free_sweeps} and {nudged_sweeps}")
        self.beta, self.free_sweeps, self.nudged_sweeps = beta, free_sweeps, nudged_sweeps

    @torch.no_grad()
    def relax(self, inputs: Tensor) -> list[Tensor]:
        """The free minimum: units of every layer, `[B, n_l]`; the last are the outputs."""
        start = [inputs.new_zeros(len(inputs), layer.out_features) for layer in self.layers]
        return self._sweep(inputs, start, self.free_sweeps)

    @torch.no_grad()
    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add gradients of the mean cost to `.grad`, as `loss.backward()` does.

        Args:
            inputs: x, `[B, I]`.
            targets: y, `[B, O]`.

        Returns:
            The mean of ½‖s_L − y‖² at the free minimum, 0-d.
        """
        free = self.relax(inputs)
        pulled = self._sweep(inputs, free, self.nudged_sweeps, targets, self.beta)
        pushed = self._sweep(inputs, free, self.nudged_sweeps, targets, -self.beta)
        scale = 1 / (2 * self.beta * len(inputs))
        for index, layer in enumerate(self.layers):
            before = [inputs if index == 0 else state[index - 1] for state in (pulled, pushed)]
            _add_gradient(layer.weight, (pushed[index].T @ before[1] - pulled[index].T @ before[0]) * scale)
            if layer.bias is not None:
                _add_gradient(layer.bias, (pushed[index] - pulled[index]).sum(0) * scale)
        return 0.5 * (free[-1] - targets).square().sum(-1).mean()

    def energy(self, inputs: Tensor, state: Sequence[Tensor]) -> Tensor:
        """E of each example, `[B]`."""
        below = [inputs, *state[:-1]]
        return sum(
            (0.5 * s.square() - s * layer(b)).sum(-1) for s, b, layer in zip(state, below, self.layers, strict=True)
        ) + inputs.new_zeros(len(inputs))

    def _sweep(
        self, inputs: Tensor, start: Sequence[Tensor], sweeps: int, targets: Tensor | None = None, beta: float = 0.0
    ) -> list[Tensor]:
        """Minimize over one layer after the other."""
        state, last = list(start), len(self.layers) - 1
        bottom = self.layers[0](inputs)  # the inputs do not move
        for _ in range(sweeps):
            for index, layer in enumerate(self.layers):
                field = bottom if index == 0 else layer(state[index - 1])
                if index < last:
                    state[index] = (field + state[index + 1] @ self.layers[index + 1].weight).clamp(0, 1)
                else:
                    state[index] = field if targets is None else (field + beta * targets) / (1 + beta)
        return state

    def digital_work(self, batch: int) -> Work:
        """What one `backward` asks of digital hardware that emulates the relaxation."""
        passes, work = self.free_sweeps + 2 * self.nudged_sweeps, Work.of(self._product(0, batch), 3)
        for index in range(1, len(self.layers)):
            work = work + Work.of(self._product(index, batch), 2 * passes)  # up, and back down
        units = sum(layer.out_features for layer in self.layers)
        return work + Work.of(elementwise(batch * units, 2), passes) + self._gradient_work(batch)

    def machine_work(self, batch: int, spec: MachineSpec, *, machines: int = 1) -> Work:
        """What one `backward` asks of machines that hold the network, and of the digital side.

        Weights are sent at every step, since the digital optimizer changes them; each example settles three times and is read
        twice; outer products are formed digitally.

        Args:
            batch: examples.
            spec: the machine; its cells are the units of the network, inputs included.
            machines: that share the examples, each with a copy of the weights.

        Raises:
            ValueError: more units than cells, or no machine.
        """
        units = sum(layer.out_features for layer in self.layers)
        cells = units + self.layers[0].in_features
        if spec.cells is not None and cells > spec.cells:
            raise ValueError(f"the network has {cells} units, machine {spec.name!r} has {spec.cells} cells")
        if machines < 1:
            raise ValueError(f"the examples need at least one machine, got {machines}")
        weights = sum(layer.weight.numel() for layer in self.layers) + units
        upload = Job(spec.name, cells, upload_bits=float(weights * (spec.matrix_bits or 32)))
        drives = -(-batch // machines)
        moved = self.layers[0].in_features + self.layers[-1].out_features
        relax = Job(  # a drive is an example: three settlings, of which the nudged two are read
            spec.name,
            cells,
            drives=drives,
            drive_bits=3.0 * moved * (spec.drive_bits or 32),
            read_bits=2.0 * units * (spec.read_bits or 32),
            settle_seconds=3 * spec.default_settle_seconds,
            conversions_in=3 * moved,
            conversions_out=2 * units,
        )
        return Work.of(upload, min(machines, batch)) + Work.of(relax, batch / drives) + self._gradient_work(batch)

    def _product(self, index: int, batch: int) -> Kernel:
        layer = self.layers[index]
        return matmul(batch, layer.in_features, layer.out_features)

    def _gradient_work(self, batch: int) -> Work:
        products = (matmul(layer.out_features, batch, layer.in_features) for layer in self.layers)
        return sum((Work.of(product, 2) for product in products), Work())


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
