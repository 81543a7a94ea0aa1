"""Pages as trees: enough to look things up in what a report says."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from tests.support.runs import Run
from vgg_ddp.report import write_report

SECTIONS = [
    "story",
    "training",
    "pictures",
    "classes",
    "confusion",
    "worst",
    "quiz",
    "groups",
    "neighbours",
    "occlusion",
    "reliance",
    "slices",
    "map",
    "calibration",
    "abstention",
    "data",
    "dynamics",
    "speed",
    "configuration",
    "environment",
]
VOID = {"meta", "img", "br", "input"}


@dataclass
class Node:
    """An element of the page: enough of a tree to look things up in."""

    tag: str
    attributes: dict[str, str]
    parts: list[str | Node] = field(default_factory=list)

    def all(self, tag: str | None = None, **attributes: str) -> list[Node]:
        """Every element below with this tag and these attributes, in the order of the page."""
        found = []
        for part in self.parts:
            if isinstance(part, Node):
                if (tag in (None, part.tag)) and all(part.attributes.get(k) == v for k, v in attributes.items()):
                    found.append(part)
                found += part.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        """The text below, white space and no-break spaces folded."""
        return " ".join(self.text_raw.split())

    @property
    def text_raw(self) -> str:
        return "".join(part if isinstance(part, str) else part.text_raw for part in self.parts)

    def table(self) -> list[list[str]]:
        """The cells of each row of the body, empty ones (the bars) left out."""
        rows = [row for body in self.all("tbody") for row in body.all("tr")]
        cells = [[cell for cell in row.all() if cell.tag in ("th", "td")] for row in rows]
        return [[cell.text for cell in row if cell.attributes.get("class") != "bar"] for row in cells]


class Page(HTMLParser):
    """A parser that is strict enough: every element that is opened must be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], "an element was left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def page_of(run: Run, pictures: bool = True) -> Node:
    return Page(write_report(run.path, run.dataset if pictures else None).read_text(encoding="utf-8")).root


def decoded(image: Node) -> np.ndarray:
    """The pixels of an <img>."""
    png = base64.b64decode(image.attributes["src"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)))


def section(page: Node, name: str) -> Node:
    return page.all("section", **{"aria-labelledby": name})[0]


def assert_sound(page: Node) -> None:
    """Assert what must hold for every page, whatever the data."""
    elements = page.all()
    assert not page.all("link")
    for element in elements:
        for key, value in element.attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#"))
    *stored, script = page.all("script")
    assert {element.attributes["type"] for element in stored} <= {"application/json", "text/plain"}
    digest = base64.b64encode(hashlib.sha256(script.text_raw.encode()).digest()).decode()
    styles = "".join(style.text_raw for style in page.all("style"))
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", styles + "".join(e.attributes.get("style", "") for e in elements))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    allowed = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy == f"default-src 'none'; {allowed}"
    assert page.all("html")[0].attributes["lang"].startswith("en")

    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [element.attributes.get("href", "") for element in elements]
    wanted = {link[1:] for link in links if link.startswith("#")}
    for element in elements:
        wanted.update(re.findall(r"url\(#([^)]+)\)", " ".join(element.attributes.values())))
        wanted.update(element.attributes.get("aria-labelledby", "").split())
    assert wanted <= set(ids)

    assert [s.attributes["aria-labelledby"] for s in page.all("section")] == SECTIONS
    headings = [element for element in elements if re.fullmatch("h[1-6]", element.tag)]
    assert [heading.tag for heading in headings if heading.tag != "h3"] == ["h1"] + ["h2"] * len(SECTIONS)
    assert all(image.attributes["alt"] for image in page.all("img"))
    for svg in page.all("svg"):
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-label"]
    assert_tables_are_named(page)


def assert_tables_are_named(page: Node) -> None:
    """For screen readers: each table has a caption or a label, on pages of every kind."""
    for table in page.all("table"):
        label = table.attributes.get("aria-label") or table.attributes.get("aria-labelledby")
        assert label or any(caption.text for caption in table.all("caption")), table.text
