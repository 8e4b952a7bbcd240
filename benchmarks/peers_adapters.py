"""One face for several curvature optimizers, so that `peers.py` can put the same question to each.

Every adapter follows its library's own documentation: the constructor it shows, the order of calls it shows, its own
state_dict. What is set differently from the defaults is written in `settings` and ends up in the record. Momentum is off
everywhere, so that one step shows one direction.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Batch = tuple[Tensor, Tensor]
Forward = Callable[[nn.Module, Tensor], Tensor]
LR, DAMPING = 0.01, 1e-3


def call(model: nn.Module, x: Tensor) -> Tensor:
    """The ordinary forward pass."""
    outputs: Tensor = model(x)
    return outputs


class Adapter(ABC):
    """An optimizer on a model.

    Args:
        model: the model.
        every: steps between factors, and between what is made of them.
        micro_batches: backward passes per step.
        scaler: a GradScaler that the loss goes through.
    """

    name: ClassVar[str]
    package: ClassVar[str]  # as `importlib.metadata` knows it
    install: ClassVar[str]
    settings: ClassVar[str]
    dtype: ClassVar[torch.dtype] = torch.float64
    scales: ClassVar[bool] = True  # whether the user calls backward, so that a GradScaler can be used
    accumulates: ClassVar[bool] = True
    wraps: ClassVar[bool] = True  # whether processes are joined by DistributedDataParallel, not by the library alone
    settling: ClassVar[int] = 100  # steps until what it holds no longer shows how it began

    optimizer: torch.optim.Optimizer

    def __init__(
        self, model: nn.Module, *, every: tuple[int, int] = (1, 1), micro_batches: int = 1, scaler: Any = None
    ) -> None:
        self.model, self.scaler = model, scaler
        self.modules = dict(model.named_modules())
        self.build(model, every=every, micro_batches=micro_batches)

    @abstractmethod
    def build(self, model: nn.Module, *, every: tuple[int, int], micro_batches: int) -> None: ...

    @classmethod
    def version(cls) -> str | None:
        """None where it is not installed."""
        try:
            return version(cls.package)
        except PackageNotFoundError:
            return None

    @classmethod
    def distributed(cls, model: nn.Module) -> Adapter:
        """On a model that DistributedDataParallel wraps, in the order the library asks for."""
        return cls(DistributedDataParallel(model))

    def step(self, batches: Sequence[Batch], *, between: Callable[[], object] | None = None, forward: Forward = call) -> None:
        """One update from one or more micro-batches; `between` is called before each backward pass and before the update."""
        self.optimizer.zero_grad()
        for x, y in batches:
            loss = F.cross_entropy(forward(self.model, x), y) / len(batches)
            if between is not None:
                between()
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if between is not None:
            between()
        self.gradients = {name: None if p.grad is None else p.grad.clone() for name, p in self.model.named_parameters()}
        self.update()

    def update(self) -> None:
        """Move the parameters."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def rate(self, lr: float) -> None:
        """Set the learning rate; 0 lets averages settle without moving anything."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def block(self, name: str) -> Tensor | None:
        """Curvature of a layer's weight as a matrix `[O·I, O·I]`, up to a factor; None where it has none of this kind."""
        return None

    def curved(self, name: str) -> bool | None:
        """Whether a module has curvature of its own; None where the library does not think in modules."""
        return None

    def unclipped(self) -> Adapter | None:
        """The same with its clip switched off; None where it has no clip."""
        return None

    def save(self) -> dict[str, Any]:
        """What its documentation says to save, beside the model."""
        return {"optimizer": self.optimizer.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(saved["optimizer"])


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Left ⊗ right, acting on weights `[O, I]` stored row by row."""
    return torch.kron(left.double().contiguous(), right.double().contiguous())


class Heatbath(Adapter):
    """hb.KFAC."""

    name, package, install = "heatbath", "heatbath", "pip install -e ."
    settings = "KFAC(model, lr=0.01, damping=1e-3, momentum=0), factors and inverses at every step"
    clip: Any = None

    def build(self, model: nn.Module, *, every: tuple[int, int], micro_batches: int) -> None:
        import heatbath as hb

        trust = {} if self.clip is None else {"trust": self.clip}
        policy = hb.Policy(factor_every=every[0], refresh_every=every[1], patience=0, **trust)
        self.optimizer = hb.KFAC(model, lr=LR, damping=DAMPING, momentum=0.0, policy=policy)

    @classmethod
    def distributed(cls, model: nn.Module) -> Adapter:
        found = cls(model)
        found.model = DistributedDataParallel(model)
        return found

    def block(self, name: str) -> Tensor | None:
        for site in self.optimizer.sites:
            if site.name == name:
                pieces = [stack.mean.dense()[place.slice] for stack, place in self.optimizer.layout.places[id(site)]]
                return torch.block_diag(*(matrix for piece in pieces for matrix in piece))
        return None

    def curved(self, name: str) -> bool | None:
        return name in {site.name for site in self.optimizer.sites}

    def unclipped(self) -> Adapter | None:
        from heatbath.optim.trust import Unclipped

        return type("Unclipped", (Heatbath,), {"clip": Unclipped()})(self.model)


class KfacPytorch(Adapter):
    """KFACPreconditioner in front of SGD, as its README shows."""

    name, package, install = "kfac-pytorch", "kfac_pytorch", "pip install . in a clone of github.com/gpauloski/kfac_pytorch"
    settings = (
        "KFACPreconditioner(model, damping=1e-3, inv_dtype that of the parameters), other values default, before SGD(lr=0.01)"
    )
    settling = 600  # its average starts at the identity and forgets it as 0.95ᵏ; output factors are as small as 1e-9
    options: ClassVar[dict[str, Any]] = {}

    def build(self, model: nn.Module, *, every: tuple[int, int], micro_batches: int) -> None:
        from kfac.preconditioner import KFACPreconditioner

        options: dict[str, Any] = {"factor_update_steps": every[0], "inv_update_steps": every[1], **self.options}
        options |= {
            "accumulation_steps": micro_batches,
            "inv_dtype": next(model.parameters()).dtype,
            "damping": DAMPING,
            "lr": LR,
        }
        scale = None if self.scaler is None else self.scaler.get_scale
        self.preconditioner = KFACPreconditioner(model, grad_scaler=scale, **options)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def update(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.preconditioner.step()
        super().update()

    def _layer(self, name: str) -> Any:
        return self.preconditioner._layers.get(self.modules[name], (None, None))[1]

    def block(self, name: str) -> Tensor | None:
        layer = self._layer(name)
        return None if layer is None else kronecker(layer.g_factor, layer.a_factor)

    def curved(self, name: str) -> bool | None:
        return self._layer(name) is not None

    def unclipped(self) -> Adapter | None:
        return type("Unclipped", (KfacPytorch,), {"options": {"kl_clip": None}})(self.model)

    def save(self) -> dict[str, Any]:
        return {**super().save(), "preconditioner": self.preconditioner.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        super().load(saved)
        self.preconditioner.load_state_dict(saved["preconditioner"])


class Asdl(Adapter):
    """KfacGradientMaker, which runs forward and backward itself, in front of SGD, as its README shows."""

    name, package, install = "ASDL", "asdfghjkl", "pip install --no-deps asdfghjkl"
    settings = (
        "KfacGradientMaker(model, PreconditioningConfig(data_size=B, damping=1e-3, ema_decay=1), fisher_type='fisher_emp') "
        "before SGD(lr=0.01); torch.cuda.nvtx.range replaced, since it raises without CUDA"
    )
    scales = accumulates = wraps = False
    settling = 20  # it averages nothing here

    def build(self, model: nn.Module, *, every: tuple[int, int], micro_batches: int) -> None:
        torch.cuda.nvtx.range = _unmarked
        from asdl.precondition import KfacGradientMaker, PreconditioningConfig

        config = PreconditioningConfig(
            data_size=1, damping=DAMPING, ema_decay=1.0, curvature_upd_interval=every[0], preconditioner_upd_interval=every[1]
        )
        self.maker = KfacGradientMaker(model, config, fisher_type="fisher_emp")
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step(self, batches: Sequence[Batch], *, between: Callable[[], object] | None = None, forward: Forward = call) -> None:
        self.optimizer.zero_grad()
        ((x, y),) = batches
        self.maker.config.data_size = len(x)
        if between is not None:
            between()
        outputs = self.maker.setup_model_call(forward, self.model, x)
        self.maker.setup_loss_call(F.cross_entropy, outputs, y)
        self.maker.forward_and_backward()
        if between is not None:
            between()
        self.gradients = {name: "replaced within forward_and_backward()" for name, _ in self.model.named_parameters()}
        self.update()

    def block(self, name: str) -> Tensor | None:
        factors = getattr(getattr(self.modules[name], "fisher", None), "kron", None)
        return None if factors is None else kronecker(factors.B, factors.A)

    def curved(self, name: str) -> bool | None:
        return getattr(self.modules[name], "fisher", None) is not None

    def save(self) -> dict[str, Any]:
        return {**super().save(), "maker": self.maker.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        super().load(saved)
        self.maker.load_state_dict(saved["maker"])


@contextlib.contextmanager
def _unmarked(*args: object, **kwargs: object) -> Iterator[None]:
    """In place of the profiler's ranges, which PyTorch without CUDA does not have."""
    yield


class Singd(Adapter):
    """SINGD, a torch optimizer that takes the model."""

    name, package, install = "SINGD", "singd", "pip install --no-deps singd einconv"
    settings = "SINGD(model, lr=0.01, damping=1e-3, momentum=0, T=1), other values default"
    wraps = False
    settling = 300

    def build(self, model: nn.Module, *, every: tuple[int, int], micro_batches: int) -> None:
        from singd.optim.optimizer import SINGD

        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        self.optimizer = SINGD(model, lr=LR, damping=DAMPING, momentum=0.0, T=every[1], init_grad_scale=scale)
        self._first: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self) -> None:
        if not self._first:  # K = C = I at the start, where Kᵀ A K and Cᵀ B C are the factors themselves
            inputs, outputs = self.optimizer.H_Ks, self.optimizer.H_Cs
            self._first = {name: (outputs[name].to_dense(), inputs[name].to_dense()) for name in inputs}
        super().update()

    def block(self, name: str) -> Tensor | None:
        return kronecker(*self._first[name]) if name in self._first else None

    def curved(self, name: str) -> bool | None:
        return name in self.optimizer.module_names.values()


class HeavyBall(Adapter):
    """SOAP, the curvature optimizer its README shows; no K-FAC, so it has no layers and no factors to compare."""

    name, package, install = "HeavyBall", "heavyball", "pip install --no-deps heavyball opt_einsum"
    settings = "SOAP(model.parameters(), lr=0.01), not compiled, float32 (its preconditioner takes no other)"
    dtype = torch.float32
    settling = 300

    def build(self, model: nn.Module, *, every: tuple[int, int], micro_batches: int) -> None:
        import heavyball

        heavyball.utils.compile_mode = None
        self.optimizer = heavyball.SOAP(model.parameters(), lr=LR, precondition_frequency=every[1])


PEERS: tuple[type[Adapter], ...] = (Heatbath, KfacPytorch, Asdl, Singd, HeavyBall)
