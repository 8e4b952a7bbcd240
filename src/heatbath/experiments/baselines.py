"""First-order and other second-order optimizers to compare with, one function each, from torch or from a package of its own.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) is for the weight matrices between hidden layers and, as
there, for the filters of convolutions, which it sees as matrices `[O, I·K]`; the first and the last weight of a network,
embeddings and everything else go to AdamW. One learning rate serves both, since Muon's updates are scaled to the size of
AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4).

SOAP (Vyas et al. 2024, arXiv 2409.11321) comes from the package `pytorch_optimizer`, SINGD (Lin et al. 2023, arXiv 2312.05705)
from `singd`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from heatbath.costs.count import UPDATES, muon_work
from heatbath.experiments.experiment import Hyper
from heatbath.work import Work, update

NEWTON_SCHULZ_STEPS = 5  # torch.optim.Muon's default
PACKAGES = {"soap": "pytorch_optimizer", "singd": "singd"}  # what must be installed for which optimizer


def sgd(model: nn.Module, h: Hyper) -> torch.optim.Optimizer:
    """SGD with heavy-ball momentum; weight decay is an L2 term, which for SGD is the same."""
    return torch.optim.SGD(trainable(model), lr=h.lr, momentum=h.momentum, weight_decay=h.weight_decay)


def adam(model: nn.Module, h: Hyper) -> torch.optim.Optimizer:
    """Adam."""
    return torch.optim.Adam(trainable(model), lr=h.lr, betas=_betas(h), weight_decay=h.weight_decay)


def adamw(model: nn.Module, h: Hyper) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(trainable(model), lr=h.lr, betas=_betas(h), weight_decay=h.weight_decay)


def nadamw(model: nn.Module, h: Hyper) -> torch.optim.Optimizer:
    """Adam with Nesterov's momentum and decoupled weight decay."""
    return torch.optim.NAdam(
        trainable(model), lr=h.lr, betas=_betas(h), weight_decay=h.weight_decay, decoupled_weight_decay=True
    )


def muon(model: nn.Module, h: Hyper) -> torch.optim.Optimizer:
    """Muon for hidden matrices and filters, AdamW for the rest; momentum is Muon's, AdamW's β₁ stays 0.9.

    Gradients of filters are handed on to their matrices as they arrive, so the filters' own `.grad` stays None.

    Raises:
        ValueError: this torch has no Muon, or the model no hidden matrix.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"muon needs torch 2.9 or newer, this is {torch.__version__}: upgrade it, or choose another optimizer")
    hidden = hidden_matrices(model)
    if not hidden:
        raise ValueError("muon needs a weight matrix or filter between the first and the last, this model has none: use adamw")
    chosen = {id(p) for p in hidden}
    rest = [p for p in trainable(model) if id(p) not in chosen]
    matrices = [_as_matrix(p) for p in hidden]
    parts = [
        torch.optim.Muon(matrices, lr=h.lr, momentum=h.momentum, weight_decay=h.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=h.lr, betas=(0.9, h.square_decay), weight_decay=h.weight_decay),
    ]
    return Parts(
        parts,
        step_work=sum((muon_work(p.shape, NEWTON_SCHULZ_STEPS) for p in matrices), _adamw_work(sum(p.numel() for p in rest))),
    )


def soap(model: nn.Module, h: Hyper) -> torch.optim.Optimizer:
    """SOAP with its package's defaults but for what `Hyper` holds; its work is not counted."""
    made: torch.optim.Optimizer = _package("soap").SOAP(trainable(model), lr=h.lr, betas=_betas(h), weight_decay=h.weight_decay)
    return made


def singd(model: nn.Module, h: Hyper) -> torch.optim.Optimizer:
    """SINGD with dense structures and its package's defaults but for what `Hyper` holds; its work is not counted.

    It treats linear layers and convolutions, and would leave the rest untrained: AdamW at the same rate takes that over.
    """
    whole = trainable(model)
    _package("singd")
    optimizer = importlib.import_module("singd.optim.optimizer").SINGD
    dense = importlib.import_module("singd.structures.dense").DenseMatrix
    main = optimizer(
        model, lr=h.lr, damping=h.damping, momentum=h.momentum, weight_decay=h.weight_decay, warn_unsupported=False
    )
    treated = {id(p) for group in main.param_groups for p in group["params"]}
    rest = [p for p in whole if id(p) not in treated]
    parts = [main, *([torch.optim.AdamW(rest, lr=h.lr, weight_decay=h.weight_decay)] if rest else [])]
    return Parts(parts, to_plain=_without_classes, from_plain=lambda state: _with_class(state, dense))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to train.

    Raises:
        ValueError: there are none.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameters: nothing to optimize")
    return parameters


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weight matrices and filters of convolutions but the first and the last, in the order in which the model lists them."""
    embedded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters()}
    filters = {id(m.weight) for m in model.modules() if isinstance(m, _ConvNd)}
    weights = [p for p in trainable(model) if p.ndim >= 2 and id(p) not in embedded]
    return [p for p in weights[1:-1] if p.ndim == 2 or id(p) in filters]


def _as_matrix(weight: nn.Parameter) -> nn.Parameter:
    """A matrix as it is; filters `[O, I, *K]` as a matrix `[O, I·K]` in the same memory, which takes over their gradients."""
    if weight.ndim == 2:
        return weight
    matrix = nn.Parameter(weight.detach().view(len(weight), -1))

    def hand_on(weight: Tensor) -> None:
        assert weight.grad is not None
        grad = weight.grad.reshape(matrix.shape)
        matrix.grad = grad if matrix.grad is None else matrix.grad + grad
        weight.grad = None

    weight.register_post_accumulate_grad_hook(hand_on)
    return matrix


class Parts(torch.optim.Optimizer):
    """Several optimizers, each with parameters of its own, that act as one.

    Args:
        parts: whose parameter groups are shared, not copied, so that a scheduler reaches them.
        step_work: of one step of all of them; None: not counted.
        to_plain: makes a part's state one of tensors and plain Python, which is all that a checkpoint may hold.
        from_plain: its inverse.
    """

    def __init__(
        self,
        parts: list[torch.optim.Optimizer],
        *,
        step_work: Work | None = None,
        to_plain: Callable[[Any], Any] = lambda state: state,  # Any: a state
        from_plain: Callable[[Any], Any] = lambda state: state,  # Any: a state
    ) -> None:
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self.parts, self.step_work, self.steps = parts, step_work, 0
        self.to_plain, self.from_plain = to_plain, from_plain
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @property
    def work(self) -> Work | None:
        """Everything asked of hardware so far; None where it is not counted."""
        return None if self.step_work is None else self.step_work * self.steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # Any: torch's own signature
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        self.steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:  # Any: as torch's
        """States of all parts."""
        return {"parts": [self.to_plain(part.state_dict()) for part in self.parts], "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: as torch's
        """Restore `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(self.from_plain(state))
        self.steps = state_dict["steps"]
        self._join()  # loading gave the parts new groups


def _without_classes(value: Any) -> Any:  # Any: a state
    """A state whose structured matrices are written as `{"dense": tensor}`."""
    if isinstance(value, dict):
        return {key: _without_classes(item) for key, item in value.items()}
    return {"dense": value.to_dense()} if hasattr(value, "from_dense") else value


def _with_class(value: Any, dense: type) -> Any:  # Any: a state
    """The inverse of `_without_classes`."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dense"}:
        return dense(value["dense"])
    return {key: _with_class(item, dense) for key, item in value.items()}


def check_installed(optimizer: str) -> None:
    """See that the package of an optimizer is there, before any work.

    Raises:
        ValueError: it is not.
    """
    if optimizer in PACKAGES:
        _package(optimizer)


def _package(optimizer: str) -> Any:  # Any: a module
    name = PACKAGES[optimizer]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{optimizer} needs the package {name}, which is not installed: pip install {name}") from error


def _betas(h: Hyper) -> tuple[float, float]:
    return h.momentum, h.square_decay


def _adamw_work(numbers: int) -> Work:
    return Work.of(update(numbers, *UPDATES["AdamW"]))
