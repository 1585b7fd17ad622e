"""Frontal chest films.

Unit: half the frame along each axis, as a film is collimated to the thorax. The patient's left is at the right.
"""

import math

import numpy as np

from datamodules.phantom_drawings.canvas import Canvas, Description, Dice, Ellipse, cover, decisions

CLASSES = ("Cardiomegaly", "Effusion", "Nodule", "Pneumothorax", "Consolidation")
FILMS = 2  # of a patient


def describe(index: int, films: int = FILMS) -> Description:
    """Tell what film ``index`` shows; ``films`` neighbouring indices are a patient and its follow-ups."""
    group = index // films
    portable, *findings = decisions("chest_xray", group, 1 + len(CLASSES))
    classes = tuple(name for name, draw in zip(CLASSES, findings, strict=True) if draw < 0.08)
    return Description(classes, f"chest-{group:06d}", "AP" if portable < 0.3 else "PA")


def draw(index: int, height: int, width: int, films: int = FILMS) -> np.ndarray:
    """Return a frontal chest film (H, W) float32 in [0, 1]; 0 is air."""
    group = index // films
    dice = Dice("chest_xray", group, index, drift=0.08)
    canvas = Canvas("chest_xray", group, (height, width), (height, width))
    canvas.place(dice(-0.06, 0.06), dice(-0.06, 0.04), dice(0.92, 1.04))
    description = describe(index, films)
    findings, portable = description.classes, description.view == "AP"
    base = dice(0.42, 0.66) - 0.12 * portable
    lungs, dome = _lungs(canvas, dice, base)
    body = _torso(canvas, dice, dome)
    ribs = _rib_pattern(canvas, dice)
    air = lungs * (1 - _heart(canvas, dice, base, enlarged="Cardiomegaly" in findings, portable=portable))
    markings = _lung_markings(canvas)
    for name in findings:
        if name in _CHEST_CLASSES:
            air, markings = _CHEST_CLASSES[name](canvas, dice, air, markings, base)
    depth = dice(0.42, 0.56) - 0.08 * portable
    canvas.image -= air * (depth - 0.13 * markings)
    canvas.image += (0.02 + 0.05 * air) * ribs * body
    _shoulder_girdle(canvas, dice)
    _spine_shadow(canvas, dice)
    canvas.image = np.clip(canvas.image, 0.0, 1.0) ** dice(0.9, 1.25) * (0.06 + 0.94 * body)
    return canvas.finish(index, dice(0.006, 0.018), body)


def _lungs(canvas: Canvas, dice: Dice, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Maps (H, W) of lung air and of the abdomen below the diaphragm; ``base`` is the y of the domes."""
    apex, air, below = dice(-0.82, -0.7), np.zeros_like(canvas.image), np.zeros_like(canvas.image)
    for side in (-1, 1):
        x, wide = side * canvas.x, dice(0.76, 0.86)
        t = np.clip((base - 0.1 - canvas.y) / (base - 0.1 - apex), 0.0, 1.0)
        lateral = 0.3 + (wide - 0.3) * np.sqrt(1 - t**2.4)
        medial = 0.1 + 0.14 * t**4
        level = base + (0.06 if side == 1 else 0.0) - 0.02 + 0.9 * dice(0.6, 1.2) * (x - 0.42) ** 2
        half = cover(x - lateral, 0.06) * cover(medial - x, 0.07) * cover(apex - canvas.y, 0.08)
        inside = cover(-x, 0.3)
        air += half * cover(canvas.y - level, 0.05)
        below += inside * cover(level - canvas.y, 0.06) * cover(x - wide, 0.25)
    return air, below


def _torso(canvas: Canvas, dice: Dice, below: np.ndarray) -> np.ndarray:
    """Soft tissue of neck, shoulders, trunk and abdomen into the image; returns the map (H, W) of the body."""
    x = np.abs(canvas.x)
    shoulder = -1.12 + dice(0.3, 0.6) * np.clip(x - 0.22, 0.0, None) ** 0.8
    arms = dice(0.9, 1.2) + 0.5 * cover(canvas.y + dice(0.0, 0.4), 0.9) ** 2
    body = cover(shoulder - canvas.y, 0.2) * cover(x - arms, 0.2)
    centre = np.exp(-((canvas.x / 0.22) ** 2))
    tissue = dice(0.68, 0.8) + 0.08 * centre + 0.14 * below - 0.12 * np.clip(x - 0.6, 0.0, None)
    canvas.image += tissue * body
    if dice.chance(0.4):
        for side in (-1, 1):
            breast = Ellipse(side * 0.48, dice(0.32, 0.45), dice(0.3, 0.4), dice(0.3, 0.4), soft=0.12)
            canvas.add(breast, 0.09)
    return body


def _rib_pattern(canvas: Canvas, dice: Dice) -> np.ndarray:
    """(H, W) map, about [-1, 1]: posterior ribs falling to the sides, anterior ribs rising, fainter."""
    x, spacing, slope = np.abs(canvas.x), dice(0.15, 0.18), dice(0.5, 0.8)
    thorax = cover(x - 0.9, 0.1) * cover(0.08 - x, 0.08) * cover(canvas.y - 0.75, 0.5)
    posterior = (canvas.y - slope * (x - 0.3) ** 2 + 0.12 * x) / spacing
    anterior = (canvas.y + 0.55 * (x - 0.95) ** 2 - 0.1 * x) / (spacing * 1.25) + dice(0, 1)
    first = np.clip(1.4 * np.cos(2 * math.pi * posterior), -1.0, 1.0)
    second = np.clip(1.4 * np.cos(2 * math.pi * anterior), -1.0, 1.0) * cover(0.3 - x, 0.3)
    return thorax * (0.75 * first + 0.4 * second)


def _heart(canvas: Canvas, dice: Dice, base: float, enlarged: bool, portable: bool) -> np.ndarray:
    """(H, W) map in [0, 1]: the part of the lungs that heart, aorta, hila and mediastinum hide."""
    size = dice(0.85, 1.02) * (1.32 if enlarged else 1.0) * (1.08 if portable else 1.0)
    shadow = np.zeros_like(canvas.image)
    for part, opacity in (
        (Ellipse(0.13 * size, base - 0.17, 0.39 * size, 0.26 * size, dice(20, 42), 0.05), 0.95),
        (Ellipse(-0.06, base - 0.3, 0.2 * size, 0.3, 0, 0.06), 0.9),
        (Ellipse(0.04, -0.3, 0.12, 0.6, 0, 0.05), 0.85),
        (Ellipse(0.13, -0.3, 0.085, 0.1, 0, 0.05), 0.8),
        (Ellipse(0.2, -0.06, 0.1, 0.13, -25, 0.12), 0.5),
        (Ellipse(-0.2, 0.0, 0.1, 0.14, 25, 0.12), 0.5),
    ):
        window, alpha = canvas.mask(part)
        shadow[window] = np.maximum(shadow[window], opacity * alpha)
    return shadow


def _lung_markings(canvas: Canvas) -> np.ndarray:
    """(H, W) map of vessels: ridges of noise, denser towards the hila."""
    ridges = np.clip(1 - 1.3 * np.abs(canvas.noise(0, 20, 40, 80)), -0.5, 1.0)
    near = np.exp(-3.5 * np.hypot(np.abs(canvas.x) - 0.22, canvas.y))
    return ridges * (0.2 + 0.9 * near) + near


def _shoulder_girdle(canvas: Canvas, dice: Dice) -> None:
    """Clavicles, scapulae and humeral heads, added to the soft tissue as attenuation adds."""
    rise = dice(4, 16)
    for side in (-1, 1):
        for bone, gain in (
            (Ellipse(side * 0.4, -0.72, 0.32, 0.035, -side * rise, 0.03), 0.15),
            (Ellipse(side * 0.8, -0.42, 0.08, 0.32, side * dice(5, 20), 0.06), 0.08),
            (Ellipse(side * 0.98, -0.62, 0.14, 0.13, 0, 0.12), 0.09),
        ):
            canvas.add(bone, gain)


def _spine_shadow(canvas: Canvas, dice: Dice) -> None:
    column = np.exp(-((canvas.x / 0.09) ** 2))
    vertebrae = 0.5 + 0.5 * np.cos(2 * math.pi * canvas.y / dice(0.14, 0.17))
    canvas.image += column * (0.04 + 0.05 * vertebrae)
    trachea = np.exp(-(((canvas.x + 0.01) / 0.045) ** 2)) * cover(canvas.y + 0.25, 0.1)
    canvas.image -= 0.16 * trachea
    bubble = Ellipse(dice(0.35, 0.55), dice(0.72, 0.85), 0.14, dice(0.04, 0.1), soft=0.06)
    canvas.add(bubble, -dice(0.0, 0.2))  # gas in the stomach, under the left dome


_Maps = tuple[np.ndarray, np.ndarray]


def _add_effusion(canvas: Canvas, dice: Dice, air: np.ndarray, markings: np.ndarray, base: float) -> _Maps:
    """Fluid fills the base of one lung; its surface, the meniscus, climbs the lateral wall."""
    side = 1 if dice.chance(0.5) else -1
    level = base - dice(0.15, 0.5) - 1.2 * np.clip(side * canvas.x - 0.45, 0.0, None) ** 2
    fluid = cover(level - canvas.y, 0.12) * (side * canvas.x > 0)
    canvas.image += 0.07 * fluid * air  # as dense as the abdomen, so that the dome of this side is lost
    return air * (1 - 0.95 * fluid), markings


def _add_nodule(canvas: Canvas, dice: Dice, air: np.ndarray, markings: np.ndarray, base: float) -> _Maps:
    side, radius = (1 if dice.chance(0.5) else -1), dice(0.05, 0.1)
    nodule = Ellipse(side * dice(0.4, 0.62), dice(-0.45, base - 0.25), radius, radius, 0, 0.03, dice.lobes(0.08))
    return air * (1 - 0.6 * canvas.full_mask(nodule)), markings


def _add_pneumothorax(canvas: Canvas, dice: Dice, air: np.ndarray, markings: np.ndarray, base: float) -> _Maps:
    """Beyond the edge of the collapsed lung the air is black, without vessels; the edge is a fine bright line."""
    side = 1 if dice.chance(0.5) else -1
    lung = Ellipse(side * dice(0.3, 0.38), dice(0.05, 0.2), dice(0.26, 0.34), dice(0.55, 0.68))
    inside, outer = canvas.full_mask(lung), canvas.full_mask(lung._replace(rx=lung.rx + 0.02, ry=lung.ry + 0.02))
    free = (1 - outer) * (side * canvas.x > 0)
    return air * (1 - 0.25 * (outer - inside) + 0.3 * free), markings * (1 - free)


def _add_consolidation(canvas: Canvas, dice: Dice, air: np.ndarray, markings: np.ndarray, base: float) -> _Maps:
    side = 1 if dice.chance(0.5) else -1
    area = Ellipse(side * dice(0.4, 0.55), dice(-0.3, base - 0.15), dice(0.16, 0.28), dice(0.14, 0.3), 0, 0.25)
    patchy = np.clip(0.75 + 0.25 * canvas.noise(1, 12, 24), 0.0, 1.0)
    return air * (1 - 0.85 * patchy * canvas.full_mask(area)), markings


_CHEST_CLASSES = {  # an enlarged heart is part of the anatomy: see _heart
    "Effusion": _add_effusion,
    "Nodule": _add_nodule,
    "Pneumothorax": _add_pneumothorax,
    "Consolidation": _add_consolidation,
}
