"""How one kind of layer becomes outer products.

Every layer, whatever its kind, is one or more *blocks*. A block is a matrix W `[P, O, I]` of P independent places (the
groups of a convolution, the heads of nothing: usually P = 1) whose per-example gradient is a sum over shared positions s of
g_{b,s} a_{b,s}ᵀ. So a rule lands every layer in rows a `[P, B, S, I]` and g `[P, B, S, O]`; curvature turns rows into factors
A = Σ a aᵀ and B = Σ g gᵀ without knowing any layer. A bias is the homogeneous coordinate: a 1 appended to a.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from heatbath.layers.replay import RandomState


@dataclass(frozen=True)
class Block:
    """One matrix of a layer.

    Args:
        parameters: names of the module's own parameters inside this block, for example ("weight", "bias").
        places: P, how many independent matrices it stacks.
        domain: (O, I), the shape of one of them, homogeneous coordinate included.
        diagonal_inputs: the A factor is diagonal (one-hot inputs), so it is held as a diagonal.
        gradient_inputs: the rows' inputs are gradients of examples and their outputs a constant 1 (normalization layers), so
            O = 1 and the A factor alone is the block's Fisher matrix.
    """

    parameters: tuple[str, ...]
    places: int
    domain: tuple[int, int]
    diagonal_inputs: bool = False
    gradient_inputs: bool = False


@dataclass(frozen=True, eq=False)
class OneHot:
    """Rows that are one-hot vectors, held as indices.

    Args:
        indices: int64 `[P, B, S]`; an index below 0 stands for a row of zeros.
        size: I, the length of the vectors.
    """

    indices: Tensor
    size: int


@dataclass(frozen=True, eq=False)
class Rows:
    """What one backward pass says about one block.

    Args:
        inputs: a, `[P, B, S, I]`, or `OneHot`.
        outputs: g, gradients of the loss at the layer's outputs, `[P, B, S, O]`.
        summed: positions already summed into each row (normalization layers), which a count of loss terms must not miss.
        empty: for each place, how many of its B · S rows are zeros that only fill up the shape (sequences of unequal
            lengths), which a count of rows must leave out; () if none are.
    """

    inputs: Tensor | OneHot
    outputs: Tensor
    summed: int = 1
    empty: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Call:
    """What a module was called with, as a forward hook sees it."""

    args: tuple[Any, ...]  # Any: modules take what they like
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # Any: the same
    output: Any = None  # Any: a tensor, or a tuple for attention and recurrent modules
    training: bool | None = None  # the module's mode during the call; None: as it is now
    random: RandomState | None = None  # before the call, for rules with `draws`
    chained: bool = False  # outputs come from several graph nodes: a gradient at one may include what flows through another

    def argument(self, position: int, name: str) -> Any:  # Any: as above
        """One argument, given by position or by name; None where the caller left it out."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name)

    def transposed(self) -> Call:
        """The same call with the first two dimensions of its input exchanged."""
        args = (self.argument(0, "input").transpose(0, 1), *self.args[1:])
        return replace(self, args=args, kwargs={name: x for name, x in self.kwargs.items() if name != "input"})


class LayerRule(ABC):
    """Stateless knowledge about one family of layers.

    `rows` is called during the backward pass, once per forward call of the module, and must not touch `.grad`. A module
    with a rule owns every parameter its blocks name, children's too (dotted names): nobody treats those children again.
    """

    @abstractmethod
    def supports(self, module: nn.Module) -> bool:
        """Whether this rule treats `module` exactly; False sends its parameters to the fallback."""

    @abstractmethod
    def blocks(self, module: nn.Module) -> tuple[Block, ...]:
        """The matrices this module is made of; only of parameters that require gradients."""

    def outputs(self, module: nn.Module, output: Any) -> Tensor | tuple[Tensor, ...]:  # Any: as in Call
        """What of a module's output needs its gradient captured.

        The output itself where it is one tensor; else those of its tensors that require gradients, as a tuple. Then `rows`
        is given their gradients, once all have arrived, as a sequence in the same order with None for an unused tensor.
        """
        return output

    def reuses(self, module: nn.Module, index: int) -> bool:
        """Whether the module itself computes on with the tensor that its output number `index` is a view of."""
        return False

    @property
    def is_bilinear(self) -> bool:
        """Whether an output is a weight applied linearly to the one input, plus a bias: then `product_rows` holds."""
        return False

    def draws(self, module: nn.Module) -> bool:
        """Whether a call draws random numbers that `rows` has to repeat; then `Call.random` says from where."""
        return False

    def positionwise(self, module: nn.Module) -> bool:
        """Whether the module does the same at every position, so that positions may come before examples in its input."""
        return False

    @abstractmethod
    def rows(self, module: nn.Module, call: Call, grad: Any) -> tuple[Rows, ...]:  # Any: a tensor, or several as above
        """Rows of each block from a call and the gradient at its output (same order as `blocks`)."""

    @abstractmethod
    def pack(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Tensors shaped like the module's parameters (its gradients, say) as one `[P, O, I]` per block."""

    @abstractmethod
    def unpack(self, module: nn.Module, packed: Sequence[Tensor]) -> dict[str, Tensor]:
        """The inverse of `pack`: one `[P, O, I]` per block to tensors shaped like the module's parameters."""
