"""Linear layers: y = W x + b at every position of the input.

An input `[B, *positions, I]` is B examples with S = ∏ positions uses of the same weight; a 2-D input has S = 1 and a
1-D input is one example. The per-example gradient is Σ_s g_s [x_s; 1]ᵀ (Martens & Grosse 2015, arXiv 1503.05671).

Graph networks give a linear layer a row for each node, `[nodes, I]`, whatever graph it belongs to, so the sum over rows is that
over nodes of all graphs. Nodes are then uses of a shared weight (*expand*), A is their mean, and B has the scale of the
loss as long as D is the number of its terms: graphs where the model pools nodes itself, nodes where it classifies nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from heatbath.layers.affine import Affine, AffineRule, check_gradient, is_plain, trained_name
from heatbath.layers.base import Call, Rows
from heatbath.layers.foreign import loaded_class

FOREIGN = {  # the same layer under other names; true where the weight is stored [I, O]
    ("torch_geometric.nn.dense.linear", "Linear"): False,
    ("transformers.pytorch_utils", "Conv1D"): True,
}


@dataclass(frozen=True)
class LinearRule(AffineRule):
    """`nn.Linear` with any leading dimensions, and its like in PyTorch Geometric and Transformers (`Conv1D`): `[1, O, I]`.

    The output projection of `nn.MultiheadAttention` is left alone: attention reads its weight without ever calling it.
    """

    @property
    def is_bilinear(self) -> bool:
        return True

    def supports(self, module: nn.Module) -> bool:
        if is_plain(module, nn.Linear):
            return not isinstance(module, NonDynamicallyQuantizableLinear)
        return _inputs_first(module) is not None

    def positionwise(self, module: nn.Module) -> bool:
        return True

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        rows, columns = module.get_parameter("weight").shape
        inputs_first = bool(_inputs_first(module))
        if inputs_first:
            rows, columns = columns, rows
        weight, bias = trained_name(module, "weight"), trained_name(module, "bias")
        return (Affine(weight, bias, (1, rows, columns), kernel=1 if inputs_first else None),)

    def rows(self, module: nn.Module, call: Call, grad: Tensor) -> tuple[Rows, ...]:
        x = next(iter((*call.args, *call.kwargs.values()))).detach()  # "input" here, "x" there
        (affine,) = self.maps(module)
        check_gradient(module, grad, (*x.shape[:-1], affine.shape[1]))
        return tuple(Rows(affine.homogeneous(positions(x)), positions(grad)) for affine in self.trained(module))


def positions(x: Tensor) -> Tensor:
    """`[B, *positions, I]` (or `[I]`, one example) as `[1, B, S, I]`."""
    batch = x.shape[0] if x.ndim > 1 else 1
    return x.reshape(1, batch, math.prod(x.shape[1:-1]), x.shape[-1])


def _inputs_first(module: nn.Module) -> bool | None:
    """Whether a foreign linear layer stores its weight `[I, O]`; None where the module is none."""
    for (path, name), inputs_first in FOREIGN.items():
        kind = loaded_class(path, name)
        if kind is not None and is_plain(module, kind):
            return inputs_first
    return None
