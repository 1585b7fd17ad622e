"""HTML that cannot be broken by what it shows: every text is escaped unless it is ``Html`` already."""

import html
from collections.abc import Iterable

from experiments.pages.style import STYLE


class Html(str):
    """Text that is HTML, made by this room's functions alone."""


def escaped(content: str) -> Html:
    """Return a text as HTML that shows it, and HTML as it is; what turns the direction of reading becomes a space."""
    if isinstance(content, Html):
        return content
    return Html(
        html.escape("".join(one if one.isprintable() or one in "\n\t" else " " for one in content), quote=False)
    )


def joined(parts: Iterable[str]) -> Html:
    """Return texts and pieces of HTML one after the other."""
    return Html("".join(map(escaped, parts)))


def element(tag: str, *content: str, kind: str = "", **attributes: str) -> Html:
    """Return an element.

    Args:
        tag: Its name.
        content: What it holds, texts or HTML.
        kind: Its classes in the style, separated by spaces.
        attributes: Others by name; "" = an attribute without value.
    """
    named = {**({"class": kind} if kind else {}), **attributes}
    inside = "".join(f' {name}="{html.escape(value)}"' if value else f" {name}" for name, value in named.items())
    return Html(f"<{tag}{inside}>{joined(content)}</{tag}>")


def image(source: str, what: str) -> Html:
    """Return a picture; ``what`` says what it shows to those who do not see it."""
    return Html(f'<img src="{html.escape(source)}" alt="{html.escape(what)}">')


def heading(text: str, level: int = 2) -> Html:
    """Return a heading."""
    return element(f"h{level}", text)


def paragraph(*content: str, kind: str = "") -> Html:
    """Return a paragraph; ``kind`` is "note" for what must not be overlooked, "good" or "bad" for a verdict."""
    return element("p", *content, kind=kind)


def listed(items: Iterable[str], kind: str = "") -> Html:
    """Return a list."""
    return element("ul", *(element("li", item) for item in items), kind=kind)


def verbatim(text: str) -> Html:
    """Return a text as it is, lines and all."""
    return element("pre", text)


def folded(title: str, *content: str, opened: bool = False) -> Html:
    """Return what is shown when its title is asked for."""
    return element("details", element("summary", title), *content, **({"open": ""} if opened else {}))


def page(title: str, *parts: str) -> str:
    """Return a page that opens without network.

    Args:
        title: Its title, as plain text.
        parts: What it holds, in the order of reading.
    """
    head = element("title", title) + f"<style>{STYLE}</style>"
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join([heading(title, 1), *map(escaped, parts)])
    return f'<!doctype html><html lang="en">{view}{head}<body>\n{body}\n</body></html>\n'


REAL_IMAGES = paragraph(
    "This file shows real images beside generated ones. Treat it as patient data.", kind="note"
)  # for every page that does
