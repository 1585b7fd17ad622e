"""Do the moments of real and generated images agree? ``python -m experiments.measuring.moments REAL GENERATED``.

The analysis of Korkinof 2021 (Radiology: Artificial Intelligence 3(2):e190181) on two folders of 8- or 16-bit PNG or
DICOM files: agreement and neighbours (tables 1 and 2), the scatter matrix and the density contours (figures 3 and 6),
and what leaving out generated images far from all real ones does. MLO and CC are two calls. Writes ``report.html``,
which needs no network, and ``tables.csv``.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.decoding.dicom import read_dicom
from datamodules.decoding.readers import DICOM, is_deep, read_grey
from datamodules.decoding.value_range import ends_of, range_of, share_used, unlike_shares
from datamodules.files.cache import content_hashes
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import find_files
from datamodules.records.mammography_layouts import view_of
from experiments.measuring.folders import FileSet, copies_among, image_cache, overlap, said_of_copies
from experiments.measuring.moment_analysis import MomentStudy, PruningEffect, analyse, pruning_effect
from experiments.measuring.moments_page import pruning_section, sections, tables_csv
from experiments.pages.elements import page, paragraph
from experiments.record.run_directory import write_text
from lightning_modules.metrics.agreement import MomentAgreement
from lightning_modules.metrics.moments import moments, moments_of_levels
from lightning_modules.metrics.score import TooFewImagesError


@dataclass(frozen=True)
class Folder:
    """Moments of the images of a folder, and what was done to get them.

    Attributes:
        moments: (N, 5) float64.
        said: How many images, of which container, on which scale.
        share: Share of the range of values that the images use, see ``share_used``.
        files: What tells whether the images also lie elsewhere.
        warnings: What the user has to know, without names of files.
    """

    moments: Tensor
    said: str
    share: float
    files: FileSet
    warnings: tuple[str, ...]


class _Image(NamedTuple):
    """What is kept of an image: its moments (1, 5), the scale that they are on, and the ends of its values."""

    moments: Tensor
    scale: str
    ends: np.ndarray


def read_folder(
    root: Path,
    value_range: tuple[float, float] | None = None,
    view: str | None = None,
    generated: bool = False,
) -> Folder:
    """Read all PNG and DICOM files below a folder, in threads; images may differ in size.

    Args:
        root: The folder.
        value_range: Values that are black and white: stored ones of PNG files, of DICOM files those that rescaling
            leads to (CT: HU); None = what PNG files say (``range_of``), and DICOM as a viewer shows them.
        view: Only images of this view, by DICOM tag or file name; None = all.
        generated: Whether the images are generated: of real ones the copies of files are left out, and those of which
            the view is not known.

    Raises:
        DataError: If there is no such image, or some cannot be used.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    paths = find_files(root, DICOM | {".png"})
    which, setting = ("generated", "--generated-value-range") if generated else ("real", "--value-range")
    contents = dict(zip(paths, content_hashes(paths, image_cache() / "hashes" / "folders.json"), strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        if view is not None:
            wanted = {view, None} if generated else {view}
            views = list(pool.map(view_of, paths))
            paths = [path for path, found in zip(paths, views, strict=True) if found in wanted]
        if not paths:
            of_view = "" if view is None else f" whose tags or name (as in 0_L-{view}.png) say {view}"
            raise DataError(f"{root}: holds no PNG or DICOM file{of_view}")
        copies, count = copies_among(paths, [contents[path] for path in paths]), len(paths)
        if not generated:
            paths = [path for i, path in enumerate(paths) if i not in copies]
        results = pool.map(partial(_read_or_error, value_range=value_range, setting=setting), paths)
        found = list(tqdm(results, root.name, len(paths), unit="image", disable=None))
    errors = [result for result in found if isinstance(result, UnreadableImageError)]
    if errors:
        raise DataError(
            f"{root}: {len(errors)} of {len(paths)} images cannot be used, e.g. {errors[0]}; repair or remove them"
        )
    images = [result for result in found if not isinstance(result, UnreadableImageError)]
    kinds = Counter(image.scale for image in images)
    said = "; ".join(f"{number:,} {scale}" for scale, number in sorted(kinds.items()))
    return Folder(
        torch.cat([image.moments for image in images]),
        said if view is None else f"{said}; view {view}",
        share_used(image.ends for image in images),
        FileSet(str(root), root, [path.name for path in paths], [contents[path] for path in paths]),
        said_of_copies(which, len(copies), count),
    )


def warnings_of(real: Folder, generated: Folder) -> list[str]:
    """Return what the user has to know of two folders before any number is taken.

    Raises:
        DataError: If one lies in the other, or they share files.
    """
    shared = overlap(generated.files, real.files)
    if shared:
        raise DataError(shared[0])
    shares = unlike_shares(real.share, generated.share, "--value-range", "--generated-value-range")
    return [*real.warnings, *generated.warnings, *([shares] if shares else [])]


def _read_or_error(path: Path, value_range: tuple[float, float] | None, setting: str) -> _Image | UnreadableImageError:
    """Return what is kept of an image, or why it cannot be used."""
    try:
        if path.suffix.lower() in DICOM:
            shown = 2.0 * torch.from_numpy(read_dicom(path, value_range=value_range)).double()[None, None] - 1.0
            what = f"values {value_range[0]:g} to {value_range[1]:g}" if value_range else "as displayed, black to white"
            return _Image(moments(shown), f"DICOM {what}", ends_of(shown.numpy()))
        values, bits = read_grey(path), 16 if is_deep(path) else 8
        low, high = range_of(path, values, value_range, setting)
        stored = values.astype(np.uint16 if bits == 16 else np.uint8)
        if not np.array_equal(stored, values):
            raise UnreadableImageError(f"{path.name}: holds values that are no whole numbers of {bits} bits")
        scale = f"PNG of {bits} bits, values {low:g} to {high:g}"
        return _Image(moments_of_levels(stored, (low, high)), scale, 2.0 * (ends_of(values) - low) / (high - low) - 1.0)
    except UnreadableImageError as error:
        return error
    except ValueError as error:
        return UnreadableImageError(f"{path.name}: {error}")


def main(arguments: list[str] | None = None) -> int:
    """Compare two folders; returns 0, or 1 after saying what is wrong with them."""
    parser = argparse.ArgumentParser(prog="python -m experiments.measuring.moments", description=__doc__)
    parser.add_argument("real", type=Path, metavar="REAL", help="folder of real images, PNG or DICOM, searched below")
    parser.add_argument("generated", type=Path, metavar="GENERATED", help="folder of generated images, in the same way")
    parser.add_argument(
        "--view",
        choices=("CC", "MLO"),
        help="only mammograms of this view, by DICOM tag or file name; generated ones that do not say it are kept",
    )
    for which in ("", "generated-"):
        parser.add_argument(
            f"--{which}value-range",
            type=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help="values that are black and white in the files of "
            + ("GENERATED" if which else "REAL")
            + ", e.g. 0 4095; of DICOM files in the unit of their rescaling (default: 0 255 for PNG files of 8 bits, "
            "what Mirage's files of 16 bits say, and DICOM as displayed)",
        )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/moments"), help="folder of report.html and tables.csv"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the images drawn and those left out at random")
    options = parser.parse_args(arguments)
    roots = options.real.resolve(), options.generated.resolve()
    ranges = _range(options.value_range), _range(options.generated_value_range)
    try:
        real = read_folder(roots[0], ranges[0], options.view)
        generated = read_folder(roots[1], ranges[1], options.view, generated=True)
        warnings = warnings_of(real, generated)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        study = analyse(real.moments, generated.moments, options.seed)
        effect = _effect_on_agreement(study)
    except (DataError, TooFewImagesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parts = [
        paragraph(f"Real: {real.said}. Generated: {generated.said}."),
        *(paragraph(warning, kind="note") for warning in warnings),
        *sections(study),
        *([pruning_section(effect)] if effect else []),
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / "report.html", page(f"Moments of {roots[1].name} against {roots[0].name}", *parts))
    write_text(options.output / "tables.csv", tables_csv(study, effect))
    print(f"real: {real.said}\ngenerated: {generated.said}")
    print(f"agreement of single moments {_span(study.agreement[i][i] for i in range(5))} (1 = the same)")
    print(f"neighbours {_span(study.neighbours)} (6 = the same), contours covered {_span(study.coverage.values())}")
    print(f"wrote {options.output / 'report.html'} and {options.output / 'tables.csv'}")
    return 0


def _range(given: list[float] | None) -> tuple[float, float] | None:
    return None if given is None else (given[0], given[1])


def _span(values: Iterable[float]) -> str:
    found = list(values)
    return f"{min(found):.2f} to {max(found):.2f}"


def _effect_on_agreement(study: MomentStudy) -> PruningEffect | None:
    """Return what pruning does to the moments' own scores, None if the images are too few for it."""
    score = MomentAgreement()
    try:
        return pruning_effect(
            study.real, study.generated, lambda kept: score.measure(study.real, study.generated[kept]), study.seed
        )
    except TooFewImagesError:
        return None


if __name__ == "__main__":
    sys.exit(main())
