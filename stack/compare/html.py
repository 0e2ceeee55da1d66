"""report.html: everything in one file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..measure.style import FAINT, INK, LINE, STEPS, colour_of
from .record import visible
from .table import HEADINGS, cells, footnotes

_CSS = f"""
body {{
  font: 15px/1.5 "DejaVu Sans", Verdana, sans-serif; color: {INK}; background: #fff;
  margin: 2.5rem auto; max-width: 72rem; padding: 0 1.5rem;
}}
h1 {{ font-size: 1.5rem; margin: 0; }}
h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .6rem; }}
p {{ color: {FAINT}; margin: .3rem 0; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 1.2rem 0; }}
td, th {{ padding: .3rem .7rem; border-bottom: 1px solid {LINE}; text-align: right; white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
th {{ color: {FAINT}; font-weight: normal; }}
td:first-child::before {{
  content: ""; display: inline-block; width: .25rem; height: 1em; margin-right: .6rem; vertical-align: -.15em;
  background: var(--mark);
}}
pre {{ background: #f6f7f9; padding: 1rem; overflow-x: auto; font-size: 13px; }}
.strip td {{ border: 0; padding: .15rem .7rem; }}
.strip td:last-child {{ width: 100%; }}
.strip svg {{ display: block; }}
.key {{ display: inline-block; width: .8rem; height: .8rem; vertical-align: -.1rem; margin: 0 .3rem 0 1rem; }}
.warning {{ color: #8a5300; }}
"""


def report_html(record: Mapping[str, Any], plans: Mapping[str, str], grid: Path | None, chart: Path | None) -> str:
    """The page. Pictures are embedded; no font, script or style comes from elsewhere."""
    pictures = [
        f"<h2>{title}</h2>\n{_image(path, title)}"
        for title, path in (("Speed against quality", chart), ("Pictures", grid))
        if path is not None
    ]
    recipe = record["recipe"] if isinstance(record["recipe"], str) else ", ".join(record["recipe"])
    title = f"ditstack compare: {recipe} on {record['model']}"
    note = "<p class=warning>Interrupted: the figures below are what was measured until then.</p>"
    return "\n".join([
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_setting(record))}</p>{note if record['partial'] else ''}",
        _table(record),
        "\n".join(_note(note) for note in footnotes(record)),
        *pictures,
        "<h2>What each step ran</h2>",
        _strips(record),
        *(f"<h2>Plan of {escape(name)}</h2>\n<pre>{escape(text)}</pre>" for name, text in plans.items()),
        "<h2>Versions</h2>",
        f"<p>{escape(', '.join(f'{name} {version}' for name, version in record['versions'].items()))}</p>",
        f"<p>{escape(', '.join(f'{name}: {value}' for name, value in record['machine'].items()))}</p>",
        "</body></html>\n",
    ])  # fmt: skip


def _setting(record: Mapping[str, Any]) -> str:
    return (
        f"{record['steps']} steps, {len(record['prompts'])} prompts with seeds from {record['seed']}, "
        f"{record['dtype']} on {record['device']}, torch {record['torch']}"
    )


def _note(note: str) -> str:
    kind = " class=warning" if note.startswith("warning") else ""
    return f"<p{kind}>{escape(note)}</p>"


def _table(record: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    lines = []
    for row in visible(record):
        values = "".join(f"<td>{escape(value)}</td>" for value in cells(row))
        lines.append(f'<tr style="--mark:{colour_of(row)}">{values}</tr>')
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>"


def _strips(record: Mapping[str, Any]) -> str:
    key = "".join(f'<span class=key style="background:{colour}"></span>{kind}' for kind, colour in STEPS.items())
    lines = [
        f'<tr style="--mark:{colour_of(row)}"><td>{escape(row["name"])}</td>'
        f"<td>{strip(row['kinds'], row['computed'])}</td></tr>"
        for row in visible(record)
    ]
    return f"<p>{key}</p><table class=strip>" + "\n".join(lines) + "</table>"


def strip(kinds: Sequence[str], computed: Sequence[float], step: int = 13, height: int = 15) -> str:
    """One coloured box per step, as inline SVG; a partial step's is filled from below by what it computed."""
    boxes = "".join(
        "<g>"
        + _box(i * step, step - 1, 0, height, "cached" if kind == "partial" else kind)
        + (_box(i * step, step - 1, height - share * height, share * height, kind) if kind == "partial" else "")
        + f"<title>step {i}: {kind}{f', {share:.0%} computed' if kind == 'partial' else ''}</title></g>"
        for i, (kind, share) in enumerate(zip(kinds, computed, strict=True))
    )
    return f'<svg width="{len(kinds) * step}" height="{height}">{boxes}</svg>'


def _box(x: float, width: float, y: float, height: float, kind: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{STEPS[kind]}"/>'


def _image(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
