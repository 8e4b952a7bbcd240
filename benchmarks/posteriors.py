"""Laplace posteriors of two small networks, here and by the library laplace-torch: are they the same?

    pip install --no-deps laplace-torch backpack-for-pytorch unfoldNd torchmetrics lightning-utilities
    python benchmarks/posteriors.py        writes benchmarks/results/posteriors.json

The precision of the prior is of the size of the data's curvature; far above it, any two libraries agree with the prior and so
with each other. laplace-torch imports asdl, which is on no package index; a stand-in takes its place, since the backend here is
BackPACK.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb
from heatbath.experiments.environment import host, versions
from heatbath.samplers import fit_laplace, predict_linearized

PRIOR = 2.5


def network(*, bias: bool) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """3-7-6-4 at random weights; 40 inputs, their classes, and 15 further inputs; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = ((3, 7), (7, 6), (6, 4))
        parts = [part for i, o in sizes for part in (nn.Linear(i, o, bias=bias, dtype=torch.float64), nn.Tanh())]
        x, further = torch.randn(40, 3, dtype=torch.float64), torch.randn(15, 3, dtype=torch.float64)
        return nn.Sequential(*parts[:-1]).eval(), x, torch.randint(0, 4, (40,)), further


def compare(*, bias: bool) -> dict[str, Any]:
    """Both libraries on one network."""
    from laplace import Laplace
    from laplace.curvature import BackPackGGN

    model, x, y, further = network(bias=bias)
    ours = fit_laplace(model, [(x, y)], hb.ExactFisher(hb.Categorical()), prior=PRIOR)
    covariance = predict_linearized(ours, further).covariance
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    options: dict[str, Any] = {"subset_of_weights": "all", "hessian_structure": "kron", "backend": BackPackGGN}
    theirs = Laplace(model, "classification", prior_precision=PRIOR, **options)
    theirs.fit(loader)
    _, other = theirs._glm_predictive_distribution(further)
    evidence = float(theirs.log_marginal_likelihood().detach())
    with torch.no_grad():
        own = ours.log_evidence(-len(x) * float(F.cross_entropy(model(x), y)))
    theirs.optimize_prior_precision(method="marglik", n_steps=4000, lr=0.05)
    return {
        "prior": PRIOR,
        "largest_curvature": [float(block.spectrum.values.max()) for block in ours.blocks],
        "covariance_relative_difference": float((covariance - other).norm() / other.norm()),
        "log_evidence": {"here": own, "laplace-torch": evidence},
        "tuned_prior": {"here": ours.tuned().priors["0"], "laplace-torch": float(theirs.prior_precision)},
    }


def main() -> None:
    """Compare with and without biases."""
    from importlib.metadata import version

    for name in ("asdl", "asdl.fisher", "asdl.grad_maker", "asdl.gradient", "asdl.hessian", "asdl.matrices"):
        sys.modules[name] = MagicMock()
    torch.set_default_dtype(torch.float64)
    result = {
        "laplace-torch": version("laplace-torch"),
        "without biases": compare(bias=False),
        "with biases": compare(bias=True),
        "versions": versions(),
        "host": host(torch.device("cpu")),
    }
    Path(__file__).with_name("results").joinpath("posteriors.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
