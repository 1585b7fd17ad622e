"""Is the run healthy? Says so in plain language, from a few measured signals."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from pydantic import model_validator
from torch import Tensor

from callbacks.clock import check_cadence, log_numbers
from callbacks.divergence import DivergedError, assert_finite
from callbacks.files import training_goes_on, write_atomically
from callbacks.generated import generated, how_many, told_of_real
from callbacks.real_images import real_images, spread
from callbacks.sample_grid import enlarged
from callbacks.saturation import WINDOW, Scored, saturation
from callbacks.state import Count, State
from lightning_modules.metrics.diversity import diversity
from lightning_modules.metrics.features import RandomConvNet
from lightning_modules.metrics.precision_recall import precision_recall
from lightning_modules.metrics.separation import d_prime
from lightning_modules.protocols import Judges

log = logging.getLogger(__name__)

Signals = dict[str, float]

HEALTHY = "healthy"
STARTING = "too early to say"
DIVERGING = "diverging"  # also what a run is called that ended with DivergedError

# An untrained generator makes one grey image and every discriminator wins against it: the first measurements of healthy
# runs look ill.
WARM_UP = 2
# Healthy runs cross a limit now and then, and come back: what counts is what three measurements in a row agree on.
PERSISTENT = 3
MIN_HELD_OUT = 16  # with fewer held-out images a mean score is mostly chance
SEED = 2  # of the generated images: always the same latents, so that signals change only if the generator does


@dataclass(frozen=True)
class Limit:
    """A signal is ill on one side of a value.

    Attributes:
        signal: Name of the signal.
        side: "above" or "below": where it is ill.
        value: The limit.
        reason: Why it lies there.
    """

    signal: str
    side: str
    value: float
    reason: str

    def crossed(self, signals: Signals) -> bool:
        """Tell whether the signal was measured and is ill."""
        value = signals.get(self.signal)
        return value is not None and (value > self.value if self.side == "above" else value < self.value)


@dataclass(frozen=True)
class Illness:
    """A verdict, and when it is given.

    Attributes:
        verdict: Its name.
        limits: All must be crossed.
        finding: What was seen, as a sentence with the signals' names in braces.
        advice: What to do.
    """

    verdict: str
    limits: tuple[Limit, ...]
    finding: str
    advice: str


_WEAKEN = "lower the discriminator's steps, rate or width, or raise its penalty"

# In the order in which they are asked: the first that fits explains the ones behind it. Each value lies about halfway,
# as a ratio, between what healthy runs and runs with the failure showed in three measurements in a row, on seeds 100
# and up of experiments/benchmarks/instruments/health.py (small DCGANs, WGAN-GPs and progressive GANs on phantoms).
ILLNESSES = (
    Illness(
        DIVERGING,
        (
            Limit(
                "update",
                "above",
                0.03,
                "Steps of about 0.001 of the weights' size train well; healthy runs kept below 0.015. At rates a "
                "hundred times too high steps of 0.06 to 0.2 overshot whatever they aimed at.",
            ),
        ),
        "diverging: a single step changes a network's weights by {update:.2g} of their size",
        "lower the learning rate, or go back to a checkpoint before this began",
    ),
    Illness(
        "discriminator learns nothing",
        (
            Limit(
                "margin",
                "below",
                1.25,
                "At 1.25 a fifth of all pairs are ranked wrongly, at 0 half of them. With constant labels it stood at "
                "0.9 and fell; healthy ones come below 2 only with generated images that are good, hence:",
            ),
            Limit("precision", "below", 0.05, "The generated images are not good: fixed features tell them apart."),
            Limit("recall", "below", 0.05, "As for precision: a generator that is good has no need to be told apart."),
            Limit(
                "alpha", "above", 0.99, "While a new stage fades in, its untrained layers must first learn something."
            ),
        ),
        "the discriminator learns nothing: it tells generated from real images with a margin of {margin:.2g} only, "
        "although they are easily told apart (precision {precision:.2g}, recall {recall:.2g})",
        "check the labels and signs of the discriminator's loss and that real images reach it; raise its rate or width",
    ),
    Illness(
        "generator collapsing",
        (
            Limit(
                "diversity",
                "below",
                0.2,
                "Images that differ a fifth as much as real ones are variations of one image. Healthy runs kept above "
                "0.27 once they had begun, collapsed ones fell to 0.13 and below.",
            ),
        ),
        "the generator is collapsing: its images differ from each other {diversity:.2g} times as much as real ones do",
        "go back to a checkpoint before this began; lower the rates, or strengthen the discriminator's penalty",
    ),
    Illness(
        "discriminator too strong",
        (
            Limit("margin", "above", 10.0, "In standard deviations of the scores. Healthy runs may begin here, hence:"),
            Limit(
                "gradient_ratio",
                "below",
                0.12,
                "A logistic discriminator that is always right has nothing left to learn: its gradient vanishes, the "
                "generator's does not. Healthy runs kept above 0.24; trained ten times as often it fell to 0.02.",
            ),
        ),
        "the discriminator is too strong: it tells generated from real images with a margin of {margin:.3g}, and its "
        "gradient has shrunk to {gradient_ratio:.2g} of the generator's",
        _WEAKEN,
    ),
    Illness(
        "discriminator too strong",
        (
            Limit(
                "margin",
                "above",
                19.0,
                "A critic with a penalty never saturates. Healthy runs kept below 17; critics that trained ten times "
                "as often wandered between 22 and 80.",
            ),
        ),
        "the discriminator is too strong: it tells generated from real images with a margin of {margin:.3g}",
        _WEAKEN,
    ),
    Illness(
        "memorising",
        (
            Limit(
                "overfitting",
                "above",
                0.5,
                "Held-out images lie more than halfway from training to generated ones: r_v of Karras 2020 "
                "(arXiv:2006.06676, equation 1), 0 without overfitting and 1 where held-out images count as generated.",
            ),
            Limit(
                "overfitting_margin",
                "above",
                1.0,
                "In standard deviations of the scores; the mean of 64 images is known to 0.2 of them. Where generated "
                "images are good the share above divides by little.",
            ),
        ),
        "memorising: the discriminator knows its training images by heart (held-out ones lie {overfitting:.0%} of the "
        "way to generated ones)",
        "use more images, data.augmentation, or a narrower discriminator; stop at the best score",
    ),
    Illness(
        "memorising",
        (
            Limit(
                "nearest_ratio",
                "below",
                0.33,
                "Generated images three times nearer to training images than held-out ones are copies. Not measured on "
                "a run that copies: healthy runs stood at 0.9 to 1.4.",
            ),
        ),
        "memorising: generated images are {nearest_ratio:.2g} times as far from training images as held-out ones are",
        "look at samples/nearest_*.png; use more images or data.augmentation",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What the last measurements say.

    Attributes:
        name: Healthy, too early to say, or the name of an illness.
        sentence: The finding with its numbers and limits.
        advice: What to do; empty if there is nothing to do.
    """

    name: str
    sentence: str
    advice: str = ""


def judge(recent: Sequence[Signals], measured: int) -> Verdict:
    """Return the verdict on a run.

    Args:
        recent: Its last ``PERSISTENT`` measurements, oldest first.
        measured: Number of all its measurements.
    """
    if measured < WARM_UP + PERSISTENT:
        return Verdict(STARTING, f"{measured} of the {WARM_UP + PERSISTENT} measurements that a verdict needs")
    for illness in ILLNESSES:
        if all(limit.crossed(signals) for limit in illness.limits for signals in recent):
            judged = [limit for limit in illness.limits if limit.signal != "alpha"]  # a condition, no matter of health
            limits = ", ".join(
                f"{limit.signal.replace('_', ' ')} {_healthy_side(limit)} {limit.value:g}" for limit in judged
            )
            return Verdict(
                illness.verdict, f"{illness.finding.format_map(recent[-1])} (healthy: {limits})", illness.advice
            )
    return Verdict(HEALTHY, "no illness shows in the last measurements")


def _healthy_side(limit: Limit) -> str:
    return "at most" if limit.side == "above" else "at least"


class Measurements(State):
    """The state of ``Health``."""

    recent: list[Signals]
    measured: Count
    since: Count
    scores: list[Scored] = []  # older checkpoints have none
    score_kind: str = ""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if len(self.recent) != min(self.measured, PERSISTENT):
            raise ValueError(f"recent must hold the last {PERSISTENT} of all measurements")
        return self


class Health(L.Callback):
    """Measures a few signals on the clock, logs them as ``health/...``, and says in plain language what they mean.

    The verdict stands in the progress bar, the record and ``health.json``; a change is logged. That the periodic score
    has come to wander is remarked on (``saturation``) and is no illness of the run. Signals:

    - margin: how far the discriminator's scores of held-out and generated images lie apart (``d_prime``);
    - diversity: how much generated images differ from each other, against real ones;
    - update: the largest relative change of a network's weights by one step;
    - gradient_ratio: the 2-norm of the discriminator's gradient against the generator's, in the last step of each;
    - precision, recall: of generated images among training images (Kynkaanniemi 2019), in features of a fixed network;
    - alpha: how far the present stage of a growing network has faded in, 1 for others;
    - overfitting: how much higher than held-out images the discriminator scores training images, as a share of
      the distance to generated images, and overfitting_margin, the same in standard deviations;
    - nearest_ratio: the newest of the callback ``NearestTraining``, where there is one.

    Images are those of the live generator at the present resolution; a translator is given held-out sources (training
    ones if too few are held out). Nothing of the run changes: no global random number is drawn, no weight or buffer
    moves. All processes measure the same images, so that layers that exchange statistics stay in step; the first one's
    numbers count.

    Args:
        every_images: Images between two measurements. They are taken in the first batch from there on that has a step
            of the generator, since gradients of both networks are needed.
        count: Generated, training and held-out images, each.
    """

    state_model = Measurements
    needs = Judges

    def __init__(self, every_images: int = 20_000, count: int = 64) -> None:
        check_cadence("every_images", every_images)
        if count < MIN_HELD_OUT:
            raise ValueError(f"count={count}: must be at least {MIN_HELD_OUT}")
        self.every_images, self.count = every_images, count
        # Not the score's extractor: the limits hold for the features that they were set with. Learned ones put
        # precision and recall of small generators at 0 throughout (experiments/docs/results/health.md).
        self.extractor = RandomConvNet()
        self.recent: list[Signals] = []  # the last few, oldest first
        self.measured = 0
        self.since = 0  # clock at which the present verdict was first given
        self.scores: list[Scored] = []  # the last few of the grown network, oldest first
        self.score_kind = ""  # their name and fingerprint
        self._before: dict[str, list[Tensor]] = {}

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: Judges) -> None:
        """Put the extractor on this process's device; say what cannot be measured."""
        self.extractor.to(pl_module.device)
        if trainer.is_global_zero and not self._has_held_out(trainer, pl_module):
            log.warning(
                "health: fewer than %d held-out images (data.val_fraction): the margin is taken on training images, "
                "and a discriminator that memorises them will not be noticed",
                MIN_HELD_OUT,
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: Judges) -> None:
        """Go on with the verdict of the checkpoint."""
        pl_module.record.verdict = self._judge().name if self.recent else ""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Judges, batch: Any, batch_idx: int) -> None:
        """Keep the weights before a batch that will be measured."""
        if self._due(pl_module, pl_module.images_seen):
            self._before = {
                name: [parameter.detach().clone() for parameter in parameters]
                for name, parameters in _trained(trainer, pl_module).items()
            }

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Judges, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, judge and tell on the clock; take note of every score."""
        if pl_module.record.scored_at == pl_module.images_seen:
            self._note_score(trainer, pl_module)
        if not self._due(pl_module, batch["images_seen"]):
            return
        assert_finite(trainer, pl_module)
        signals = trainer.strategy.broadcast(self._measure(trainer, pl_module), src=0)
        before = self._judge()
        self.recent = [*self.recent, signals][-PERSISTENT:]
        self.measured += 1
        verdict = self._judge()
        if verdict.name != before.name:
            self.since = pl_module.images_seen
        pl_module.record.verdict = verdict.name
        numbers = {f"health/{name}": value for name, value in signals.items()}
        log_numbers(trainer, pl_module, numbers, {"health/verdict": verdict.name})
        if trainer.is_global_zero:
            self._tell(trainer, pl_module, verdict, changed=verdict.name != before.name)

    def on_exception(self, trainer: L.Trainer, pl_module: Judges, exception: BaseException) -> None:
        """Keep a divergence that ended the run."""
        if isinstance(exception, DivergedError) and trainer.is_global_zero:
            if pl_module.record.verdict != DIVERGING:
                self.since, pl_module.record.verdict = pl_module.images_seen, DIVERGING
            self._write(trainer, pl_module, Verdict(DIVERGING, str(exception), ILLNESSES[0].advice))

    def state_dict(self) -> dict[str, Any]:
        """Return the last measurements, so that a resumed run comes to the same verdicts."""
        scores = [dict(score) for score in self.scores]
        judged = {"recent": self.recent, "measured": self.measured, "since": self.since}
        return {**judged, "scores": scores, "score_kind": self.score_kind}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the last measurements."""
        self.recent, self.measured, self.since = (state_dict[key] for key in ("recent", "measured", "since"))
        self.scores = [Scored(**score) for score in state_dict.get("scores", [])]
        self.score_kind = state_dict.get("score_kind", "")

    # The signals ----------------------------------------------------------------------------------------------------

    def _due(self, module: Judges, images_seen: int) -> bool:
        """Tell whether the batch that starts at a clock is the first with a generator's step from a multiple on."""
        point = module.schedule.at(images_seen)
        phase = next(phase for phase in module.phases() if phase.name == "generator")
        after = images_seen + point.batch_size
        before = after - point.batch_size * phase.cadence.cycle(point.batch_index)
        return phase.cadence.due(point.batch_index) and after // self.every_images > before // self.every_images

    @torch.no_grad()
    def _measure(self, trainer: L.Trainer, module: Judges) -> Signals:
        point = module.schedule.at(module.images_seen)
        size = max(1, point.batch_size // trainer.world_size)
        train, (raw, told) = self._real(trainer, module, "train"), self._generated(trainer, module, size)
        train_scores = _scores(module, train, told_of_real(trainer, module, "train", self.count), size)
        fake_scores = _scores(module, raw, told, size)
        fake = raw.clamp(-1.0, 1.0)
        precision, recall = precision_recall(self._features(train, size), self._features(fake, size))
        signals = {
            "margin": d_prime(train_scores, fake_scores),
            "diversity": diversity(fake) / max(diversity(train), 1e-6),
            "precision": precision,
            "recall": recall,
            "alpha": point.alpha,
            **self._steps(trainer, module),
        }
        if self._has_held_out(trainer, module):
            held_out = self._real(trainer, module, "val")
            held_out_scores = _scores(module, held_out, told_of_real(trainer, module, "val", self.count), size)
            gap, whole = (float(train_scores.mean() - other.mean()) for other in (held_out_scores, fake_scores))
            signals["margin"] = d_prime(held_out_scores, fake_scores)
            signals["overfitting"] = gap / whole if whole > 0.0 else 0.0
            signals["overfitting_margin"] = d_prime(train_scores, held_out_scores)
        if "nearest/ratio" in module.record.latest:
            signals["nearest_ratio"] = module.record.latest["nearest/ratio"]
        return signals

    def _real(self, trainer: L.Trainer, module: Judges, split: str) -> Tensor:
        return module.as_shown(spread(real_images(trainer), split, self.count).to(module.device))

    def _generated(self, trainer: L.Trainer, module: Judges, size: int) -> tuple[Tensor, Tensor | None]:
        """Return images that are not clamped: a discriminator may know generated ones by what lies outside [-1, 1]."""
        split = "val" if self._has_held_out(trainer, module) else "train"
        count = how_many(trainer, module, split, self.count)
        parts = [
            generated(trainer, module, split, count, SEED, start, min(start + size, count), ema=False)
            for start in range(0, count, size)
        ]
        told = [what for _, what in parts if what is not None]
        return torch.cat([images for images, _ in parts]), torch.cat(told) if told else None

    def _features(self, images: Tensor, size: int) -> Tensor:
        return torch.cat([self.extractor(part.clamp(-1.0, 1.0)) for part in enlarged(images).split(size)])

    def _steps(self, trainer: L.Trainer, module: Judges) -> Signals:
        """Return what the last steps did; a gradient stays with its parameter until the next step."""
        updates, gradients = {}, {}
        for name, parameters in _trained(trainer, module).items():
            pairs = zip(parameters, self._before[name], strict=True)
            moved = [(new.detach(), old, new.grad) for new, old in pairs if new.grad is not None]
            size = _norm([old for _, old, _ in moved])
            updates[name] = _norm([new - old for new, old, _ in moved]) / max(size, 1e-12)
            gradients[name] = _norm([gradient for _, _, gradient in moved])
        self._before = {}
        generator = max(gradients.pop("generator"), 1e-12)
        return {"update": max(updates.values()), "gradient_ratio": math.hypot(*gradients.values()) / generator}

    def _has_held_out(self, trainer: L.Trainer, module: Judges) -> bool:
        enough = min(real_images(trainer).size("val"), how_many(trainer, module, "val", MIN_HELD_OUT))
        return enough >= MIN_HELD_OUT

    # The score ------------------------------------------------------------------------------------------------------

    def _note_score(self, trainer: L.Trainer, module: Judges) -> None:
        """Keep a score; say it once when the score has come to wander.

        While a network grows its score goes up and down with the stages: only scores of its last one are kept.
        """
        score = module.record.score
        if score is None or not module.schedule.has_grown(module.images_seen):
            return
        kind, before = f"{score.name} {score.fingerprint}", saturation(self.scores)
        if kind != self.score_kind:
            self.score_kind, self.scores = kind, []
        self.scores = [*self.scores, Scored(images_seen=module.images_seen, value=score.value)][-WINDOW:]
        said = saturation(self.scores)
        if said and not before and trainer.is_global_zero:
            log.info("images_seen %d: %s", module.images_seen, said)

    # The verdict ----------------------------------------------------------------------------------------------------

    def _judge(self) -> Verdict:
        return judge(self.recent, self.measured)

    def _tell(self, trainer: L.Trainer, module: Judges, verdict: Verdict, changed: bool) -> None:
        if changed and verdict.advice:
            log.warning("images_seen %d: %s; %s", module.images_seen, verdict.sentence, verdict.advice)
        elif changed:
            log.info("images_seen %d: health: %s", module.images_seen, verdict.name)
        self._write(trainer, module, verdict)

    def _write(self, trainer: L.Trainer, module: Judges, verdict: Verdict) -> None:
        content = {
            "verdict": verdict.name,
            "since_images_seen": self.since,
            "images_seen": module.images_seen,
            "sentence": verdict.sentence,
            "advice": verdict.advice,
            "score_remark": saturation(self.scores),
            "signals": self.recent[-1] if self.recent else {},
            "measurements_in_a_row": PERSISTENT,
            "limits": [{"verdict": ill.verdict, **asdict(limit)} for ill in ILLNESSES for limit in ill.limits],
        }
        text = json.dumps(content, indent=2) + "\n"
        path = Path(trainer.default_root_dir) / "health.json"
        with training_goes_on(path):
            write_atomically(path, lambda file: file.write(text.encode()))


def _trained(trainer: L.Trainer, module: Judges) -> dict[str, list[Tensor]]:
    """Return the parameters of each phase's optimizer."""
    groups = {phase.name: trainer.optimizers[phase.optimizer].param_groups for phase in module.phases()}
    return {name: [parameter for group in found for parameter in group["params"]] for name, found in groups.items()}


def _scores(module: Judges, images: Tensor, told: Tensor | None, size: int) -> Tensor:
    """Return scores in batches as large as in training: statistics of a batch depend on its size."""
    whole = min(size, len(images))
    starts = range(0, len(images) - whole + 1, whole)
    parts = [slice(start, start + whole) for start in starts]
    return torch.cat([module.critic_scores(images[part], None if told is None else told[part]) for part in parts])


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(list(tensors))).norm()) if tensors else 0.0
