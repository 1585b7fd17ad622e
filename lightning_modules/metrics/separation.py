"""How far apart two samples of scores lie."""

import torch
from torch import Tensor


def d_prime(higher: Tensor, lower: Tensor) -> float:
    """Return the difference of two samples' means in units of their standard deviation.

    The sensitivity index d' of signal detection (Green and Swets 1966): 0 if they cannot be told apart, 1 if 76 % of
    pairs are in the right order, above 4 if nearly all are. It does not change when scores are shifted or scaled, so
    that the logits of a discriminator and the scores of a critic can be judged by one limit.

    Args:
        higher: Scores (N,) that are expected to be higher, N at least 2.
        lower: Scores (M,), M at least 2.
    """
    if min(len(higher), len(lower)) < 2:
        raise ValueError(f"a standard deviation needs at least 2 scores, got {len(higher)} and {len(lower)}")
    higher, lower = higher.double(), lower.double()
    deviation = ((higher.var() + lower.var()) / 2.0).sqrt().clamp(min=torch.finfo(torch.float32).eps)
    return float((higher.mean() - lower.mean()) / deviation)


def auc(higher: Tensor, lower: Tensor) -> float:
    """Return the share of pairs of a higher and a lower score that are in the right order; equal ones count half.

    The area under the ROC curve (Hanley and McNeil 1982): 1 if all are, 0.5 if the samples cannot be told apart.

    Args:
        higher: Scores (N,) that are expected to be higher, N at least 1.
        lower: Scores (M,), M at least 1.

    Raises:
        ValueError: If there is no score, or one is NaN: it would be sorted as the highest, and a diverged judge would
            look perfect.
    """
    if min(len(higher), len(lower)) < 1:
        raise ValueError(f"pairs need at least 1 score of each, got {len(higher)} and {len(lower)}")
    undefined = int(higher.isnan().sum()) + int(lower.isnan().sum())
    if undefined:
        raise ValueError(f"{undefined} of {len(higher) + len(lower)} scores are NaN: what gave them has diverged")
    ordered = lower.sort().values
    below = torch.searchsorted(ordered, higher).double()
    not_above = torch.searchsorted(ordered, higher, right=True).double()
    return float((below + not_above).mean()) / (2.0 * len(lower))
