"""The raster that phantoms are drawn on: soft-edged ellipses, smooth noise, and dice that a patient shares."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

KINDS = {"mammogram": 1, "chest_xray": 2, "kidney_ct": 3}
_DRAWS = 256  # random numbers per image; the hungriest renderer uses about 150


@dataclass(frozen=True)
class Description:
    """What a data set would record about a drawn image.

    Attributes:
        classes: Findings in the image; may be empty.
        group: The phantom patient: images of one group share their anatomy and belong in one split.
        view: Mammogram "CC" or "MLO"; chest "PA" or "AP"; CT "axial".
        laterality: Mammogram "L" or "R"; empty otherwise.
    """

    classes: tuple[str, ...]
    group: str
    view: str
    laterality: str = ""


def generator_of(kind: str, stream: int, number: int) -> np.random.Generator:
    """Return the random generator of one use in one image: streams and numbers never share their draws."""
    return np.random.Generator(np.random.Philox(key=(KINDS[kind] << 96) | (stream << 64) | number))


def decisions(kind: str, group: int, count: int) -> list[float]:
    """Return draws from [0, 1) that decide what a group shows, known without drawing anything."""
    return generator_of(kind, 20_000, group).random(count).tolist()


class Dice:
    """Uniform draws shared by a group, each moved a little for the one image: anatomy with small changes."""

    def __init__(self, kind: str, group: int, index: int, drift: float) -> None:
        shared = generator_of(kind, 0, group).random(_DRAWS)
        own = generator_of(kind, 1, index).random(_DRAWS)
        self._shared: Iterator[float] = iter(shared.tolist())
        self._moved: Iterator[float] = iter((shared + drift * (own - shared)).tolist())

    def __call__(self, low: float, high: float) -> float:
        """Draw uniformly from [low, high)."""
        next(self._shared)
        return low + (high - low) * next(self._moved)

    def fixed(self) -> float:
        """A draw from [0, 1) equal for all images of the group: what it decides must not flip within the group."""
        next(self._moved)
        return next(self._shared)

    def chance(self, probability: float) -> bool:
        """Decide, equally for all images of the group."""
        return self.fixed() < probability

    def lobes(self, strength: float) -> tuple[tuple[int, float, float], ...]:
        """Harmonics (order, amplitude, phase in radians) that make an outline irregular."""
        return tuple((k, self(0.3, 1.0) * strength / (k - 1), self(0, 2 * math.pi)) for k in (2, 3, 5))


class Ellipse(NamedTuple):
    """An outline in the unit of its canvas."""

    cx: float
    cy: float
    rx: float
    ry: float
    degrees: float = 0.0  # clockwise on the screen
    soft: float = 0.0  # width of the edge; never less than one pixel
    lobes: tuple[tuple[int, float, float], ...] = ()

    def scaled(self, factor: float) -> "Ellipse":
        """Return the ellipse with both radii multiplied."""
        return self._replace(rx=self.rx * factor, ry=self.ry * factor)


def cover(distance: np.ndarray, edge: float) -> np.ndarray:
    """Coverage in [0, 1] of a half plane, from the signed distance (negative inside) and the width of the edge."""
    return np.minimum(np.maximum(0.5 - distance / edge, 0.0), 1.0)  # np.clip costs twice as much on small windows


@lru_cache(maxsize=64)
def _axis(pixels: int, reference: float) -> np.ndarray:
    """Pixel centres, 0 in the middle; ``reference`` pixels span [-1, 1]."""
    return ((2 * np.arange(pixels) + 1 - pixels) / reference).astype(np.float32)


@lru_cache(maxsize=64)
def _spline_weights(pixels: int, reference: float, cells: int) -> np.ndarray:
    """(pixels, cells) cubic B-spline weights of a periodic lattice, averaged over each pixel's extent."""
    offsets = (np.arange(4) - 1.5) / 4 * 2 / reference
    position = (_axis(pixels, reference)[:, None] + offsets + 1) / 2 * cells
    distance = np.abs((position[:, :, None] - np.arange(cells) + cells / 2) % cells - cells / 2)
    near = 2 / 3 - distance**2 + distance**3 / 2
    weights = np.where(distance < 1, near, np.clip(2 - distance, 0, None) ** 3 / 6)
    return (weights.mean(axis=1) / 0.69).astype(np.float32)  # 0.69: keeps unit variance, both axes together


class Canvas:
    """A float32 image with coordinates: x (1, W) and y (H, 1) in the renderer's units; ``seed`` is of its textures."""

    def __init__(self, kind: str, seed: int, shape: tuple[int, int], reference: tuple[float, float]) -> None:
        self.image: np.ndarray = np.zeros(shape, np.float32)
        self._kind, self._seed, self._reference = kind, seed, reference
        self.place(0.0, 0.0, 1.0)

    def place(self, x: float, y: float, unit: float) -> None:
        """Put the origin at (x, y) of the frame, which spans [-1, 1], and make ``unit`` of it the unit length."""
        (height, width), (ref_y, ref_x) = self.image.shape, self._reference
        self.x = (_axis(width, ref_x)[None, :] - np.float32(x)) / np.float32(unit)
        self.y = (_axis(height, ref_y)[:, None] - np.float32(y)) / np.float32(unit)
        self._step = 2 / ref_y / unit, 2 / ref_x / unit
        self._first = float(self.y[0, 0]), float(self.x[0, 0])
        self.pixel = max(self._step)

    def _span(self, axis: int, centre: float, reach: float) -> slice:
        low = (centre - reach - self._first[axis]) / self._step[axis]
        high = (centre + reach - self._first[axis]) / self._step[axis]
        return slice(max(int(low), 0), max(int(high) + 2, 0))

    def mask(self, e: Ellipse) -> tuple[tuple[slice, slice], np.ndarray]:
        """The window of an ellipse in the image and its coverage there, (h, w) in [0, 1]."""
        # A structure below the pixel size is drawn one pixel wide and fainter, so that it does not vanish or flicker.
        rx, ry = max(e.rx, self.pixel / 2), max(e.ry, self.pixel / 2)
        cos, sin = math.cos(math.radians(e.degrees)), math.sin(math.radians(e.degrees))
        edge, grow = max(e.soft, self.pixel), 1 + 0.7 * sum([amplitude for _, amplitude, _ in e.lobes])
        rows = self._span(0, e.cy, math.hypot(rx * sin, ry * cos) * grow + edge)
        cols = self._span(1, e.cx, math.hypot(rx * cos, ry * sin) * grow + edge)
        dx, dy = self.x[:, cols] - e.cx, self.y[rows] - e.cy
        u, v = dx * (cos / rx) + dy * (sin / rx), dy * (cos / ry) - dx * (sin / ry)
        u2, v2 = u * u, v * v
        radius = np.sqrt(u2 + v2)
        slope = np.sqrt(u2 / rx**2 + v2 / ry**2) / (radius + 1e-6) + 1e-6  # |gradient of radius|
        if e.lobes:
            angle = np.arctan2(v, u)
            radius = radius / (1 + sum([a * np.cos(k * angle + phase) for k, a, phase in e.lobes]))
        return (rows, cols), cover((radius - 1) / slope, edge) * (e.rx * e.ry / (rx * ry))

    def paint(self, e: Ellipse, value: float | np.ndarray, within: np.ndarray | None = None) -> None:
        """Blend an ellipse into the image; ``value`` and ``within`` may be (H, W) maps."""
        window, alpha = self.mask(e)
        if within is not None:
            alpha = alpha * within[window]
        region = self.image[window]
        region += alpha * ((value[window] if isinstance(value, np.ndarray) else value) - region)

    def add(self, e: Ellipse, gain: float) -> None:
        """Add an ellipse to the image, as attenuations add in a projection."""
        window, alpha = self.mask(e)
        self.image[window] += gain * alpha

    def full_mask(self, e: Ellipse) -> np.ndarray:
        """Coverage of an ellipse as an (H, W) map."""
        full = np.zeros_like(self.image)
        window, alpha = self.mask(e)
        full[window] = alpha
        return full

    def noise(self, stream: int, *cells: int) -> np.ndarray:
        """(H, W) smooth noise of about unit variance: octaves of ``cells`` lumps per frame, weights falling by 0.6."""
        total, power = np.zeros_like(self.image), 0.0
        for octave, count in enumerate(cells):
            weight = 0.6**octave
            power += weight**2
            # One generator per octave: an octave that is finer than the pixels can be left out without moving others.
            if count <= 2 * max(self._reference):
                rng = generator_of(self._kind, 16 * stream + octave + 2, self._seed)
                rows, cols = (
                    _spline_weights(n, ref, count) for n, ref in zip(self.image.shape, self._reference, strict=True)
                )
                total += weight * (rows @ rng.standard_normal((count, count), dtype=np.float32) @ cols.T)
        return total / np.float32(np.sqrt(power))

    def finish(self, index: int, grain: float, within: np.ndarray) -> np.ndarray:
        """The image with its own pixel noise of standard deviation ``grain`` inside a map, clipped to [0, 1]."""
        rng = generator_of(self._kind, 10_000, index)
        noise = rng.standard_normal(self.image.shape, dtype=np.float32)
        return np.clip(self.image + grain * within * noise, 0.0, 1.0)
