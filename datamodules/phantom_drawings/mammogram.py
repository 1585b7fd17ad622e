"""Mammograms, both sides and views.

Unit: the width of a 5:4 frame. Drawn as a left breast, with x from the chest wall at the left edge and y from the
middle of the frame; a right breast is the mirror image.
"""

import math
from typing import NamedTuple

import numpy as np

from datamodules.phantom_drawings.canvas import Canvas, Description, Dice, Ellipse, cover, decisions

CLASSES = ("Mass", "Calcification")
FILMS = 4  # images of a patient: an exam


def describe(index: int, films: int = FILMS) -> Description:
    """Tell what image ``index`` shows; four indices are an exam: (L, CC), (R, CC), (L, MLO), (R, MLO).

    A patient has one exam, or several: ``films`` is a multiple of four.
    """
    patient, view, laterality = index // films, "MLO" if index % 4 >= 2 else "CC", "LR"[index % 2]
    lesion, side = decisions("mammogram", patient, 2)
    classes: tuple[str, ...] = ()
    if lesion < 0.5 and laterality == ("L" if side < 0.5 else "R"):
        classes = ("Mass",) if lesion < 0.3 else ("Calcification",)
    return Description(classes, f"mammogram-{patient:06d}", view, laterality)


def draw(index: int, height: int, width: int, films: int = FILMS) -> np.ndarray:
    """Return a mammogram (H, W) float32 in [0, 1]; outside the breast it is 0."""
    description = describe(index, films)
    patient, oblique, laterality = index // films, description.view == "MLO", description.laterality
    dice = Dice("mammogram", patient, index, drift=0.12)
    unit = min(width, height / 1.25)
    canvas = Canvas("mammogram", index, (height, width), (2 * unit, 2 * unit))
    canvas.place(-width / (2 * unit), 0.0, 1.0)
    # Both views of a side must show the same lesion: nothing before it may be drawn in one of the views only.
    breast = _draw_breast(dice, oblique)
    depth = _depth_below_skin(canvas, dice, breast)
    _parenchyma(canvas, dice, breast, depth)
    if oblique:
        _pectoral(canvas, breast)
    brightness = dice(0.85, 1.1)
    for name in description.classes:
        _BREAST_LESIONS[name](canvas, dice, breast)
    canvas.image *= brightness
    inside = cover(-depth, canvas.pixel)
    image = canvas.finish(index, dice(0.006, 0.015), inside) * inside
    return image if laterality == "L" else np.ascontiguousarray(image[:, ::-1])


class _Breast(NamedTuple):
    depth: float  # from the chest wall to the nipple
    half_height: float
    nipple_y: float
    density: float  # 0 fatty, 1 dense
    axilla: float  # oblique view: width of the axilla, as a part of depth
    muscle_top: float  # oblique view: width of the pectoral muscle at the upper border
    muscle_end: float  # oblique view: y of its lower end
    oblique: bool


def _draw_breast(dice: Dice, oblique: bool) -> _Breast:
    return _Breast(
        depth=dice(0.5, 0.95),
        half_height=dice(0.45, 0.6),
        nipple_y=dice(-0.06, 0.06) + 0.08 * oblique,
        density=dice.fixed(),
        axilla=dice(0.45, 0.75),
        muscle_top=dice(0.25, 0.42),
        muscle_end=dice(0.0, 0.3),
        oblique=oblique,
    )


def _depth_below_skin(canvas: Canvas, dice: Dice, breast: _Breast) -> np.ndarray:
    """(H, W) signed distance to the skin, positive inside; in an oblique view the breast runs up into the axilla."""
    y = (canvas.y - breast.nipple_y) / breast.half_height
    profile = np.clip(1 - np.abs(y) ** dice(1.8, 2.3), 0.0, None) ** dice(0.5, 0.68)
    if breast.oblique:
        above = breast.axilla + (1 - breast.axilla) * np.clip(1 - (y / 1.1) ** 2, 0.0, None) ** 1.5
        above += 0.3 * np.clip(-y - 0.7, 0.0, None) ** 1.5
        profile = np.where(y < 0, above, profile)
    skin = breast.depth * profile
    slope = np.gradient(skin[:, 0], canvas.pixel)[:, None].astype(np.float32)
    depth = (skin - canvas.x) / np.sqrt(1 + slope**2)
    radius = dice(0.016, 0.024)
    nipple = radius - np.hypot(canvas.x - breast.depth, canvas.y - breast.nipple_y)
    return np.maximum(np.where(skin > 0, depth, -1.0), nipple)


def _parenchyma(canvas: Canvas, dice: Dice, breast: _Breast, depth: np.ndarray) -> None:
    """Fat that thins towards the skin, a cone of glandular tissue behind the nipple, and strands everywhere."""
    thickness = 1 - np.exp(-np.clip(depth, 0.0, None) / dice(0.05, 0.1))
    skin = np.exp(-(((depth - 0.008) / 0.01) ** 2))
    coarse, fine = canvas.noise(0, 10, 20, 40), canvas.noise(2, 24, 48, 96, 192)
    strands = np.clip(1.2 - 0.9 * (np.abs(coarse) + np.abs(fine)), -0.7, 1.0)
    lumps = canvas.noise(1, 9, 18, 36, 72)
    reach, spread = dice(0.36, 0.46) * breast.depth, dice(0.5, 0.68) * breast.half_height
    cone = Ellipse(0.52 * breast.depth, breast.nipple_y - 0.03, reach, spread, 0, 0.22, dice.lobes(0.1))
    gland = canvas.full_mask(cone) * cover(0.75 - 1.3 * breast.density - 0.5 * lumps, 0.9)
    fat = dice(0.2, 0.3)
    canvas.image += thickness * (fat + 0.09 * strands + gland * (0.26 + 0.16 * breast.density + 0.07 * lumps))
    canvas.image += 0.14 * thickness * gland * strands + 0.16 * skin
    canvas.add(Ellipse(breast.depth - 0.01, breast.nipple_y, 0.03, 0.025, 0, 0.02), 0.2)


def _pectoral(canvas: Canvas, breast: _Breast) -> None:
    """The pectoral muscle: a bright triangle in the upper corner at the chest wall, its border slightly convex."""
    edge = -0.625  # upper border of a 5:4 frame
    along = np.clip((canvas.y - edge) / (breast.muscle_end - edge), 0.0, 1.5)
    border = breast.muscle_top * (1 - along + 0.12 * np.sin(math.pi * np.clip(along, 0.0, 1.0)))
    muscle = cover((canvas.x - border) * 0.85, 0.06)
    value = 0.56 + 0.03 * canvas.noise(3, 10, 20, 40)
    canvas.image += muscle * 0.7 * (value - canvas.image)  # what is left of the image below is the overlying breast


def _lesion_site(dice: Dice, breast: _Breast) -> tuple[float, float]:
    return breast.depth * dice(0.35, 0.7), breast.nipple_y + breast.half_height * dice(-0.4, 0.4)


def _add_mass(canvas: Canvas, dice: Dice, breast: _Breast) -> None:
    """A bright core with spicules, which are an outline of high harmonics at low opacity."""
    (x, y), radius = _lesion_site(dice, breast), dice(0.03, 0.06)
    spikes = tuple((k, 0.25, dice(0, 2 * math.pi)) for k in (7, 11, 17))
    canvas.add(Ellipse(x, y, radius * 1.4, radius * 1.4, 0, 0.03, spikes), 0.1)
    canvas.add(Ellipse(x, y, radius, radius * dice(0.8, 1.1), dice(0, 90), 0.03, dice.lobes(0.15)), 0.24)


def _add_calcifications(canvas: Canvas, dice: Dice, breast: _Breast) -> None:
    x, y = _lesion_site(dice, breast)
    for _ in range(9):
        size = dice(0.004, 0.009)
        canvas.paint(Ellipse(x + dice(-0.05, 0.05), y + dice(-0.05, 0.05), size, size * dice(0.6, 1.4)), 1.0)


_BREAST_LESIONS = {"Mass": _add_mass, "Calcification": _add_calcifications}
