"""Whether predicted probabilities mean what they say, on labelled examples.

With p [N, C] the predicted probabilities, k the most probable class and c = p_k the confidence,

    NLL    mean of −log p(label), in nats
    Brier  mean of Σ_c (p_c − [c = label])²                                   (Brier 1950)
    ECE    Σ_bins (n_bin/N) |accuracy(bin) − mean confidence(bin)|            (Guo et al. 2017, arXiv 1706.04599)

over equal bins of the confidence. The ECE of few examples is biased upwards, perfect calibration included: by about
√(2/π) Σ_bins √(n_bin c(1 − c))/N, which is given beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """How good and how honest predictions are.

    Args:
        accuracy: share of examples whose most probable class is the label.
        nll: in nats.
        brier: from 0 to 2.
        ece: expected calibration error.
        chance: ECE that perfectly calibrated predictions of these confidences have by chance.
        entropy: mean entropy of the predictions, in nats.
        bins: (mean confidence, accuracy, examples) of each bin that holds any.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    chance: float
    entropy: float
    bins: tuple[tuple[float, float, int], ...]


def calibration(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> Calibration:
    """Judge predictions.

    Args:
        probabilities: `[N, C]`, rows that add up to 1.
        labels: int64 `[N]`.
        bins: of the confidence.

    Raises:
        ValueError: shapes that do not fit, no examples, rows that are no probabilities, or no bins.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels) or bins < 1:
        raise ValueError(
            f"calibration needs probabilities [N, C], labels [N] with N >= 1, and bins >= 1, got {tuple(probabilities.shape)}, "
            f"{tuple(labels.shape)}, {bins}"
        )
    p = probabilities.double()
    if bool((p < 0).any()) or float((p.sum(-1) - 1).abs().max()) > 1e-4:
        raise ValueError("rows of probabilities must be at least 0 and add up to 1; apply a softmax to logits")
    confidence, chosen = p.max(-1)
    right = (chosen == labels).double()
    target = torch.nn.functional.one_hot(labels, p.shape[1])
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    rows, spread = [], 0.0
    for k in place.unique().tolist():
        inside = place == k
        mean, count = float(confidence[inside].mean()), int(inside.sum())
        rows.append((mean, float(right[inside].mean()), count))
        spread += math.sqrt(2 / math.pi * float((confidence * (1 - confidence))[inside].sum()))
    return Calibration(
        accuracy=float(right.mean()),
        nll=float(-p.gather(1, labels[:, None]).clamp_min(torch.finfo(p.dtype).tiny).log().mean()),
        brier=float((p - target).square().sum(-1).mean()),
        ece=sum(count * abs(share - mean) for mean, share, count in rows) / len(labels),
        chance=spread / len(labels),
        entropy=float(entropy(p).mean()),
        bins=tuple(rows),
    )


def entropy(probabilities: Tensor) -> Tensor:
    """−Σ p log p of each row, in nats: `[…, C]` to `[…]`."""
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)


def separation(inside: Tensor, outside: Tensor) -> float:
    """Probability that a score outside is above one inside, ties counting half (area under the ROC curve); both `[N]`."""
    below = (outside[:, None] > inside).double().mean() + 0.5 * (outside[:, None] == inside).double().mean()
    return float(below)
