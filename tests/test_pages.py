"""What every page has in common: nothing that it shows can break it, and it needs no other file."""

import ast
import base64
import csv
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from experiments.measuring.moment_analysis import PruningEffect
from experiments.measuring.moments_page import pruning_section
from experiments.pages.elements import Html, element, escaped, folded, image, joined, listed, page, paragraph, verbatim
from experiments.pages.pictures import captioned, inline_image, picture, plot, side_by_side
from experiments.pages.style import STYLE
from experiments.pages.tables import Cell, table
from experiments.pages.text import csv_text

HOSTILE = "<script>alert('1')</script>\"&"


class Reader(HTMLParser):
    """Collects the elements and texts of a page, and whether each was closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.attributes = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize(
    "made",
    [
        escaped(HOSTILE),
        element("b", HOSTILE, title=HOSTILE),
        paragraph(HOSTILE, kind="note"),
        listed([HOSTILE]),
        verbatim(HOSTILE),
        folded(HOSTILE, HOSTILE),
        joined([HOSTILE]),
        image("data:,", HOSTILE),
        table([HOSTILE], [[HOSTILE], [Cell(HOSTILE, "bad", 2)]]),
        captioned(inline_image(b"png", HOSTILE), HOSTILE),
        page(HOSTILE, HOSTILE),
        pruning_section(PruningEffect(1, 2, [(HOSTILE, 1.0, 2.0, 3.0)])),
    ],
    ids=lambda made: re.sub(r"\W.*", "", made[1:20]) or "text",
)
def test_whatever_is_shown_is_shown_as_it_is(made):
    read = Reader(made)
    assert "script" not in read.tags and not read.open
    values = [*read.texts, *(value for _, value in read.attributes)]
    assert any(HOSTILE in (value or "").replace("_", " ") for value in values)


def test_html_is_not_escaped_twice():
    inner = element("b", "a < b")
    assert paragraph("x: ", inner) == "<p>x: <b>a &lt; b</b></p>"
    assert isinstance(joined([inner, inner]), Html) and escaped(inner) is inner
    assert not isinstance(inner + inner, Html)  # sums of strings are plain again, and would be escaped


def test_a_page_needs_no_other_file_and_fits_a_telephone():
    rows = [{"images_seen": i, "loss/a": 1.0 / (i + 1), "loss/$x^$": float("nan") if i == 2 else i} for i in range(5)]
    pictures = side_by_side(captioned(picture(torch.zeros(4, 1, 8, 8), 2), "grey"))
    made = page("Title", pictures, plot(rows, ["loss/a", "loss/$x^$"], "loss"), table(["a", "b"], [["1", "2"]]))
    read = Reader(made)
    assert not read.open and read.tags.count("img") == 2
    assert ("name", "viewport") in read.attributes
    assert not re.search(r"(src|href)=\"(?!data:)", made) and "http" not in re.sub(r"base64,[^\"]*", "", made)
    assert "prefers-color-scheme: dark" in STYLE and '<div class="scroll"><table>' in made
    encoded = re.search(r"base64,([^\"]*)\"", made)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"))
    assert ((shown >= 126) & (shown <= 129)).any()


def test_cells_are_no_formulas_and_numbers_stay_numbers():
    rows = [["=1+1", "-3", -3, 0.1, None, True, "@x", "a\x1bb"]]
    (read,) = csv.reader(io.StringIO(csv_text(rows)))
    assert read == ["'=1+1", "-3", "-3", "0.1", "", "True", "'@x", "a b"]


def test_html_is_made_in_one_room():
    """Elsewhere nobody escapes by hand, and no text with a tag in it is put together; Markdown has rules of its own."""
    for path in (ROOT / "experiments").rglob("*.py"):
        if path.parent.name == "pages":
            continue
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert "html" not in names or path.name == "model_card.py", path
        texts = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts if re.search(r"<(p|h\d|td|th|tr|table|div|img|pre|figure)\b[^<]*>", text)], (
            path
        )
