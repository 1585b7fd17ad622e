"""Sahakyan 2024: the report on kidney CT GANs with a learnable kernel.

Beside the tables that all papers have, each row has its samples (section 4.4), edges (3.3.1), embeddings (4.3), losses
(4.5.5), and the kernel's effect (figure 3.11).
"""

from collections.abc import Sequence

from experiments.figures.edges import edge_figure
from experiments.figures.embeddings import pairs_figure, scatter_figure
from experiments.figures.kernel import kernel_change, kernel_figure
from experiments.pages.elements import Html, element, heading, joined, paragraph
from experiments.pages.pictures import captioned, inline_figure, picture, plot, side_by_side
from experiments.papers import page
from experiments.papers.study import Measured, Study
from experiments.record.loading import untrained
from experiments.record.tracking import read_rows
from lightning_modules.networks.kidney import Generator
from lightning_modules.networks.latents import sample_latents

SAMPLES, KERNELS = 24, 4  # images of each set, latents whose first layer is shown
EXTRACTORS = {  # the paper's first
    "inception": "Inception-v3's features, as in the paper",
    "efficientnet_lite0": "EfficientNet-Lite0's features; the paper's are Inception-v3's",
    "random_conv": "features of a network with random weights; the paper's are Inception-v3's",
}


def write_report(study: Study) -> list[str]:
    """Measure what has finished, write ``report.html`` and ``numbers.csv``, and return lines that say what came out.

    Raises:
        ConfigError: If nothing has finished.
    """
    findings = page.find(study)
    return page.write(
        study, findings, [_row(study.rows[name].title, found) for name, found in findings.rows.items() if found]
    )


def _row(title: str, found: Sequence[Measured]) -> Html:
    """Return the section of a row, from its first seed."""
    one = found[0]
    extractor = next(name for name in EXTRACTORS if name in one.extractors)
    embeddings = one.embeddings(extractor)
    real, generated = (images.read(0, min(SAMPLES, len(images))) for images in (one.sets.real, one.sets.generated))
    more = element("code", f"python -m experiments.evaluate {one.directory}")
    parts = [
        heading(title),
        paragraph(f"Seed {one.run.seed}. More about it: ", more),
        side_by_side(
            captioned(picture(generated, 6), "Generated, not selected"),
            captioned(picture(real, 6), "Real, not selected"),
        ),
        heading("Edges", 3),
        inline_figure(edge_figure(real, generated)),
        heading("Embeddings", 3),
        paragraph(f"Of {EXTRACTORS[extractor]}."),
        inline_figure(scatter_figure(*embeddings, one.run.seed)),
        inline_figure(pairs_figure(*embeddings, one.run.seed)),
        heading("Losses", 3),
        _losses(one),
    ]
    generator = one.trained.module.generator_ema
    if isinstance(generator, Generator) and generator.kernel is not None:
        parts += [heading("The kernel's effect", 3), _kernel(found)]
    return joined(parts)


def _losses(one: Measured) -> Html:
    rows = read_rows(one.directory / "metrics.jsonl")
    return plot(rows, sorted({key for row in rows for key in row if key.startswith("loss/")}), "loss")


def _kernel(found: Sequence[Measured]) -> Html:
    changes, figure = [], Html()
    for one in found:
        module, start = one.trained.module, untrained(one.trained.config).generator
        trained = module.generator_ema
        assert isinstance(start, Generator) and isinstance(trained, Generator)
        changes.append(f"{kernel_change(start, trained):.1%} (seed {one.run.seed})")
        if not figure:
            latents = sample_latents(module.prior, KERNELS, module.latent_dim, one.run.seed).to(module.device)
            figure = inline_figure(kernel_figure(start.to(module.device), trained, latents))
    said = paragraph(
        f"Training changed the kernel by {', '.join(changes)} of its norm. With it left out, the trained network "
        "draws the images on the right. What training without a kernel gives is another row: the layer before it can "
        "learn the same."
    )
    return joined([said, figure])
