"""K-FAC written out slowly: loops, dense inverses, recorded tensors, no hooks. For networks that alternate Linear and tanh.

Martens & Grosse 2015 with factored Tikhonov damping, bias-corrected averages, heavy-ball momentum, decoupled weight decay and
the KL clip of Ba et al. 2017. It shares no line with the library.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Reference:
    """A trainer of `layers` (the Linears of a network with tanh between them) on cross-entropy.

    Args:
        layers: in order; trained in place.
        lr: learning rate.
        damping: λ.
        momentum: heavy-ball coefficient.
        weight_decay: decoupled.
        decay: β of the averages.
        kappa: KL clip; None: no clip.
        factor_every: steps between factors.
        refresh_every: steps between inverses.
        patience: steps spent at each interval while it grows from 1; 0: none.
        exact: damp exactly instead of factored.
    """

    layers: list[nn.Linear]
    lr: float
    damping: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: float = 0.95
    kappa: float | None = 1e-2
    factor_every: int = 10
    refresh_every: int = 10
    patience: int = 5
    exact: bool = False
    time: int = 0
    ages: int = 0
    last_factors: int | None = None
    last_refresh: int | None = None
    sums: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    inverses: dict[int, Tensor] = field(default_factory=dict)
    velocity: dict[int, Tensor] = field(default_factory=dict)

    def due(self, every: int, last: int | None) -> bool:
        length = min(every, 1 + self.time // self.patience) if self.patience else every
        return last is None or self.time >= last + length

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        inputs, outputs = [], []
        for index, layer in enumerate(self.layers):
            inputs.append(torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), 1).detach())
            x = F.linear(x, layer.weight, layer.bias)
            x.retain_grad()
            outputs.append(x)
            if index < len(self.layers) - 1:
                x = x.tanh()
        return x, inputs, outputs

    def step(self, x: Tensor, target: Tensor) -> float:
        for layer in self.layers:
            layer.zero_grad()
        logits, inputs, outputs = self.forward(x)
        loss = F.cross_entropy(logits, target)
        loss.backward()
        with torch.no_grad():
            if self.due(self.factor_every, self.last_factors):
                self._average(inputs, outputs, len(x))
                if self.due(self.refresh_every, self.last_refresh):
                    self._invert()
            self._move()
        self.time += 1
        return loss.item()

    def _average(self, inputs: list[Tensor], outputs: list[Tensor], examples: int) -> None:
        self.ages += 1
        self.last_factors = self.time
        for i, (a, y) in enumerate(zip(inputs, outputs, strict=True)):
            gamma = y.grad * examples  # gradient of each example's own loss
            batch = gamma.mT @ gamma / examples, a.mT @ a / examples
            before = self.sums.get(i, tuple(torch.zeros_like(t) for t in batch))
            self.sums[i] = tuple(self.decay * old + (1 - self.decay) * new for old, new in zip(before, batch, strict=True))

    def _invert(self) -> None:
        self.last_refresh = self.time
        for i, sums in self.sums.items():
            b, a = (s / (1 - self.decay**self.ages) for s in sums)
            identity_b, identity_a = torch.eye(len(b), dtype=b.dtype), torch.eye(len(a), dtype=a.dtype)
            if self.exact:
                full = torch.kron(b, a) + self.damping * torch.kron(identity_b, identity_a)
                self.inverses[i] = torch.linalg.inv(full)
                continue
            pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
            root = self.damping**0.5
            left, right = b + root / pi * identity_b, a + root * pi * identity_a
            self.inverses[i] = torch.linalg.inv(torch.kron(left, right))

    def _move(self) -> None:
        gradients = [torch.cat((layer.weight.grad, layer.bias.grad[:, None]), 1) for layer in self.layers]
        natural = [(self.inverses[i] @ g.flatten()).reshape(g.shape) for i, g in enumerate(gradients)]
        scale = 1.0
        if self.kappa is not None:
            reach = self.lr / (1 - self.momentum)
            predicted = sum((v * g).sum().item() for v, g in zip(natural, gradients, strict=True)) * reach**2
            scale = min(1.0, (self.kappa / abs(predicted)) ** 0.5)
        for i, layer in enumerate(self.layers):
            self.velocity[i] = self.momentum * self.velocity.get(i, torch.zeros_like(natural[i])) + scale * natural[i]
            joint = torch.cat((layer.weight, layer.bias[:, None]), 1)
            joint = joint * (1 - self.lr * self.weight_decay) - self.lr * self.velocity[i]
            layer.weight.copy_(joint[:, :-1])
            layer.bias.copy_(joint[:, -1])
