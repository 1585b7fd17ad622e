"""What an evaluation says of privacy: a verdict in a plain sentence for each test, and what no test can show."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import hypergeom
from scipy.stats import t as student_t

from datamodules.files.pseudonyms import Pseudonyms
from experiments.configuration.untrusted import read_object
from experiments.evaluation.comparison import holm
from experiments.measuring.rows import Row
from experiments.measuring.scoring import Scorer, Sets
from experiments.measuring.settings import Tools
from experiments.measuring.vectors import VectorCache
from experiments.pages.text import csv_text
from experiments.record.run_directory import write_text
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.memorisation import Copies, Copy, threshold_rank
from lightning_modules.metrics.re_identification import PLANTED, Disturbed, Films, Finding, ReIdentification

log = logging.getLogger(__name__)

SUITE = "privacy"
LEVEL = 0.05  # probability of any false alarm among all tests
ENOUGH_POWER = 0.8  # of the tries in which a planted leak has to be found: else the test gives no answer
REIDENTIFIED = "re_identified.csv"
Answer = Literal["clean", "leak", "no answer"]
LIMITS = {
    "copies": "It sees copies in pixels, also noisy or blurred; not shifted ones, nor a known patient in another film.",
    "re-identification": "It sees what its verifier sees: a patient whose film is turned or shifted by more than a "
    "percent or two of the width, warped or blurred may pass unseen, and so may a leak of less than the planted share.",
    "membership": "It sees whether many training images are nearer to generated ones than new patients' are; a few "
    "leaked patients do not show.",
    "authenticity": "It sees noisy versions of single training images, in an extractor's features.",
    "neighbour distance": "It compares medians: less than half of the images do not show.",
}
# Scores of which the side that leaks is tested, and the test that they belong to.
_LEAKS = {
    "membership_auc": ("membership", 1),
    "authenticity": ("authenticity", -1),
    "neighbour_distance_ratio": ("neighbour distance", -1),
}
_SAID = {
    "membership": "generated images tell who was in the training set",
    "authenticity": "generated images are noisy versions of training images",
    "neighbour distance": "generated images are nearer to training images than new patients' images are",
}


@dataclass(frozen=True)
class Verdict:
    """What one test says.

    Attributes:
        test: Its name.
        answer: "clean" = no sign of a leak where one would be seen; "no answer" = it could not tell.
        sentence: In words, with numbers.
        limits: What the test cannot show.
    """

    test: str
    answer: Answer
    sentence: str
    limits: str


def re_identify(sets: Sets, vectors: VectorCache, tools: Tools) -> dict[str, Finding | str]:
    """Return what the verifiers of each extractor found, or why there are none; nothing if the suite asks for none."""
    test = tools.re_identification
    if test is None:
        return {}
    found: dict[str, Finding | str] = {}
    for label, extractor in tools.extractors.items():
        try:
            found[label] = _examined(test, sets, vectors, extractor)
        except ValueError as error:
            found[label] = str(error)
    return found


def _examined(test: ReIdentification, sets: Sets, vectors: VectorCache, extractor: FeatureExtractor) -> Finding:
    if sets.train is None or sets.held_out is None:
        raise ValueError("needs training images and held-out real images, and there are none")
    train = Films(vectors.vectors(sets.train, extractor), sets.train.groups)
    held_out = vectors.vectors(sets.held_out, extractor, test.at_most)
    others = Films(held_out, sets.held_out.groups[: len(held_out)])
    generated = vectors.vectors(sets.generated, extractor, test.at_most)
    test.check_patients(train)  # before images are disturbed in vain
    return test.examine(train, vectors.vectors(sets.train, Disturbed(extractor)), others, generated)


def verdicts(
    rows: Sequence[Row],
    findings: Mapping[str, Finding | str],
    near: list[Copy] | None,
    sets: Sets,
    copies: Copies | None,
) -> list[Verdict]:
    """Return a verdict for each test; all together accuse about ``LEVEL`` of generators that leak nothing.

    Re-identification is exact. Scores with a floor are taken for normal, and the chance of near copies is that of
    images which do not come in groups: experiments/docs/privacy.md tells how often both erred.

    Args:
        rows: The scores.
        findings: Of the re-identification test.
        near: Near copies; None = they could not be told.
        sets: The images.
        copies: The suite's score of near copies.
    """
    tests: list[tuple[str, float]] = []
    found = [finding for finding in findings.values() if isinstance(finding, Finding)]
    tests += [("re-identification", float(p)) for finding in found for p in finding.p_values]
    if near is not None and copies is not None and sets.held_out is not None:
        tests.append(("copies", chance_of_copies(len(near), len(sets.generated), len(sets.held_out), copies)))
    for row in rows:
        test, side = _leak_of(row)
        if test and "floor" in row:
            tests.append((test, _tail(row, side, len(set(sets.held_out.groups)) if sets.held_out is not None else 0)))
    adjusted = holm([p for _, p in tests])
    alarms = {test for (test, _), p in zip(tests, adjusted, strict=True) if p <= LEVEL}
    said = [
        _of_copies(near, sets, copies, "copies" in alarms),
        _of_patients(findings, "re-identification" in alarms, LEVEL / max(1, len(tests))),
    ]
    names = {test for test, _ in tests}
    for test, leak in _SAID.items():
        values = [row for row in rows if _leak_of(row)[0] == test]
        shown = "; ".join(
            f"{row['name'].replace('_', ' ')} {row['at_floor_size']:.3g} at half the images, real images get "
            f"{row['floor_low']:.3g} to {row['floor_high']:.3g}"
            for row in values
            if "floor" in row
        )
        if test in alarms:
            said.append(Verdict(test, "leak", f"A sign that {leak}: {shown}.", LIMITS[test]))
        elif test in names:
            said.append(Verdict(test, "clean", f"No sign that {leak}: {shown}.", LIMITS[test]))
        else:
            refused = values or [row for row in rows if row["value"] is None and row["name"].startswith(test)]
            reasons = (row.get("refused") or "; ".join(row.get("warnings", ())) for row in refused)
            why = "; ".join(dict.fromkeys(filter(None, reasons)))
            said.append(Verdict(test, "no answer", f"No answer: {why or 'the suite leaves it out'}.", LIMITS[test]))
    return said


def _leak_of(row: Row) -> tuple[str, int]:
    known = [_LEAKS[name] for name in _LEAKS if row["name"].startswith(name)]
    return known[0] if known else ("", 0)


def _tail(row: Row, side: int, patients: int) -> float:
    """Return how often images of new patients lie as far on the leaking side of their floor.

    Student's t of score less floor, which varies over halves as it does over patients. A share of 0 or 1 is the same in
    every half, and still is not certain: by the rule of three it may be off by 3 / ``patients``, two standard errors.
    """
    distance = side * (row["at_floor_size"] - row["floor"])
    spread = float(np.std(row["beyond_floor"], ddof=1))
    if row["floor_low"] == row["floor_high"] and patients:
        spread = math.hypot(spread, 1.5 / patients)
    return float(student_t.sf(distance / spread, row["freedom"])) if spread > 0.0 else float(distance <= 0.0)


def chance_of_copies(count: int, generated: int, held_out: int, copies: Copies) -> float:
    """Return how often images of new patients give as many near copies.

    The threshold is the r-th smallest of M distances. Of n + M exchangeable ones, k of the n lie below it exactly if
    the k + r - 1 smallest hold at least k of the n: a hypergeometric tail.
    """
    if count == 0:
        return 1.0
    rank = threshold_rank(held_out, copies.false_alarms)
    smallest = min(count + rank - 1, generated + held_out)
    return float(hypergeom.sf(count - 1, generated + held_out, generated, smallest))


def _of_copies(near: list[Copy] | None, sets: Sets, copies: Copies | None, alarm: bool) -> Verdict:
    test = "copies"
    if near is None or copies is None or sets.held_out is None:
        why = "the suite leaves it out" if copies is None else "it needs training images and held-out real images"
        return Verdict(test, "no answer", f"No answer: {why}.", LIMITS[test])
    images, others = len(sets.generated), len(sets.held_out)
    chance = threshold_rank(others, copies.false_alarms) / (others + 1) * images
    equal = sum(copy.distance == 0.0 for copy in near)
    counted = f"{len(near):,} of {images:,} generated images are near copies of training images in pixels"
    counted += f", by chance it would be about {chance:.1f}"
    if equal:
        return Verdict(test, "leak", f"{equal:,} generated images equal training images; {counted}.", LIMITS[test])
    if alarm:
        return Verdict(test, "leak", f"{counted[0].upper()}{counted[1:]}.", LIMITS[test])
    return Verdict(test, "clean", f"No sign of copies: {counted}.", LIMITS[test])


def _of_patients(findings: Mapping[str, Finding | str], alarm: bool, level: float) -> Verdict:
    test = "re-identification"
    found = {label: finding for label, finding in findings.items() if isinstance(finding, Finding)}
    if not found:
        why = "; ".join(dict.fromkeys(map(str, findings.values()))) or "the suite leaves it out"
        return Verdict(test, "no answer", f"No answer: {why}.", LIMITS[test])
    shown = "; ".join(f"{label}: {_in_words(finding)}" for label, finding in found.items())
    if alarm:
        return Verdict(test, "leak", f"Training patients are known again in generated images. {shown}.", LIMITS[test])
    seeing = [finding for finding in found.values() if finding.area.low > 0.5]
    if not seeing:
        return Verdict(test, "no answer", f"No answer: the verifier cannot tell patients apart. {shown}.", LIMITS[test])
    power = float(np.mean(np.min([finding.planted.amin(dim=1).numpy() for finding in seeing], axis=0) <= level))
    planted = f"a planted leak, films of training patients in place of {PLANTED:.0%} of the images, was found in "
    planted += f"{power:.0%} of the tries"
    if power < ENOUGH_POWER:
        return Verdict(test, "no answer", f"No answer: {planted}. {shown}.", LIMITS[test])
    return Verdict(test, "clean", f"No sign that training patients are known again; {planted}. {shown}.", LIMITS[test])


def _in_words(finding: Finding) -> str:
    near = finding.nearest
    text = (
        f"{finding.to_train:,} of {finding.images:,} generated images are taken for a training patient, by chance it "
        f"would be about {finding.by_chance:.1f}; among equally many training and held-out patients the nearest is a "
        f"training patient in {near.value:.1%} ({near.low:.1%} to {near.high:.1%}) of the images"
    )
    if finding.above is not None:
        above = finding.above
        text += f", above the threshold in {above.value:.0%} ({above.low:.0%} to {above.high:.0%})"
    area = finding.area
    return text + (
        f"; the verifier tells new patients apart with an area of {area.value:.3f} ({area.low:.3f} to {area.high:.3f}) "
        f"and knows {finding.recognised:.0%} of other films again"
    )


def numbers(findings: Mapping[str, Finding | str], scorer: Scorer, tools: Tools) -> dict[str, Any]:
    """Return the findings in plain values, with what two of them must share to be compared, without the matches."""
    said: dict[str, Any] = {}
    for label, finding in findings.items():
        test = tools.re_identification
        assert test is not None
        if isinstance(finding, str):
            said[label] = {"refused": finding}
            continue
        plain = {key: value for key, value in asdict(finding).items() if key not in ("matches", "p_values", "planted")}
        plain |= {"p_values": finding.p_values.tolist()}
        said[label] = {**plain, "fingerprint": scorer.fingerprint(test, tools.extractors[label])}
    return said


def write_matches(path: Path, findings: Mapping[str, Finding | str], sets: Sets, pseudonyms: Pseudonyms) -> None:
    """Write which generated images are taken for which training patients: patients' data, by pseudonyms."""
    assert sets.train is not None
    lines: list[list[Any]] = [["extractor", "generated", "training image (pseudonym)", "score", "threshold"]]
    for label, finding in findings.items():
        for match in finding.matches if isinstance(finding, Finding) else ():
            train = pseudonyms.of(sets.train.names[match.train])
            lines.append([label, sets.generated.names[match.generated], train, match.score, match.threshold])
    write_text(path, csv_text(lines))


def why_not_private(path: Path, directory: Path, weights_sha256: str) -> list[str]:
    """Return why a generator may not be called private; nothing = a finished evaluation of it is clean.

    Args:
        path: The run or checkpoint, as the user named it.
        directory: The run directory.
        weights_sha256: Of the generator.
    """
    command = f"python -m experiments.evaluate {path} suite={SUITE}"
    evaluations = {file.parent.name: read_object(file) for file in sorted(directory.glob("evaluation/*/scores.json"))}
    of_suite = {name: said for name, said in evaluations.items() if said.get("suite") == SUITE}
    own = {name: said for name, said in of_suite.items() if said.get("weights_sha256") == weights_sha256}
    if not own:
        why = "there is no finished privacy evaluation"
        if of_suite:
            why = f"the privacy evaluations in {directory / 'evaluation'} are of other weights"
        return [f"--require-privacy: {why}; run: {command}"]
    answers = {name: _answers(said) for name, said in own.items()}
    leaks = _with("leak", answers)
    if leaks:  # another evaluation, with other images, does not wash it off
        return leaks
    beside = {name: why for name, said in own.items() if (why := beside_the_point(said))}
    answers = {name: found for name, found in answers.items() if name not in beside}
    if any(all(given == "clean" for given, _ in found.values()) for found in answers.values()):
        return []
    unclean = [f"--require-privacy: {name}: {why}." for name, why in beside.items()] + _with("no answer", answers)
    return [*unclean[:-1], f"{unclean[-1]} After a change run again: {command}"]


def beside_the_point(said: dict[str, Any]) -> str:
    """Return why a clean evaluation of a generator says nothing of it as it is exported, or nothing."""
    real, generated = (one if isinstance(one := said.get(key), dict) else {} for key in ("real", "generated"))
    if real.get("data_set") == "folder":
        return "it was against a folder, and nothing says that the generator was trained on its images"
    if (truncation := generated.get("truncation", 1.0)) != 1.0:
        return f"its images have truncation={truncation}, those of the exported generator have 1"
    return ""


def _answers(said: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return answer and sentence of every test; a file may be damaged."""
    listed = said.get("privacy")
    found = {str(one.get("test")): one for one in listed if isinstance(one, dict)} if isinstance(listed, list) else {}
    missing = {"answer": "no answer", "sentence": "No answer: the evaluation does not hold this test."}
    answers = {test: {**missing, **found.get(test, {})} for test in LIMITS}
    known = ("clean", "leak")
    return {
        test: (one["answer"] if one["answer"] in known else "no answer", str(one["sentence"]))
        for test, one in answers.items()
    }


def _with(answer: str, answers: dict[str, dict[str, tuple[str, str]]]) -> list[str]:
    """Return the tests of these evaluations that gave an answer, in words."""
    return [
        f"--require-privacy: {evaluation}: {test}: {sentence}"
        for evaluation, found in answers.items()
        for test, (given, sentence) in found.items()
        if given == answer
    ]
