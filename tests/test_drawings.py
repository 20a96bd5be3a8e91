"""The pictures of ARCHITECTURE.md are those that docs/drawings.py draws today."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
DRAWINGS = runpy.run_path(str(ROOT / "docs" / "drawings.py"))["DRAWINGS"]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_committed_picture_is_what_the_script_draws(name):
    committed = (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8")
    assert committed == DRAWINGS[name]().svg(), "run python docs/drawings.py"


@pytest.mark.parametrize("name", DRAWINGS)
def test_everything_is_inside_the_picture(name):
    drawing = DRAWINGS[name]()
    root = ElementTree.fromstring(drawing.svg())
    for element in root.iter():
        kind = element.tag.rpartition("}")[2]
        if kind == "rect":
            x, y, w, h = (float(element.get(key, 0)) for key in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= drawing.width
            assert 0 <= y <= y + h <= drawing.height
        elif kind == "text":
            assert 0 <= float(element.get("x", -1)) <= drawing.width
            assert 0 < float(element.get("y", -1)) <= drawing.height
        elif kind == "polyline":
            for point in element.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= drawing.width
                assert 0 <= y <= drawing.height
