"""Does a generated image show a training patient? By a verifier that was trained to tell patients apart.

Packhaeuser, Guendel, Muenster, Syben, Christlein and Maier 2022 (doi:10.1038/s41598-022-19045-3) showed that a Siamese
network knows a patient again in another chest film; CheXGenBench (Dutt et al. 2025, arXiv:2505.10496) puts the question
to generated films. Ours differs: both films go through one linear map of an extractor's features, which films of one
patient and of several determine in closed form: a few hundred patients and seconds on a processor are enough.

Fair is only a comparison of patients that the verifier does not know: those that it was trained on lie further apart
for it than others, so that even a perfect generator would be found nearer to one side. So the training patients are
split into two folds; the verifier of one compares the patients of the other with the held-out ones.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import Instrument, TooFewImagesError
from lightning_modules.metrics.separation import auc

DIRECTIONS = 256  # of the features' space that a verifier weighs; of the largest variance
SHRINKAGE = 0.01  # of the covariance within patients towards a multiple of the identity
KNOWN_FILMS = 10_000  # that a verifier is trained on
FILMS = 8  # of a patient that are compared
FEW_PATIENTS = 20  # of a kind below which nothing is said
BLOCK = 1024  # images searched for at a time
RELABELLINGS = 1999
TOGETHER = 250  # relabellings in memory at a time
PLANTED, TRIES = 0.05, 50  # share of images that is replaced by films of training patients, to see whether it is found
RESAMPLES = 400
OTHERS = 10  # patients that each is told from, for the area under the ROC curve


class Films(NamedTuple):
    """Vectors (N, D) of images, and whose each is (N,)."""

    vectors: Tensor
    patients: Sequence[str]


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval over patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Match:
    """A generated image that the verifier takes for a training patient.

    Attributes:
        generated: Index of the generated image.
        train: Index of the training image that is most like it.
        score: How alike they are, -1 to 1.
        threshold: Score above which two images count as of one patient.
    """

    generated: int
    train: int
    score: float
    threshold: float


@dataclass(frozen=True)
class Finding:
    """What one extractor's verifiers found.

    Attributes:
        area: Area under the ROC curve: films of one patient against films of two, all unknown to the verifier.
        recognised: Share of films of these patients that find another film of the same patient above the threshold.
        nearest: Share of generated images whose best match is a training patient, among equally many training and
            held-out patients: 0.5 if nothing leaks.
        above: The same of those above the threshold; None = there is none.
        to_train: Generated images that are above the threshold with a training patient.
        by_chance: As many would be, if training patients were as good as held-out ones.
        matches: What they are, the most alike first.
        p_values: (4,) of both folds, of all images and of those above the threshold: how often relabelled patients are
            matched by as many.
        planted: (``TRIES``, 4) the same after ``PLANTED`` of the images were replaced by films of training patients.
        images: Generated images.
        patients: Training and held-out patients that were compared.
    """

    area: Interval
    recognised: float
    nearest: Interval
    above: Interval | None
    to_train: int
    by_chance: float
    matches: list[Match]
    p_values: Tensor
    planted: Tensor
    images: int
    patients: tuple[int, int]


class Verifier:
    """Tells whether two films are of one patient, by a linear map of their features and the cosine of what it gives.

    A patient's features are taken for a centre that varies between patients and a deviation of each film. In the
    directions in which both covariances are diagonal (linear discriminant analysis), each scaled to variance 1, a
    product of two films is expected to be the direction's intraclass correlation if they are of one patient, else 0;
    by this correlation the directions are weighed. Nothing is drawn at random.

    Args:
        vectors: Features (N, D).
        patients: Whose each is.

    Raises:
        TooFewImagesError: If fewer than 20 patients have two films.
    """

    def __init__(self, vectors: Tensor, patients: Sequence[str]) -> None:
        _, of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        which = torch.from_numpy(of)
        counts = which.bincount()
        several = counts > 1
        if int(several.sum()) < FEW_PATIENTS:
            raise TooFewImagesError(
                f"needs patients with several images: {int(several.sum())} of {len(counts)} have two or more, and a "
                f"verifier is trained on at least {FEW_PATIENTS}"
            )
        x = vectors.cpu().double()
        self.centre = x.mean(dim=0)
        x = x - self.centre
        variances, directions = torch.linalg.eigh(x.T @ x / len(x))
        most = min(DIRECTIONS, len(x) // 4, int((variances > variances[-1] * 1e-10).sum()))
        basis = directions[:, -most:]
        x = x @ basis
        centres = torch.zeros(len(counts), most, dtype=x.dtype).index_add_(0, which, x) / counts[:, None]
        apart = (x - centres[which])[several[which]]
        within = apart.T @ apart / (counts[several] - 1).sum()
        within = (1.0 - SHRINKAGE) * within + SHRINKAGE * within.trace() / most * torch.eye(most, dtype=x.dtype)
        spread, turn = torch.linalg.eigh(within)
        whiten = turn / spread.sqrt()
        total, turn = torch.linalg.eigh(whiten.T @ (x.T @ x / len(x)) @ whiten)
        self.correlations = (1.0 - 1.0 / total).clamp(min=0.0)  # the variance within patients is 1
        self.map = basis @ whiten @ turn * (self.correlations / total).sqrt()

    def embed(self, vectors: Tensor) -> Tensor:
        """Map features (N, D) to what is compared (N, K) float32, of length 1: scores are products of these."""
        parts = [(part.cpu().double() - self.centre) @ self.map for part in vectors.split(BLOCK)]
        return F.normalize(torch.cat(parts), dim=1).float()


class Disturbed(FeatureExtractor):
    """Features of images that were shifted, zoomed, warped, blurred, lightened and made noisy at random, a little.

    What a verifier is trained on beside the films themselves, so that a leaked film is known again in a new look. What
    is done to an image depends on its pixels alone.

    Args:
        extractor: A loaded extractor.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.score_name, self.dimensions = extractor.score_name, extractor.dimensions

    def identity(self) -> dict[str, str]:
        """Return the extractor's, and that images were disturbed."""
        return {**self.extractor.identity(), "disturbed": "1"}

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to features (N, D)."""
        return self.extractor(torch.cat([disturbed(image[None]) for image in images]))


def disturbed(image: Tensor) -> Tensor:
    """Return an image (1, C, H, W) in [-1, 1] with another look; a function of its pixels."""
    pixels = image.cpu()
    random = torch.Generator().manual_seed(zlib.crc32(pixels.numpy().tobytes()))

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random)

    pose = torch.cat([draw(0.95, 1.05) * torch.eye(2), draw(-0.08, 0.08, 2)[:, None]], dim=1)[None]
    grid = F.affine_grid(pose, list(image.shape), align_corners=False)
    bumps = torch.randn(1, 2, 4, 4, generator=random) * draw(0.0, 0.05)
    warp = F.interpolate(bumps, tuple(image.shape[2:]), mode="bicubic").permute(0, 2, 3, 1)
    found = F.grid_sample(pixels, grid + warp, padding_mode="border", align_corners=False)
    smooth = F.avg_pool2d(F.pad(found, (1, 1, 1, 1), mode="replicate"), 3, 1)
    found = torch.lerp(found, smooth, draw(0.0, 1.0))
    noise = torch.randn(found.shape, generator=random) * draw(0.0, 0.08)
    return (found * draw(0.85, 1.15) + draw(-0.15, 0.15) + noise).clamp(-1.0, 1.0).to(image.device)


class ReIdentification(Instrument):
    """Are training patients known again in generated images more often than held-out patients are?

    The two sides are patients of one population, unknown to the verifier. If nothing leaks, which side a patient is on
    says nothing of the generated images, whatever these look like; so the number of images whose best match is a
    training patient is compared with what random relabellings of the patients give: an exact test (Fisher 1935).
    Patients are relabelled among those with equally many films, since who has more is matched more often.

    Args:
        false_match_rate: Share of images of unknown patients that may be taken for some compared patient: it sets the
            threshold, on the compared patients' own films.
    """

    better = "lower"
    bounds = (0.0, 1.0)
    steady_from = 200
    at_most = 5_000

    def __init__(self, false_match_rate: float = 0.01) -> None:
        if not 0.0 < false_match_rate < 1.0:
            raise ValueError(f"false_match_rate={false_match_rate}: must lie between 0 and 1")
        self.false_match_rate = false_match_rate

    def examine(self, train: Films, disturbed: Tensor, held_out: Films, generated: Tensor) -> Finding:
        """Train the verifiers and compare.

        Args:
            train: The training images.
            disturbed: Features (N, D) of the training images in another look; see ``Disturbed``.
            held_out: Real images of other patients.
            generated: Features (M, D).

        Raises:
            TooFewImagesError: If too few patients have several images, or there are too few of them.
            ValueError: If vectors are of different lengths or not finite.
        """
        self.check(train.vectors, disturbed, held_out.vectors, generated)
        self.check_patients(train)
        names = sorted(set(train.patients))
        order = np.random.default_rng(0).permutation(len(names))
        fold_of = {names[i]: place % 2 for place, i in enumerate(order)}
        folds = torch.tensor([fold_of[patient] for patient in train.patients])
        parts = []
        for fold in (0, 1):
            known, compared = (folds != fold).nonzero().flatten(), (folds == fold).nonzero().flatten()
            known = known[:KNOWN_FILMS]
            whose = [train.patients[i] for i in known.tolist()]
            verifier = Verifier(torch.cat([train.vectors[known], disturbed[known]]), [*whose, *whose])
            parts.append(self._compared(verifier, train, compared, held_out, generated))
        return _joined(parts, len(generated))

    def check_patients(self, train: Films) -> None:
        """Refuse data sets in which too few patients have several images for two folds to train a verifier.

        Raises:
            TooFewImagesError: With how many there are.
        """
        several = sum(count > 1 for count in Counter(train.patients).values())
        if several < 2 * FEW_PATIENTS:
            raise TooFewImagesError(
                f"re-identification needs patients with several images: {several} of {len(set(train.patients))} "
                f"training patients have two or more, and it takes {2 * FEW_PATIENTS}"
            )

    def _compared(self, verifier: Verifier, train: Films, rows: Tensor, held_out: Films, generated: Tensor) -> "_Part":
        pool = _Pool(train, rows, held_out)
        vectors = torch.cat(
            [verifier.embed(train.vectors[pool.train]), verifier.embed(held_out.vectors[pool.held_out])]
        )
        own, others, which, same, different = _searched(vectors, pool)
        rank = max(1, int(self.false_match_rate * (len(others) + 1)))
        threshold = float(others.sort(descending=True).values[rank - 1])
        scores, films = best_matches(verifier.embed(generated), vectors)
        found = pool.of[films]

        # A film of a training patient in place of a generated image; it finds the patient, or another one.
        is_train, several = torch.tensor(pool.is_train), pool.films > 1
        shown = (is_train & several).nonzero().flatten()
        taken_for = torch.where(own > others, torch.arange(len(own)), which)
        best = torch.maximum(own, others)
        columns = [found.bincount(minlength=len(own)), found[scores > threshold].bincount(minlength=len(own))]
        random = torch.Generator().manual_seed(0)
        for _ in range(TRIES):
            count = min(max(1, round(PLANTED * len(found) / 2)), len(shown))  # this fold's half of the leak
            replaced = torch.randperm(len(found), generator=random)[:count]
            chosen = shown[torch.randperm(len(shown), generator=random)[:count]]
            now, score = found.clone(), scores.clone()
            now[replaced], score[replaced] = taken_for[chosen], best[chosen]
            columns += [now.bincount(minlength=len(own)), now[score > threshold].bincount(minlength=len(own))]
        p_values = relabelled(torch.stack(columns, dim=1), is_train, pool.films)
        above = (scores > threshold).nonzero().flatten().tolist()
        matches = [
            Match(i, int(pool.train[films[i]]), float(scores[i]), threshold)
            for i in above
            if int(films[i]) < len(pool.train)
        ]
        by_chance = rank / (len(others) + 1) * float(is_train.double().mean())
        recognised = own[several] > threshold
        return _Part(pool, columns[0], columns[1], p_values, matches, by_chance, recognised, same, different)


class _Pool:
    """The patients of both sides that are compared, with at most ``FILMS`` films each, and their films."""

    def __init__(self, train: Films, rows: Tensor, held_out: Films) -> None:
        sides = [
            _first_films([train.patients[i] for i in rows.tolist()]),
            _first_films(held_out.patients),
        ]
        for side, what in zip(sides, ("training", "held-out"), strict=True):
            if len(side) < FEW_PATIENTS:
                raise TooFewImagesError(f"needs {FEW_PATIENTS} {what} patients to compare, got {len(side)}")
        self.names = [*sides[0], *sides[1]]
        self.is_train = [True] * len(sides[0]) + [False] * len(sides[1])
        films = [*sides[0].values(), *sides[1].values()]
        self.films = torch.tensor([len(of) for of in films])
        self.train = rows[[i for of in sides[0].values() for i in of]]
        self.held_out = torch.tensor([i for of in sides[1].values() for i in of])
        self.of = torch.arange(len(films)).repeat_interleave(self.films)


def _first_films(patients: Sequence[str]) -> dict[str, list[int]]:
    films: dict[str, list[int]] = {}
    for i, patient in enumerate(patients):
        of = films.setdefault(patient, [])
        if len(of) < FILMS:
            of.append(i)
    return dict(sorted(films.items()))


class _Part(NamedTuple):
    """What one verifier found of the patients of one fold and the held-out ones."""

    pool: _Pool
    nearest: Tensor  # generated images whose best match a patient is
    above: Tensor  # of these above the threshold
    p_values: Tensor
    matches: list[Match]
    by_chance: float  # share of a new patient's images that a training patient would match above the threshold
    recognised: Tensor  # whether each patient's first film finds another one above it
    same: Tensor  # score of two films of each patient that has two
    different: Tensor  # scores of a film of such a patient and others'


def best_matches(queries: Tensor, films: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score (N,) of each query's best match and which film that is, some queries at a time.

    Args:
        queries: (N, K) of length 1.
        films: (M, K) of length 1.
    """
    found = [(part @ films.T).max(dim=1) for part in queries.split(BLOCK)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _searched(vectors: Tensor, pool: _Pool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Search for every patient's first film among all the others.

    Returns:
        Score of the best other film of the same patient (-inf = there is none) and of the best film of another patient,
        which patient that is, scores of two films of each patient that has two, and of such films and other patients'.
    """
    first = pool.films.cumsum(0) - pool.films
    own, others, which = [], [], []
    for queries in torch.arange(len(first)).split(BLOCK):
        scores = vectors[first[queries]] @ vectors.T
        same = pool.of[None, :] == queries[:, None]
        other = scores.masked_fill(same, -torch.inf).max(dim=1)
        others.append(other.values)
        which.append(pool.of[other.indices])
        scores[torch.arange(len(queries)), first[queries]] = -torch.inf
        own.append(scores.masked_fill_(~same, -torch.inf).amax(dim=1))
    several = first[pool.films > 1]
    same_patient = (vectors[several] * vectors[several + 1]).sum(dim=1)
    turned = [several.roll(step) for step in range(1, 1 + OTHERS)]
    two = torch.stack([(vectors[several] * vectors[other]).sum(dim=1) for other in turned], dim=1)
    return torch.cat(own), torch.cat(others), torch.cat(which), same_patient, two


def relabelled(counts: Tensor, is_train: Tensor, films: Tensor) -> Tensor:
    """Return how often, with patients relabelled at random, training patients have at least their real counts (C,).

    An exact test whatever the counts are, if patients with equally many films are exchangeable.

    Args:
        counts: (P, C) of each patient, C tests that share the relabellings.
        is_train: (P,) bool.
        films: (P,) of each patient: labels change places among equals only.
    """
    random = torch.Generator().manual_seed(0)
    of = counts.float()
    real = is_train.float() @ of
    above = torch.zeros(counts.shape[1])
    strata = [(films == number).nonzero().flatten() for number in films.unique()]
    for start in range(0, RELABELLINGS, TOGETHER):
        labels = torch.zeros(min(TOGETHER, RELABELLINGS - start), len(films))
        for stratum in strata:
            places = torch.rand(len(labels), len(stratum), generator=random).argsort(dim=1)
            labels[:, stratum] = is_train[stratum].float()[places]
        above += (labels @ of >= real - 1e-3).sum(dim=0)
    return ((above + 1.0) / (RELABELLINGS + 1.0)).double()


def _joined(parts: Sequence[_Part], images: int) -> Finding:
    """Return the finding of both folds; a held-out patient was compared in each."""
    train = [part.pool.is_train.count(True) for part in parts]
    films = torch.cat(
        [*(part.pool.films[:count] for part, count in zip(parts, train, strict=True)), parts[0].pool.films[train[0] :]]
    )
    is_train = torch.arange(len(films)) < sum(train)

    def share(counts: Sequence[Tensor]) -> Interval | None:
        of_train = [count[:n] for count, n in zip(counts, train, strict=True)]
        of_held_out = torch.stack([count[n:] for count, n in zip(counts, train, strict=True)]).double().mean(dim=0)
        return share_of_training(torch.cat([*of_train, of_held_out]), is_train, films)

    nearest = share([part.nearest for part in parts])
    if nearest is None:
        raise TooFewImagesError(
            "re-identification compares patients with equally many images, and no image matches a training or held-out "
            "patient who has such a counterpart; hold out patients with as many images as training patients have"
        )
    matches = sorted((match for part in parts for match in part.matches), key=lambda match: -match.score)
    return Finding(
        area=_area(parts),
        recognised=float(torch.cat([part.recognised for part in parts]).double().mean()),
        nearest=nearest,
        above=share([part.above for part in parts]),
        to_train=len({match.generated for match in matches}),
        by_chance=sum(part.by_chance for part in parts) * images,
        matches=matches,
        p_values=torch.cat([part.p_values[:2] for part in parts]),
        planted=torch.cat([part.p_values[2:].reshape(TRIES, 2) for part in parts], dim=1),
        images=images,
        patients=(sum(train), len(films) - sum(train)),
    )


def share_of_training(counts: Tensor, is_train: Tensor, films: Tensor) -> Interval | None:
    """Return how many of the best matches are training patients, among equally many of both sides.

    Matches per patient of each side, averaged over numbers of films with weights that the sides share, so that neither
    more patients nor more films count. The interval is a bootstrap of the patients.

    Args:
        counts: Matches of each patient (P,).
        is_train: (P,) bool.
        films: (P,) of each patient.

    Returns:
        None if there is no match among patients that have a counterpart with equally many films.
    """
    cells = []
    for number in films.unique():
        sides = [((films == number) & (is_train == side)).nonzero().flatten() for side in (True, False)]
        if all(len(side) for side in sides):
            cells.append((len(sides[0]) + len(sides[1]), sides))

    def rates(rows: Sequence[Sequence[Tensor]]) -> float:
        here, there = (
            sum(weight * float(counts[of[side]].double().mean()) for (weight, _), of in zip(cells, rows, strict=True))
            for side in (0, 1)
        )
        return here / (here + there) if here + there else np.nan

    value = rates([sides for _, sides in cells])
    if np.isnan(value):
        return None
    random = torch.Generator().manual_seed(0)

    def again(rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), rows.shape, generator=random)]

    drawn = [rates([[again(side) for side in sides] for _, sides in cells]) for _ in range(RESAMPLES)]
    low, high = (float(end) for end in np.nanquantile(drawn, (0.025, 0.975)))
    if low == high:  # a share of 0 or 1 is the same in every resample, and still not certain: the rule of three
        third = 3.0 / float(counts.sum())
        low, high = max(0.0, low - third), min(1.0, high + third)
    return Interval(value, low, high)


def _area(parts: Sequence[_Part]) -> Interval:
    """Return the area under the ROC curve; its interval is a bootstrap of the patients."""
    same = torch.cat([part.same for part in parts])
    different = torch.cat([part.different for part in parts])
    random = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(RESAMPLES // 2):
        rows = torch.randint(len(same), same.shape, generator=random)
        drawn.append(auc(same[rows], different[rows].flatten()))
    low, high = (float(end) for end in np.quantile(drawn, (0.025, 0.975)))
    return Interval(auc(same, different.flatten()), low, high)
