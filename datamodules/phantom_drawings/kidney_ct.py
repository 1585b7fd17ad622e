"""Axial kidney CT in a soft-tissue window.

Unit: half the width of the abdominal cavity. Origin: its centre. The patient's right is at the image's left.
"""

import math
from typing import NamedTuple

import numpy as np

from datamodules.phantom_drawings.canvas import Canvas, Description, Dice, Ellipse, cover

CLASSES = {"Cyst": 0.30, "Normal": 0.41, "Stone": 0.11, "Tumor": 0.18}  # shares of the public CT kidney set
FILMS = 2  # slices of a patient
_GOLDEN = 0.6180339887498949


class _Tissue(NamedTuple):
    """Grey values in a soft-tissue window."""

    fat: float
    muscle: float
    liver: float
    cortex: float
    medulla: float
    aorta: float
    cava: float


_PHASES = (  # unenhanced, arterial, portal venous
    _Tissue(0.08, 0.37, 0.41, 0.37, 0.36, 0.38, 0.37),
    _Tissue(0.09, 0.41, 0.47, 0.86, 0.56, 0.97, 0.48),
    _Tissue(0.11, 0.43, 0.58, 0.78, 0.74, 0.72, 0.66),
)
_BONE, _GAS, _FLUID = 0.93, 0.0, 0.27


def describe(index: int, films: int = FILMS) -> Description:
    """Tell what slice ``index`` shows; ``films`` neighbouring slices form a group."""
    return Description((_class_of(index // films),), f"kidney-{index // films:06d}", "axial")


def draw(index: int, height: int, width: int, films: int = FILMS) -> np.ndarray:
    """Return an axial slice through the kidneys (H, W) float32 in [0, 1]; 0 is air."""
    group = index // films
    dice = Dice("kidney_ct", group, index, drift=0.05)
    short = min(height, width)
    canvas = Canvas("kidney_ct", group, (height, width), (short, short))
    label = _class_of(group)
    tissue = _PHASES[0 if dice.chance(0.4) else 1 if dice.chance(0.5) else 2]
    upper = dice.fixed()  # 1: level of the upper poles, with much liver and spleen; 0: lower poles, bowel
    fat = 0.02 + 0.24 * dice(0.0, 1.0) ** 2
    canvas.place(dice(-0.04, 0.04), dice(-0.14, 0.02), dice(0.68, 0.95) / (1.1 + fat))
    body, cavity = _trunk(canvas, dice, tissue, fat)
    _bowel(canvas, dice, tissue, cavity, upper)
    _large_organs(canvas, dice, tissue, cavity, upper)
    _muscles(canvas, dice, tissue)
    _spine(canvas, dice)
    _ribs(canvas, dice, upper)
    kidneys = [_kidney(canvas, dice, tissue, side) for side in (-1, 1)]
    _vessels(canvas, dice, tissue)
    if label in _KIDNEY_LESIONS:
        _KIDNEY_LESIONS[label](canvas, dice, tissue, kidneys[dice.chance(0.5)])
    brightness = dice(0.85, 1.12)
    canvas.image *= (1 + 0.03 * canvas.noise(9, 24, 48)) * brightness
    return canvas.finish(index, dice(0.012, 0.03), body)


def _class_of(group: int) -> str:
    # A low-discrepancy sequence instead of a draw: even a few dozen groups hold the classes in their proportions.
    position = (0.5 + group * _GOLDEN) % 1.0
    shares = np.cumsum(list(CLASSES.values()))
    return list(CLASSES)[int(np.searchsorted(shares[:-1], position, side="right"))]


def _trunk(canvas: Canvas, dice: Dice, tissue: _Tissue, fat: float) -> tuple[np.ndarray, np.ndarray]:
    """Table, skin, fat and muscular wall. Returns the maps (H, W) of the body and of the cavity inside the wall."""
    depth, power, flat = dice(0.73, 0.86), dice(1.95, 2.3), dice(0.9, 0.96)
    # The back, which lies on the table, is flatter than the belly: y is stretched below the origin.
    x, y = np.abs(canvas.x), np.where(canvas.y > 0, canvas.y / flat, -canvas.y)

    def outline(grow: float) -> np.ndarray:
        radius = ((x / (1 + grow)) ** power + (y / (depth + 0.9 * grow)) ** power) ** (1 / power)
        return (radius - 1) * (depth + 0.9 * grow)

    wall = dice(0.07, 0.12)
    skin = outline(wall + fat)
    body = cover(skin, canvas.pixel)
    if dice.chance(0.85):
        _table(canvas, dice, (depth + 0.9 * (wall + fat)) * flat)
    canvas.image *= 1 - body
    canvas.image += tissue.fat * body + 0.33 * (body - cover(skin + 0.02, canvas.pixel))
    muscle, cavity = cover(outline(wall), canvas.pixel), cover(outline(0.0), canvas.pixel)
    canvas.image += (muscle - cavity) * (tissue.muscle - tissue.fat)
    return body, cavity


def _table(canvas: Canvas, dice: Dice, back: float) -> None:
    top, sag, width, half = back + dice(0.02, 0.06), dice(0.06, 0.14), dice(1.2, 1.9), 0.009
    x = np.abs(canvas.x)
    surface = canvas.y - top + sag * x**2
    base = canvas.y - top - dice(0.2, 0.32) + np.maximum(x - dice(0.6, 0.8), 0.0) * dice(0.5, 0.8)
    for distance in (surface, np.where(surface > 0, base, 1.0)):
        band = cover(distance - half, canvas.pixel) - cover(distance + half, canvas.pixel)
        canvas.image += dice(0.5, 0.9) * band * (x < width)


def _bowel(canvas: Canvas, dice: Dice, tissue: _Tissue, cavity: np.ndarray, upper: float) -> None:
    """Loops in the anterior cavity: thresholded noise; the wall of a loop is where the noise passes zero."""
    lumps = canvas.noise(0, 18, 36)
    region = cavity * canvas.full_mask(Ellipse(0.05, -0.32, 0.88, 0.46, soft=0.25))
    loops = cover(dice(0.0, 0.6) - lumps, 0.3) * region
    canvas.image += loops * (tissue.muscle * dice(0.85, 1.1) - canvas.image)
    for _ in range(3):
        loop = Ellipse(dice(-0.75, 0.75), dice(-0.58, -0.2), dice(0.07, 0.16), dice(0.06, 0.11), lobes=dice.lobes(0.1))
        _hollow(canvas, loop, tissue.muscle, dice(-0.03, 0.05), cavity)
    if upper < 0.6:
        descending = Ellipse(dice(0.76, 0.84), dice(-0.05, 0.15), 0.1, 0.12)
        _hollow(canvas, descending, tissue.muscle, dice(-0.02, 0.05), cavity)


def _hollow(canvas: Canvas, loop: Ellipse, wall: float, fluid: float, cavity: np.ndarray) -> None:
    """A loop of bowel or a stomach with gas over a fluid level, which is horizontal in a patient on the back."""
    canvas.paint(loop, wall, cavity)
    lumen = loop.scaled(0.82)
    canvas.paint(lumen, _FLUID, cavity)
    above = cover(canvas.y - loop.cy - fluid, canvas.pixel)
    canvas.paint(lumen, _GAS, cavity * above)


def _large_organs(canvas: Canvas, dice: Dice, tissue: _Tissue, cavity: np.ndarray, upper: float) -> None:
    size = 0.75 + 0.35 * upper
    if upper > 0.55:
        stomach = Ellipse(dice(0.3, 0.45), -0.4, dice(0.26, 0.36), dice(0.16, 0.24), dice(-25, 5), 0, dice.lobes(0.1))
        _hollow(canvas, stomach, tissue.muscle, dice(-0.15, 0.02), cavity)
        spleen = Ellipse(dice(0.78, 0.86), dice(0.02, 0.15), 0.16, dice(0.26, 0.34), dice(-25, -10))
        canvas.paint(spleen, tissue.liver * 1.05, cavity)
    liver = Ellipse(-0.74, dice(-0.2, -0.05), dice(0.34, 0.44) * size, dice(0.48, 0.6) * size, dice(0, 30))
    texture = tissue.liver + 0.012 * canvas.noise(1, 40)
    canvas.paint(liver._replace(lobes=dice.lobes(0.1)), texture, cavity)
    left_lobe = Ellipse(-0.35, dice(-0.45, -0.35), 0.5 * size, dice(0.16, 0.24), dice(-20, 5), lobes=dice.lobes(0.1))
    if upper > 0.4:
        canvas.paint(left_lobe, texture, cavity)
    if upper < 0.7:
        canvas.paint(Ellipse(dice(-0.5, -0.35), dice(-0.3, -0.15), 0.1, dice(0.08, 0.13), dice(-30, 30)), _FLUID)
    pancreas = Ellipse(dice(-0.05, 0.15), dice(-0.18, -0.08), dice(0.22, 0.34), 0.065, dice(-25, 5), 0, dice.lobes(0.2))
    canvas.paint(pancreas, tissue.liver * 0.95)


def _muscles(canvas: Canvas, dice: Dice, tissue: _Tissue) -> None:
    psoas, erector = dice(0.09, 0.14), dice(0.2, 0.25)
    for side in (-1, 1):
        for muscle in (
            Ellipse(side * 0.24, 0.27, psoas, psoas * 1.25, side * -15),
            Ellipse(side * 0.5, 0.52, 0.13, 0.06, side * -30),
            Ellipse(side * 0.24, 0.57, erector, 0.13, side * -12),
        ):
            canvas.paint(muscle, tissue.muscle)


def _spine(canvas: Canvas, dice: Dice) -> None:
    size, tilt = dice(0.9, 1.15), dice(15, 35)
    body = Ellipse(0.0, 0.27, 0.165 * size, 0.125 * size)
    canvas.paint(Ellipse(0.0, 0.57, 0.022, 0.11), _BONE)
    for side in (-1, 1):
        canvas.paint(Ellipse(side * 0.19, 0.47, 0.13, 0.025, side * tilt), _BONE)
        canvas.paint(Ellipse(side * 0.09, 0.45, 0.03, 0.07, side * -20), _BONE)
    canvas.paint(Ellipse(0.0, 0.51, 0.1, 0.04), _BONE)
    canvas.paint(Ellipse(0.0, 0.44, 0.07, 0.055), 0.36)
    canvas.paint(body, _BONE)
    canvas.paint(body.scaled(0.8), dice(0.66, 0.85))


def _ribs(canvas: Canvas, dice: Dice, upper: float) -> None:
    """Oblique cuts of ribs: short bright arcs in the wall, more of them at the upper levels."""
    count = 1 + int(4 * upper)
    for side in (-1, 1):
        for rib in range(count):
            angle = math.radians(52 - 27 * rib + dice(-6, 6))
            x, y = 1.03 * math.cos(angle), 0.74 * math.sin(angle)
            tangent = math.degrees(math.atan2(0.74 * math.cos(angle), -math.sin(angle)))
            canvas.paint(Ellipse(side * x, y, dice(0.05, 0.1), 0.024, side * tangent), _BONE)


def _kidney(canvas: Canvas, dice: Dice, tissue: _Tissue, side: int) -> Ellipse:
    x, y, tilt = side * dice(0.5, 0.58), dice(0.16, 0.26), side * dice(-30, -5)
    kidney = Ellipse(x, y, dice(0.15, 0.19), dice(0.18, 0.23), tilt, 0, dice.lobes(0.04))
    canvas.paint(kidney.scaled(1.18), tissue.fat)
    canvas.paint(kidney, tissue.cortex)
    canvas.paint(kidney.scaled(0.72), tissue.medulla)
    hilum = kidney.cx - side * kidney.rx * dice(0.35, 0.6)
    sinus = Ellipse(hilum, kidney.cy, kidney.rx * 0.55, kidney.ry * dice(0.28, 0.45), lobes=dice.lobes(0.2))
    canvas.paint(sinus, 0.14)
    canvas.paint(Ellipse(hilum - side * 0.05, kidney.cy + 0.01, 0.1, 0.022, side * dice(-20, 0)), tissue.cava)
    return kidney


def _vessels(canvas: Canvas, dice: Dice, tissue: _Tissue) -> None:
    aorta = dice(0.055, 0.075)
    canvas.paint(Ellipse(dice(0.02, 0.08), 0.07, aorta, aorta), tissue.aorta)
    canvas.paint(Ellipse(dice(-0.18, -0.13), 0.08, 0.085, dice(0.045, 0.07)), tissue.cava)
    for _ in range(4):
        canvas.paint(Ellipse(dice(-0.25, 0.3), dice(-0.35, -0.05), 0.028, 0.028), tissue.aorta)


def _add_cyst(canvas: Canvas, dice: Dice, tissue: _Tissue, kidney: Ellipse) -> None:
    angle, radius = dice(0, 2 * math.pi), dice(0.08, 0.2)
    x, y = kidney.cx + 0.9 * kidney.rx * math.cos(angle), kidney.cy + 0.9 * kidney.ry * math.sin(angle)
    canvas.paint(Ellipse(x, y, radius + 0.012, radius + 0.012), tissue.muscle)
    canvas.paint(Ellipse(x, y, radius, radius), dice(0.2, 0.26))


def _add_stone(canvas: Canvas, dice: Dice, tissue: _Tissue, kidney: Ellipse) -> None:
    for _ in range(1 + dice.chance(0.4)):
        x, y = kidney.cx + kidney.rx * dice(-0.4, 0.4), kidney.cy + kidney.ry * dice(-0.5, 0.5)
        canvas.paint(Ellipse(x, y, dice(0.03, 0.055), dice(0.025, 0.045), dice(0, 90)), 1.0)


def _add_tumor(canvas: Canvas, dice: Dice, tissue: _Tissue, kidney: Ellipse) -> None:
    angle, radius = dice(-1.2, 1.2), dice(0.16, 0.3)
    side = math.copysign(1.0, kidney.cx)
    x, y = kidney.cx + side * 0.8 * kidney.rx * math.cos(angle), kidney.cy - 0.05 + kidney.ry * math.sin(angle)
    level = (tissue.muscle + tissue.cortex) / 2
    mottled = np.clip(level + 0.11 * canvas.noise(2, 20, 40), 0.2, 0.95)
    mass = Ellipse(x, y, radius, radius * dice(0.8, 1.1), lobes=dice.lobes(0.13))
    canvas.paint(mass, mottled)
    canvas.paint(mass.scaled(dice(0.3, 0.5))._replace(soft=0.08), 0.28)


_KIDNEY_LESIONS = {"Cyst": _add_cyst, "Stone": _add_stone, "Tumor": _add_tumor}
