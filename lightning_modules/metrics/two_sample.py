"""Can a classifier tell generated from real images? (Lopez-Paz and Oquab 2017, arXiv:1610.06545)."""

import numpy as np
from torch import Tensor

from lightning_modules.metrics.score import DistributionScore

COMPONENTS = 256
FOLDS = 5


def classifier_auc(real: Tensor, generated: Tensor, seed: int = 0) -> float:
    """Return the area under the ROC curve of a logistic regression on images that it was not fitted to.

    Classifier two-sample test (section 3) with the area in place of the accuracy, which depends on the sets' sizes:
    standardised features, L2 penalty with weight 1, mean over 5 folds of a stratified cross-validation. Vectors of more
    than 256 numbers are reduced to their 256 principal components first; these are those of both sets together and
    know nothing of which is which, so that equal distributions still give 0.5.

    Images that are there several times are fitted and asked for at once: a collapsed generator is told by them as well.

    Args:
        real: Features (N, D), N at least 5.
        generated: Features (M, D), M at least 5.
        seed: Of the folds and the principal components.

    Returns:
        0.5 if they cannot be told apart (by chance also less), 1 if always. Far below 0.5 says that images of one set
        are copies of the other's: a classifier that was fitted to an image takes its copy for one of the same set.

    Raises:
        ValueError: If there are too few images, or features of different lengths.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.preprocessing import StandardScaler

    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"features of different lengths: {real.shape[1]} and {generated.shape[1]}")
    if min(len(real), len(generated)) < FOLDS:
        raise ValueError(f"{FOLDS} folds need at least {FOLDS} images, got {len(real)} and {len(generated)}")
    features = np.concatenate([real.cpu().double().numpy(), generated.cpu().double().numpy()])
    is_generated = np.repeat([0, 1], [len(real), len(generated)])
    features = StandardScaler().fit_transform(features)
    components = min(COMPONENTS, len(features) - 1)
    if features.shape[1] > components:
        features = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(features)
    classifier = LogisticRegression(max_iter=1_000)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(classifier, features, is_generated, cv=folds, scoring="roc_auc")))


class ClassifierAUC(DistributionScore):
    """How well a logistic regression tells generated from real images."""

    better = "lower"
    bounds = (0.0, 1.0)
    steady_from = 200  # with fewer the standard error of the area is above 0.03
    at_least = FOLDS
    at_most = 1_000  # the standard error of the area is then 0.013
    one_per_group = True  # images of one patient in two folds would be told from others by that patient

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``classifier_auc``."""
        self.check(real, generated)
        return {"classifier_auc": classifier_auc(real, generated)}

    def warnings(self, real: Tensor, generated: Tensor) -> list[str]:
        """Say how many generated images equal real ones, and what that does to the number."""
        known = {vector.tobytes() for vector in real.cpu().numpy()}
        copies = sum(vector.tobytes() in known for vector in generated.cpu().numpy())
        if not copies:
            return []
        return [
            f"{copies} of {len(generated)} generated images equal real ones: the classifier, fitted to the one, takes "
            "the other for the same, so that the area falls below 0.5"
        ]
