"""Pictures and plots inside a page, which then needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.pages.elements import Html, element, image
from experiments.pages.text import is_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def inline_image(png: bytes, what: str = "") -> Html:
    """Return a PNG as an element; ``what`` says what it shows to those who do not see it."""
    return image(f"data:image/png;base64,{base64.b64encode(png).decode()}", what)


def inline_figure(figure: "Figure") -> Html:
    """Return a matplotlib figure as an element."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return element("div", inline_image(buffer.getvalue()), kind="plot")


def picture(images: "Tensor", columns: int) -> Html:
    """Return images (N, C, H, W) in [-1, 1] as one picture."""
    from callbacks.sample_grid import enlarged, grid_picture

    grid = grid_picture(enlarged(images), columns)
    grid.thumbnail((1600, 1600))
    buffer = io.BytesIO()
    grid.save(buffer, "PNG")
    return inline_image(buffer.getvalue())


def captioned(shown: Html, caption: str) -> Html:
    """Return a picture with its caption."""
    return element("figure", shown, element("figcaption", caption))


def side_by_side(*figures: Html) -> Html:
    """Return pictures beside each other, each as large as there is room for; one below the other on a narrow page."""
    return element("div", *figures, kind="pair large")


def plot(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], label: str, scale: str = "linear") -> Html:
    """Return a plot of values over the clock, "images_seen"; what is no number is left out."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for key in keys:
        points = [(row["images_seen"], row[key]) for row in rows if is_number(row.get(key))]
        name = _as_text(key.removeprefix("loss/"))
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", label=name)
    axes.set(xlabel="images seen", ylabel=_as_text(label), yscale=scale)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if scale == "log":  # 40 instead of 4 x 10^1
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")
    return inline_figure(figure)


def _as_text(name: str) -> str:
    """Return a name as matplotlib shows it: a dollar would begin a formula."""
    return name.replace("$", r"\$")
