"""A second library as judge: nngeometry (George 2021), its K-FAC, EKFAC and block-diagonal Fisher matrices.

It derives the categorical Fisher from a triangular factor (Tanabe & Sagae 1992), hooks modules and unfolds convolutions itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from heatbath.curvature import Bernoulli, Categorical, ExactFisher, Gaussian, Likelihood
from heatbath.optim import KFAC
from heatbath.solvers import Eigen
from tests.curvature.truth import error, factors, fill
from tests.laws import noise
from tests.zoo import PLAIN

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("nngeometry")
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatBlockDiag, PMatEKFAC, PMatKFAC


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    """It allocates by the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mlp(outputs: int = 3) -> nn.Sequential:
    return fill(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, outputs)))


def cnn(outputs: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1))
    return fill(nn.Sequential(conv, nn.Tanh(), nn.Conv2d(3, 2, 2, bias=False), nn.Flatten(), nn.Linear(4, outputs)))


NETWORKS: dict[str, tuple[Callable[[int], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (mlp, (6, 4)),
    "cnn": (cnn, (6, 2, 5, 4)),
}
LIKELIHOODS: dict[str, tuple[Likelihood, int, int]] = {  # name of theirs, ours, outputs, D over N
    "classif_logits": (Categorical(), 3, 1),
    "classif_binary_logits": (Bernoulli(), 1, 1),
    "regression": (Gaussian(1.0), 3, 3),  # theirs sums over outputs, PyTorch's mean divides by them too
}
every_case = pytest.mark.parametrize("network", NETWORKS)
every_likelihood = pytest.mark.parametrize("variant", LIKELIHOODS)


def case(network: str, variant: str) -> tuple[nn.Sequential, Tensor, Likelihood, int]:
    (make, shape), (likelihood, outputs, divided) = NETWORKS[network], LIKELIHOODS[variant]
    return make(outputs), noise(*shape), likelihood, divided


def theirs(model: nn.Module, x: Tensor, variant: str, representation: type) -> object:
    loader = DataLoader(TensorDataset(x.clone()), batch_size=4)
    return FIM(model, loader, representation, variant)


def by_layer(model: nn.Sequential, blocks: dict[object, Tensor]) -> dict[str, Tensor]:
    """Their blocks under our names: both list layers in order."""
    names = [name for name, module in model.named_children() if isinstance(module, nn.Linear | nn.Conv2d)]
    return dict(zip(names, blocks.values(), strict=True))


def joined(module: nn.Module, block: Tensor) -> Tensor:
    """A block ordered as weights, then biases, in the order of [W b]."""
    out, inputs = module.weight.shape[0], module.weight[0].numel()
    order = torch.arange(out * inputs).reshape(out, inputs)
    if module.bias is not None:
        order = torch.cat((order, out * inputs + torch.arange(out)[:, None]), 1)
    return block[order.flatten()][:, order.flatten()]


@every_likelihood
@every_case
def test_exact_factors_are_those_of_nngeometry(network, variant):
    """B ⊗ A of each layer; how a number is split between the two sides is nobody's business."""
    model, x, likelihood, divided = case(network, variant)
    blocks = by_layer(model, theirs(model, x, variant, PMatKFAC).data)
    optimizer = KFAC(model, lr=0.0, damping=1.0, momentum=0.0, policy=replace(PLAIN, fisher=ExactFisher(likelihood)))
    optimizer.observe(model(x)).mean().backward()
    found = factors(optimizer)
    assert found.keys() == blocks.keys()
    for name, (a, g) in blocks.items():
        assert error(divided * found[name].dense()[0], torch.kron(g, a)) < 1e-13


def corrected(model: nn.Module, x: Tensor, likelihood: Likelihood) -> dict[str, Tensor]:
    """EKFAC blocks: the first pass finds the basis, the second the moments along it."""
    policy = replace(PLAIN, fisher=ExactFisher(likelihood), corrected=True)
    optimizer = KFAC(model, lr=1e-300, damping=1.0, momentum=0.0, policy=policy, solver=Eigen())
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.observe(model(x)).mean().backward()
        optimizer.step()
    optimizer.capture.detach()
    return {stack.places[0].site.name: stack.corrected.dense()[0].detach() for stack in optimizer.stacks}


@every_likelihood
@every_case
def test_law_13_against_the_block_diagonal_fisher_and_the_ekfac_of_nngeometry(network, variant):
    """Corrected blocks have the trace of the Fisher block, lie no further from it than K-FAC's, and are theirs."""
    model, x, likelihood, divided = case(network, variant)
    truth = by_layer(model, theirs(model, x, variant, PMatBlockDiag).data)
    kfac = by_layer(model, theirs(model, x, variant, PMatKFAC).data)
    other = theirs(model, x, variant, PMatEKFAC)
    other.update_diag(DataLoader(TensorDataset(x.clone()), batch_size=4))
    axes, values = other.data
    for name, block in corrected(model, x, likelihood).items():
        module, block = model.get_submodule(name), divided * block
        exact = joined(module, truth[name])
        assert block.trace().item() == pytest.approx(exact.trace().item(), rel=1e-12)
        assert (block - exact).norm() <= (torch.kron(*reversed(kfac[name])) - exact).norm() + 1e-12 * exact.norm()
        (of_a, of_g), value = by_layer(model, axes)[name], by_layer(model, values)[name]
        basis = torch.kron(of_g, of_a)
        assert error(block, basis @ torch.diag(value.flatten()) @ basis.mT) < 1e-10
