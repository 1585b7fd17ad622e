"""Sahakyan 2024: the report on kidney CT GANs with a learnable kernel, its figures and tables.

Every score of chapter 4 stands beside ours with a verdict, then what the paper says about which is better. For each row
follow samples (section 4.4), edges (3.3.1), embeddings (4.3), losses (4.5.5) and the kernel's effect (figure 3.11).
"""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.evaluation.page import OWN_STYLE, picture
from experiments.loading import untrained
from experiments.papers.study import Measured, Number, Study
from experiments.papers.verdicts import EMBEDDED, FID, Verdict, of_claim, of_number, range_of, score_of, spread
from experiments.report import STYLE, csv_cell, inline_figure, plot
from experiments.run_directory import write_text
from experiments.studies.edges import edge_figure
from experiments.studies.embedding_figures import pairs_figure, scatter_figure
from experiments.studies.kernel_figure import kernel_change, kernel_figure
from experiments.tracking import read_rows
from lightning_modules.networks.kidney import Generator
from lightning_modules.networks.latents import sample_latents

SAMPLES, KERNELS = 24, 4  # images of each set, latents whose first layer is shown
SINGLE_ROOT = "frechet_single_root"
COLUMNS = ("row", "paper", "after", "section", "ours", "low", "high", "per_seed", "score", "verdict", "why")
PAGE_STYLE = f"{STYLE}{OWN_STYLE}.numbers td:last-child, .numbers th:last-child {{ text-align: right }}"
Found = Mapping[str, Sequence[Measured]]


def write_report(study: Study) -> list[str]:
    """Measure what has finished, write ``report.html`` and ``numbers.csv``, and return lines that say what came out."""
    found = {row: [one for run in study.runs_of(row) if (one := study.measure(run))] for row in study.rows}
    numbers = [(number, *_of_number(study, number, found)) for number in study.paper.numbers if number.row in found]
    _write_csv(study.folder / "numbers.csv", numbers)
    write_text(study.folder / "report.html", _page(study, found, numbers))
    (study.folder / "report.html").chmod(0o600)  # shows patients' images
    lines = ["", f"{'row':<22} {'paper':>6}  {'ours':<42} verdict"]
    for number, measured, verdict in numbers:
        lines.append(f"{number.row:<22} {_paper(number):>6}  {_ours(measured):<42} {verdict.word}")
    lines += ["", *(f"{said}: {verdict.word} ({verdict.sentence})" for said, verdict in _claims(study, found))]
    return [*lines, "", f"numbers {study.folder / 'numbers.csv'}", f"report  {study.folder / 'report.html'}"]


# Tables ---------------------------------------------------------------------------------------------------------------


def _of_number(study: Study, number: Number, found: Found) -> tuple[list[Measured], Verdict]:
    """Return what a number is compared with, and what became of it."""
    measured = list(found[number.row])
    if number.images is not None and not study.scale.about:  # a smaller run has no such clock: its end stands in
        kept = [study.measure(one.run, number.images) for one in measured]
        measured = [one for one in kept if one]
    return measured, of_number(study, number, measured)


def _claims(study: Study, found: Found) -> list[tuple[str, Verdict]]:
    rows, verdicts = study.rows, []
    for claim in study.paper.claims:
        if claim.better in found and claim.worse in found:
            pair = {name: found[name] for name in (claim.better, claim.worse)}
            said = f"{rows[claim.better].title} is better than {rows[claim.worse].title} (section {claim.section})"
            verdicts.append((said, of_claim(score_of(pair), pair[claim.better], pair[claim.worse])))
    return verdicts


def _paper(number: Number) -> str:
    return "-" if number.value is None else f"{number.value:g}"


def _ours(measured: Sequence[Measured]) -> str:
    ours = spread(measured, score_of({"": measured}))
    return "-" if ours is None else str(ours)


def _write_csv(path: Path, numbers: Sequence[tuple[Number, list[Measured], Verdict]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, measured, verdict in numbers:
        for score in (FID, f"{SINGLE_ROOT}_inception", EMBEDDED, f"{SINGLE_ROOT}_random_conv"):
            ours = spread(measured, score)
            if ours is None and score != score_of({"": measured}):
                continue
            said = [number.row, _paper(number), number.after, number.section]
            values = [ours.mean, ours.low, ours.high, " ".join(map(repr, ours.values))] if ours else ["", "", "", ""]
            writer.writerow(map(csv_cell, [*said, *values, score, verdict.word, verdict.sentence]))
    write_text(path, buffer.getvalue())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "words") -> str:
    top = "".join(f"<th>{html.escape(cell)}" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<div class=scroll><table class={kind}><tr>{top}{body}</table></div>"


def _number_table(study: Study, numbers: Sequence[tuple[Number, list[Measured], Verdict]]) -> str:
    rows = []
    for number, measured, verdict in numbers:
        cells = [study.rows[number.row].title, _paper(number), number.after, number.section]
        for score in (FID, f"{SINGLE_ROOT}_inception", EMBEDDED, f"{SINGLE_ROOT}_random_conv"):
            ours = spread(measured, score)
            cells.append("-" if ours is None else str(ours))
        rows.append([*cells, verdict.word, verdict.sentence])
    head = (
        "row",
        "paper",
        "after",
        "section",
        "FID",
        "formula 4.1",
        "embedded extractor",
        "its formula 4.1",
        "verdict",
        "why",
    )
    empty = [i for i in range(4, 8) if all(row[i] == "-" for row in rows)]
    kept = [i for i in range(len(head)) if i not in empty]
    return _table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _run_table(study: Study, found: Found) -> str:
    rows = []
    for name, measured in found.items():
        for one in measured:
            schedule, facts = one.trained.module.schedule, one.trained.module.data_facts
            clock, batch = one.trained.module.images_seen, schedule.at(0).batch_size
            every = next(phase.every for phase in one.trained.module.phases() if phase.name == "generator")
            updates = clock // batch // every
            height, width = schedule.resolutions()[-1]
            epochs = clock / facts["images"]["train"]
            cells = [f"{height}x{width}", f"{batch}", f"{clock:,}", f"{epochs:,.0f}", f"{updates:,}"]
            rows.append([study.rows[name].title, str(one.run.seed), *cells])
    head = ("row", "seed", "pixels", "batch", "images seen", "passes over the training images", "generator updates")
    return _table(head, rows, "numbers")


# Figures --------------------------------------------------------------------------------------------------------------


def _ranking(study: Study, found: Found) -> str:
    """Return the scores of all rows, best first, with the interval of every seed, one plot per resolution."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for name, measured in found.items():
        if measured:
            sizes.setdefault(tuple(measured[0].sets.real.size), []).append(name)
    parts = []
    for size, names in sorted(sizes.items()):
        score = score_of({name: found[name] for name in names})
        spreads = {name: spread(found[name], score) for name in names}
        ranked = sorted((of.mean, name) for name, of in spreads.items() if of is not None)
        figure = Figure(figsize=(9, 1.2 + 0.45 * len(ranked)), layout="constrained")
        axes = figure.subplots()
        for place, (_, name) in enumerate(reversed(ranked)):
            for i, one in enumerate(found[name]):
                ends = range_of(one, score)
                assert ends is not None
                offset = place - 0.12 * (i - (len(found[name]) - 1) / 2)
                axes.plot([ends[0], ends[2]], [offset, offset], color="#08519c")
                axes.plot([ends[1]], [offset], "o", color="#08519c", markersize=5)
        axes.set_yticks(range(len(ranked)), [study.rows[name].title for _, name in reversed(ranked)])
        axes.set(title=f"{size[0]}x{size[1]} pixels", xlabel=f"{_name(score)}; a dot and its interval for each seed")
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
        parts.append(inline_figure(figure))
    return "".join(parts)


def _name(score: str) -> str:
    return {FID: "FID", EMBEDDED: "Frechet distance of the embedded extractor"}[score]


def _row_section(study: Study, name: str, measured: Sequence[Measured]) -> str:
    one = measured[0]
    extractor = "inception" if "inception" in one.extractors else "random_conv"
    real, generated = one.embeddings(extractor)
    real_images, generated_images = (of.read(0, min(SAMPLES, len(of))) for of in (one.sets.real, one.sets.generated))
    pair = "".join(
        f"<figure>{picture(images, 6)}<figcaption>{caption}, not selected</figcaption></figure>"
        for caption, images in (("Real", real_images), ("Generated", generated_images))
    )
    generator = one.trained.module.generator_ema
    parts = [
        f"<h2>{html.escape(study.rows[name].title)}</h2>",
        f"<p>Seed {one.run.seed}. Everything else about it: <code>python -m experiments.evaluate "
        f"{html.escape(str(one.directory))}</code></p>",
        f"<div class='pair grid'>{pair}</div>",
        "<h3>Edges</h3>",
        inline_figure(edge_figure(real_images, generated_images)),
        "<h3>Embeddings</h3>",
        inline_figure(scatter_figure(real, generated, one.run.seed)),
        inline_figure(pairs_figure(real, generated, one.run.seed)),
        "<h3>Losses</h3>",
        _losses(measured),
    ]
    if isinstance(generator, Generator) and generator.kernel is not None:
        parts += ["<h3>The kernel's effect</h3>", _kernel(measured)]
    return "".join(parts)


def _losses(measured: Sequence[Measured]) -> str:
    rows = read_rows(measured[0].directory / "metrics.jsonl")
    return plot(rows, sorted({key for row in rows for key in row if key.startswith("loss/")}), "loss")


def _kernel(measured: Sequence[Measured]) -> str:
    changes, figure = [], ""
    for one in measured:
        start, trained = untrained(one.trained.config).generator, one.trained.module.generator_ema
        assert isinstance(start, Generator) and isinstance(trained, Generator)
        start.eval().requires_grad_(False)
        changes.append(kernel_change(start, trained))
        if not figure:
            module = one.trained.module
            latents = sample_latents(module.prior, KERNELS, module.latent_dim, one.run.seed).to(module.device)
            figure = inline_figure(kernel_figure(start.to(module.device), trained, latents))
    said = ", ".join(f"{change:.1%}" for change in changes)
    return f"<p>Training changed the kernel by {said} of its norm (one figure per seed).</p>{figure}"


# Page -----------------------------------------------------------------------------------------------------------------


def _page(study: Study, found: Found, numbers: Sequence[tuple[Number, list[Measured], Verdict]]) -> str:
    title = f"{study.paper.name}, scale {study.settings.scale}"
    less = f"Less than in the paper: {study.scale.about}." if study.scale.about else "As in the paper."
    missing = [run.folder.name for run in study.runs if run.directory() is None]
    measured = {name: of for name, of in found.items() if of}
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{PAGE_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(study.paper.title)}</p><p>{html.escape(less)}</p>",
        "<p class=note>This file shows real images beside generated ones. Treat it as patient data.</p>",
        f"<p>Not finished, and left out: {html.escape(', '.join(missing))}.</p>" if missing else "",
        "<h2>The paper's numbers</h2>",
        _number_table(study, numbers),
        _how_to_read(study, measured),
        "<h2>Which is better</h2>",
        _table(
            ("the paper says", "verdict", "why"),
            [[said, verdict.word, verdict.sentence] for said, verdict in _claims(study, found)],
        ),
        _ranking(study, measured),
        "<h2>Runs</h2>",
        _run_table(study, measured),
        *(_row_section(study, name, of) for name, of in measured.items()),
    ]
    return "\n".join(parts)


def _how_to_read(study: Study, measured: Found) -> str:
    one = next((of[0] for of in measured.values()), None)
    images = (
        f"{len(one.sets.generated):,} generated against {len(one.sets.real):,} real training images. " if one else ""
    )
    return (
        f"<p>{images}Mean over the seeds, each seed in brackets, then from the lowest to the highest end of their "
        "95 % intervals, which are taken over random halves of the images. The FID is the Frechet distance of "
        "Inception-v3's features; formula 4.1 is printed without the factor 2 before the root and is no distance: of "
        "equal sets it is not 0. The embedded extractor has fixed random weights: it ranks runs on one data set and "
        "says nothing in absolute terms. Which is better is told apart only where no interval of one row's seeds "
        "overlaps one of the other's; the intervals cover the images that were drawn, the seeds the training.</p>"
    )
