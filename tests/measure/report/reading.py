"""Reads a page back as a person or a screen reader would, without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

EMPTY = {"meta", "link", "img", "input", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Every element with its own text; unbalanced tags are an error."""

    source: str
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[Element] = []
        self.feed(self.source)
        assert not self.open, f"never closed: {self.open[-1]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in EMPTY:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1].text += data

    def of(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of a tag, with these attributes."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]


def entry(record: dict[str, Any], source: str) -> Any:
    """The entry of a record that a figure names: "rows.all.speedup", "contributions.cache.seconds_saved"."""
    table, name, inside, key = re.fullmatch(r"(\w+)\.(.+?)\.(quality\.)?(\w+)", source).groups()  # type: ignore[union-attr]
    (line,) = [line for line in record[table] if name in (line.get("name"), line.get("pass"))]
    return line["quality"][key] if inside else line[key]


def figures(page: Page) -> Iterator[tuple[str, float, str]]:
    """Where each figure comes from, its value, and how it is written."""
    for element in page.of("data"):
        yield element.attributes["data-source"], float(element.attributes["value"]), element.text
