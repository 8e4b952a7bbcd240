"""Laplace posteriors of one network, here and by the library laplace-torch: are they the same, and how long do they take?

    pip install --no-deps laplace-torch backpack-for-pytorch unfoldNd torchmetrics lightning-utilities
    python benchmarks/posteriors.py        writes benchmarks/results/posteriors.json

laplace-torch imports asdl, which is on no package index; a stand-in takes its place, since the backend here is BackPACK.
"""

import json
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F

import heatbath as hb
from heatbath.experiments.data import digits
from heatbath.experiments.environment import host, versions
from heatbath.experiments.models import mlp
from heatbath.samplers import fit_laplace, predict_linearized

for name in ("asdl", "asdl.fisher", "asdl.grad_maker", "asdl.gradient", "asdl.hessian", "asdl.matrices"):
    sys.modules[name] = MagicMock()
PRIOR, IMAGES = 100.0, 200


def trained(x: torch.Tensor, y: torch.Tensor) -> torch.nn.Module:
    """64-256-128-10, 200 steps of K-FAC."""
    model = mlp((64, 256, 128, 10))
    optimizer, noise = hb.KFAC(model, lr=0.1, damping=1e-3), torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = torch.randperm(len(x), generator=noise)[:128]
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    """Fit both, compare, time."""
    from importlib.metadata import version

    from laplace import Laplace
    from laplace.curvature import BackPackGGN

    torch.manual_seed(0)
    data = digits.load()
    pick = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:IMAGES]
    (x, y), (test, _) = data.train.batch(pick), data.test.tensors
    model = trained(x, y)
    start = time.perf_counter()
    ours = fit_laplace(model, [(x, y)], hb.ExactFisher(hb.Categorical()), prior=PRIOR)
    fitted = time.perf_counter()
    outputs = predict_linearized(ours, test)
    predicted = time.perf_counter()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=IMAGES)
    options = {"subset_of_weights": "all", "hessian_structure": "kron", "backend": BackPackGGN, "prior_precision": PRIOR}
    theirs = Laplace(model, "classification", **options)
    begin = time.perf_counter()
    theirs.fit(loader)
    done = time.perf_counter()
    _, covariance = theirs._glm_predictive_distribution(test)
    end = time.perf_counter()
    evidence = float(theirs.log_marginal_likelihood())
    with torch.no_grad():
        own = ours.log_evidence(-IMAGES * float(F.cross_entropy(model(x), y)))
    theirs.optimize_prior_precision(method="marglik", n_steps=2000, lr=0.1)
    result = {
        "laplace-torch": version("laplace-torch"),
        "weights": ours.parameters,
        "covariance_relative_difference": float((covariance - outputs.covariance).norm() / covariance.norm()),
        "log_evidence": {"here": own, "laplace-torch": evidence},
        "tuned_prior": {"here": ours.tuned().priors["1"], "laplace-torch": float(theirs.prior_precision)},
        "seconds": {
            "here": {"fit": fitted - start, "predict": predicted - fitted},
            "laplace-torch": {"fit": done - begin, "predict": end - done},
        },
        "versions": versions(),
        "host": host(torch.device("cpu")),
    }
    Path(__file__).with_name("results").joinpath("posteriors.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
