"""Which slice an image without labels belongs to, as a classifier of real images says."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.evaluation.attributes import Members
from lightning_modules.metrics.separation import auc

FOLDS = 5
# Penalty per image, of standardised features: 0.03 and 0.3 moved the areas of chest film phantoms by 0.04 at most.
RIDGE = 0.1
# Cohen's kappa below which the classifier is not believed. Landis and Koch 1977 (Biometrics 33:159) call less than 0.4
# fair agreement at best: of a slice of a tenth of the images, more than half of what is taken for it would be others.
AGREEMENT = 0.4

Vectors = tuple[Tensor, Sequence[str]]  # features (N, D) and groups (N,)


@dataclass(frozen=True)
class Assigned:
    """What images are taken for.

    Attributes:
        members: Which images of each set belong to which slice, the real ones first.
        agreement: Cohen's kappa of the classifier with the labels of the real images, by slice: 0 = chance, 1 = equal.
        auc: The area under its ROC curve, by slice.
    """

    members: list[Members]
    agreement: dict[str, float]
    auc: dict[str, float]


def assign(true: Members, real: Vectors, others: Sequence[Vectors]) -> Assigned:
    """Assign the images of all sets to slices; as many real images to each slice as belong to it.

    Args:
        true: The slices of the real images by their labels (N,).
        real: The real images.
        others: Other sets.
    """
    target = np.stack(list(true.of.values()), axis=1)
    scores = cross_fitted(real, target, true.known, others)
    of_sets: list[dict[str, np.ndarray]] = [{} for _ in scores]
    agreement, area = {}, {}
    for column, name in enumerate(true.of):
        ours, belongs = scores[0][true.known, column], target[true.known, column]
        share = float(belongs.mean())
        threshold = np.quantile(ours, 1.0 - share)
        for of, judged in zip(of_sets, scores, strict=True):
            of[name] = judged[:, column] > threshold
        told, rest = torch.from_numpy(ours[belongs]), torch.from_numpy(ours[~belongs])
        area[name] = auc(told, rest) if 0 < share < 1 else 0.5
        agreement[name] = _kappa(belongs, ours > threshold)
    known = [np.ones(len(judged), dtype=bool) for judged in scores]
    return Assigned([Members(of, all_) for of, all_ in zip(of_sets, known, strict=True)], agreement, area)


def cross_fitted(real: Vectors, target: np.ndarray, known: np.ndarray, others: Sequence[Vectors]) -> list[np.ndarray]:
    """Return how much each image looks like each slice's, by ridge regression on the real images of other folds.

    Each group, of whatever set, has its fold, and an image is judged by the regression on the other folds: so what
    judges generated images has the same distribution as what judges real ones, and no image is judged by what was
    fitted to its patient. (For one slice ridge regression is Fisher's linear discriminant with shrunk covariances.)

    Args:
        real: The real images.
        target: Whether each real image is in each slice (N, K), bool.
        known: Whether that is known of it (N,), bool.
        others: Other sets.

    Returns:
        Scores (N, K) of the real images, and (M, K) of each other set; higher = more like the slice's.
    """
    mean, deviation = real[0].mean(dim=0), real[0].std(dim=0).clamp(min=1e-6)
    standard = [(vectors - mean) / deviation for vectors, _ in (real, *others)]
    folds = [np.array([number_of(group) % FOLDS for group in groups], dtype=int) for _, groups in (real, *others)]
    found = [np.zeros((len(vectors), target.shape[1])) for vectors in standard]
    wanted = torch.from_numpy(target.astype(np.float64))
    for fold in range(FOLDS):
        fitted = torch.from_numpy(known & (folds[0] != fold))
        if not fitted.any():
            continue
        x, y = standard[0][fitted].double(), wanted[fitted]
        centre, share = x.mean(dim=0), y.mean(dim=0)
        x -= centre
        penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - share))
        for scores, vectors, of in zip(found, standard, folds, strict=True):
            here = of == fold
            scores[here] = ((vectors[torch.from_numpy(here)].double() - centre) @ weights + share).numpy()
    return found


def number_of(text: str) -> int:
    """Return a number of 64 bits that depends on a text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _kappa(belongs: np.ndarray, taken: np.ndarray) -> float:
    """Return Cohen's kappa (1960) of two answers to one question; 0 where one of them is always the same."""
    by_chance = belongs.mean() * taken.mean() + (1 - belongs.mean()) * (1 - taken.mean())
    return float(((belongs == taken).mean() - by_chance) / (1 - by_chance)) if by_chance < 1 else 0.0
