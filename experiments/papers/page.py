"""What the reports of all papers share: the paper's numbers and claims beside ours, the ranking, the runs, the CSV."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.configuration.errors import ConfigError
from experiments.pages.elements import REAL_IMAGES, Html, folded, heading, joined, listed, page, paragraph
from experiments.pages.pictures import inline_figure
from experiments.pages.tables import table
from experiments.pages.text import csv_text, text_of
from experiments.papers.paper import Claim, Number
from experiments.papers.study import Measured, Study
from experiments.papers.verdicts import Verdict, of_claim, of_number, score_of, spread
from experiments.record.run_directory import write_text

EXPLAINING = {
    "precision": "precision",
    "recall": "recall",
    "neighbour_distance_ratio": "distance to training images, in units of held-out images' distance",
}
OF_A_SCORE = ("extractor", "weights_sha256", "generated", "resolution", "device", "code_version")  # of its fingerprint


@dataclass(frozen=True)
class Findings:
    """What a study has found.

    Attributes:
        rows: Every row's finished runs, by name.
        numbers: The paper's numbers, what they are compared with, and the verdicts.
        claims: Its claims and the verdicts.
    """

    rows: Mapping[str, Sequence[Measured]]
    numbers: Sequence[tuple[Number, Sequence[Measured], Verdict]]
    claims: Sequence[tuple[Claim, Verdict]]


def find(study: Study) -> Findings:
    """Measure what has finished.

    Raises:
        ConfigError: If nothing has.
    """
    if not any(run.directory() for run in study.runs):
        raise ConfigError([f"{study.folder}: none of its {len(study.runs)} runs has finished"])

    def at(row: str, images: int | None) -> list[Measured]:
        return [one for run in study.runs_of(row) if (one := study.measure(run, images))]

    rows = {name: at(name, None) for name in study.rows}
    numbers = [(number, at(number.row, number.images)) for number in study.paper.numbers]
    claims = [(one, at(one.better, one.images), at(one.worse, one.images)) for one in study.paper.claims]
    return Findings(
        rows,
        [(number, found, of_number(study, number, found)) for number, found in numbers],
        [(one, of_claim(study, (one.better, one.worse), first, second)) for one, first, second in claims],
    )


def write(study: Study, findings: Findings, own_parts: Sequence[Html]) -> list[str]:
    """Write ``numbers.csv`` and ``report.html``, and return lines that say what came out.

    Args:
        study: The study.
        findings: What it has found.
        own_parts: What only this paper has.
    """
    _write_csv(study, study.folder / "numbers.csv", findings)
    path = study.folder / "report.html"
    title = f"{study.paper.name}, scale {study.settings.scale}"
    write_text(path, page(title, *_head(study, findings), *own_parts))
    path.chmod(0o600)  # it shows patients' images
    titles = study.paper.rows
    lines = ["", f"{'row':<24} {'paper':>6}  {'ours':<42} verdict"]
    for number, found, verdict in findings.numbers:
        lines.append(f"{number.row:<24} {_paper(number):>6}  {_shown(found, _score(study, found)):<42} {verdict.word}")
    lines.append("")
    for claim, verdict in findings.claims:
        said = f"{titles[claim.better].title} better than {titles[claim.worse].title} ({claim.source})"
        lines.append(f"{said}: {verdict.word}. {verdict.sentence}")
    return [*lines, "", f"numbers {study.folder / 'numbers.csv'}", f"report  {path}"]


def _paper(number: Number) -> str:
    return "-" if number.value is None else f"{number.value:g}"


def _score(study: Study, found: Sequence[Measured]) -> str:
    return score_of(study, {"": found})


def _shown(found: Sequence[Measured], score: str) -> str:
    ours = spread(found, score)
    return "-" if ours is None else str(ours)


def _write_csv(study: Study, path: Path, findings: Findings) -> None:
    """Write one row per number: the paper's, the verdict, every score with its interval, and how ours was taken."""
    scores = [f"{score}{what}" for score in study.paper.columns for what in ("", "_low", "_high", "_per_seed")]
    lines: list[list[Any]] = [
        ["row", "paper", "after", "section", "verdict", "why", *scores, "score_of_verdict", *OF_A_SCORE]
    ]
    for number, found, verdict in findings.numbers:
        cells = [number.row, number.value, number.after, number.section, verdict.word, verdict.sentence]
        for score in study.paper.columns:
            ours = spread(found, score)
            cells += [ours.mean, ours.low, ours.high, " ".join(map(repr, ours.values))] if ours else [None] * 4
        score = _score(study, found)
        fingerprint = found[0].scores[score]["fingerprint"] if found and score in found[0].scores else {}
        lines.append([*cells, score if found else "", *(fingerprint.get(key, "") for key in OF_A_SCORE)])
    write_text(path, csv_text(lines))


# The page -------------------------------------------------------------------------------------------------------------


def _head(study: Study, findings: Findings) -> list[Html]:
    less = f"Less than in the paper: {study.scale.about}. " if study.scale.about else "For as long as in the paper. "
    missing = [f"{run.folder.name} ({run.state()})" for run in study.runs if run.directory() is None]
    left_out = [row.title for name, row in study.paper.rows.items() if name not in study.rows]
    return [
        paragraph(study.paper.title),
        paragraph(f"{less}Open in the paper, and ours: {study.paper.ours}."),
        REAL_IMAGES,
        paragraph(_in_short(findings), kind="plain"),
        *([paragraph(f"Left out at this scale: {', '.join(left_out)}.")] if left_out else []),
        *([paragraph(f"Not finished: {', '.join(missing)}.")] if missing else []),
        heading("The paper's numbers"),
        _number_table(study, findings),
        _how_to_read(findings),
        heading("Which is better"),
        _claim_table(study, findings),
        _ranking(study, findings),
        heading("Runs"),
        _run_table(study, findings),
        *([folded("What the scores warn of", listed(warnings))] if (warnings := _warnings(findings)) else []),
    ]


def _in_short(findings: Findings) -> str:
    """Count what became of the paper's numbers and claims."""
    counted = [Counter(verdict.word for *_, verdict in found) for found in (findings.numbers, findings.claims)]
    said = (", ".join(f"{count} {word}" for word, count in counts.most_common()) or "none" for counts in counted)
    return "Of the paper's scores: {}. Of its claims: {}.".format(*said)


def _number_table(study: Study, findings: Findings) -> Html:
    taken = [score for score in study.paper.columns if any(spread(found, score) for _, found, _ in findings.numbers)]
    rows = []
    for number, found, verdict in findings.numbers:
        cells = [study.paper.rows[number.row].title, _paper(number), number.after, number.section]
        rows.append([*cells, *(_shown(found, score) for score in taken), verdict.word, verdict.sentence])
    titles = [study.paper.columns[score] for score in taken]
    return table(("row", "paper", "after", "section", *titles, "verdict", "why"), rows, "words last")


def _claim_table(study: Study, findings: Findings) -> Html:
    titles = study.paper.rows
    rows = [
        (titles[claim.better].title, titles[claim.worse].title, claim.source, verdict.word, verdict.sentence)
        for claim, verdict in findings.claims
    ]
    return table(("said to be better", "than", "by", "verdict", "why"), rows, "words last")


def _ranking(study: Study, findings: Findings) -> Html:
    """Return the scores of all rows, best first, with the interval of every seed, one plot per resolution."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for name, found in findings.rows.items():
        if found:
            sizes.setdefault(tuple(found[0].sets.real.size), []).append(name)
    parts = []
    for size, names in sorted(sizes.items()):
        score = score_of(study, {name: findings.rows[name] for name in names})
        spreads = {name: spread(findings.rows[name], score) for name in names}
        ranked = sorted((of.mean, name) for name, of in spreads.items() if of is not None)
        figure = Figure(figsize=(9, 1.2 + 0.45 * len(ranked)), layout="constrained")
        axes = figure.subplots()
        for place, (_, name) in enumerate(reversed(ranked)):
            for i, one in enumerate(findings.rows[name]):
                row = one.scores[score]
                offset = place - 0.12 * (i - (len(findings.rows[name]) - 1) / 2)
                if "low" in row:
                    axes.plot([row["low"], row["high"]], [offset, offset], color="#08519c")
                axes.plot([row["value"]], [offset], "o", color="#08519c", markersize=5)
        axes.set_yticks(range(len(ranked)), [study.rows[name].title for _, name in reversed(ranked)])
        axes.set(title=f"{size[0]}x{size[1]} pixels", xlabel=f"{study.paper.columns[score]}: each seed, its interval")
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
        parts.append(inline_figure(figure))
    return joined(parts)


def _run_table(study: Study, findings: Findings) -> Html:
    rows = []
    label = next(iter(study.tools.extractors))
    for name, found in findings.rows.items():
        for one in found:
            module = one.trained.module
            clock, batch = module.images_seen, module.schedule.at(0).batch_size
            cadence = next(phase.cadence for phase in module.phases() if phase.name == "generator")
            height, width = module.schedule.resolutions()[-1]
            passes = clock / module.data_facts["images"]["train"]
            cells = [
                f"{height}x{width}",
                f"{batch}",
                f"{clock:,}",
                f"{passes:,.0f}",
                f"{cadence.steps(clock // batch):,}",
            ]
            explained = [one.scores.get(f"{score}_{label}", {}).get("value") for score in EXPLAINING]
            cells += ["-" if value is None else text_of(value) for value in explained]
            rows.append([study.rows[name].title, str(one.run.seed), *cells])
    head = ("row", "seed", "pixels", "batch", "images seen", "passes", "generator updates")
    return table((*head, *(f"{title} ({label})" for title in EXPLAINING.values())), rows)


def _warnings(findings: Findings) -> list[str]:
    measured = [one for found in findings.rows.values() for one in found]
    said = [
        f"{name}: {text}" for one in measured for name, row in one.scores.items() for text in row.get("warnings", ())
    ]
    return list(dict.fromkeys(said))


def _how_to_read(findings: Findings) -> Html:
    one = next(found[0] for found in findings.rows.values() if found)
    return paragraph(
        f"{len(one.sets.generated):,} generated against {len(one.sets.real):,} real training images. Scores are the "
        "mean over the seeds, each seed in brackets, then from the lowest to the highest end of their 95 % intervals, "
        "taken over random halves of the images. Which row is better is decided only where no interval of one row's "
        "seeds overlaps one of the other's: the intervals cover the images that were drawn, the seeds the training."
    )
