from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.comparison.files import save_outcome
from stack.comparison.outcome import Comparison
from stack.comparison.record import visible
from stack.comparison.report import frames
from stack.comparison.report.figures import ENTRIES
from stack.comparison.report.page import chart_svg, report_html
from stack.comparison.table import HEADINGS, cells
from stack.comparison.verdict import verdict

from .reading import Page, entry, figures

PLANS = {"balanced": "1. quantize: int8 <fast>"}


@pytest.fixture
def made(comparison: Any) -> tuple[dict[str, Any], Page]:
    """A record and its page."""
    measurement, record = comparison()
    pictures = {name: m.pictures for name, m in measurement.rows.items() if m.generations}
    return record, Page(report_html(record, PLANS, pictures))


def test_every_figure_is_the_records(made: tuple[dict[str, Any], Page]) -> None:
    record, page = made
    found = {source: value for source, value, _ in figures(page)}
    assert found == {source: entry(record, source) for source in found}
    shown = {f"rows.{row['name']}.{key}" for row in visible(record) for key in ENTRIES.values() if row[key] is not None}
    shares = {f"contributions.{share['pass']}.{key}" for share in record["contributions"] for key in list(share)[1:]}
    peaks = {f"rows.{row['name']}.peak_bytes" for row in visible(record)}
    judged = {f"rows.{row['name']}.quality.brightness" for row in visible(record)}
    assert set(found) == shown | shares | peaks | judged
    assert found["rows.all.quality.brightness"] == pytest.approx(3 * 0.05)


def test_the_table_reads_as_the_one_on_screen(made: tuple[dict[str, Any], Page]) -> None:
    record, page = made
    table = page.source[page.source.index("<table") : page.source.index("</table>")]
    lines = [re.sub("<[^>]+>", "|", line) for line in re.findall("<tr.*?</tr>", table, re.DOTALL)]
    read = [[cell.strip() for cell in line.split("|") if cell.strip()] for line in lines]
    assert read == [list(HEADINGS), *(list(cells(row)) for row in visible(record))]


def test_it_needs_nothing_else(made: tuple[dict[str, Any], Page]) -> None:
    _, page = made
    assert "http:" not in page.source and "https:" not in page.source and "@import" not in page.source
    assert {e.attributes["src"].split(",")[0] for e in page.of("img")} == {"data:image/png;base64"}
    assert [e.attributes for e in page.of("script")] == [{}]
    (policy,) = [e.attributes["content"] for e in page.of("meta") if "http-equiv" in e.attributes]
    assert policy.startswith("default-src 'none';")


def test_all_that_is_seen_is_also_said(made: tuple[dict[str, Any], Page]) -> None:
    record, page = made
    alts = [e.attributes["alt"] for e in page.of("img")]
    assert alts == [f"{row['name']}: {prompt}" for prompt in record["prompts"] for row in visible(record)]
    svgs = page.of("svg")
    assert len(svgs) == 2 + 2 + 4 + 10 + 2 + 10  # bars, plots for two widths, their key, strips, error plots, memory
    assert all(e.attributes.get("aria-hidden") == "true" or e.attributes["aria-label"] for e in svgs)
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert {e.attributes["for"] for e in page.of("label")} <= set(ids)
    labelled = {e.attributes["for"] for e in page.of("label")}
    assert {e.attributes["id"] for e in page.elements if e.tag in ("select", "input")} == labelled


def test_verdict_first_then_figures_then_how_to_have_it_again(made: tuple[dict[str, Any], Page]) -> None:
    record, page = made
    assert page.of("p")[0].attributes == {"class": "verdict"} and page.of("p")[0].text == verdict(record)
    assert page.of("p")[1].text.startswith("all is ") and "its better control, fewer-steps" in page.of("p")[1].text
    titles = [e.text for e in page.of("h2")]
    assert titles == [
        "Results", "What each pass contributes", "Speed against quality", "Pictures: base against stack",
        "Quality by every measure", "What each step computed", "Error of the cache over the noise level", "Memory",
        "Plan of balanced", "To have it again",
    ]  # fmt: skip
    assert [e.text for e in page.of("pre")] == [PLANS["balanced"]]


def test_the_command_stands_as_it_was_given(comparison: Any) -> None:
    _, record = comparison()
    command = "ditstack compare fast --steps 8 --out 'a b'"
    page = Page(report_html({**record, "command": command}, {}, {}))
    assert [e.text for e in page.of("pre")] == [command]
    assert not page.of("img") and "Pictures" not in "".join(e.text for e in page.of("h2"))


def test_words_of_a_user_are_words(comparison: Any) -> None:
    measurement, record = comparison()
    record["prompts"][0], record["recipe"] = '<script>alert("1")</script>', "<b>mine</b>"
    record["warnings"] = ["<i>so</i>"]
    page = Page(report_html(record, {"</pre>": "a & b"}, {"base": measurement.rows["base"].pictures}))
    assert len(page.of("script")) == 1 and not page.of("b") and not page.of("i")
    assert page.of("option")[0].text == '<script>alert("1")</script>'
    assert page.of("title")[0].text == "<b>mine</b> on shapes-flux: ditstack compare"
    assert page.of("pre")[0].text == "a & b"


def test_strips_show_what_each_step_computed(comparison: Any) -> None:
    _, record = comparison()
    record["rows"] = record["rows"][:2]
    record["rows"][1] |= {"kinds": ["full", "partial", "cached", "full"], "computed": [1.0, 0.4, 0.0, 1.0]}
    page = Page(report_html({**record, "contributions": None}, {}, {}))
    strip = page.source[page.source.index('aria-label="quantize:') :]
    strip = strip[: strip.index("</svg>")]
    assert 'aria-label="quantize: 2 full, 1 partial, 1 cached"' in strip
    boxes = re.findall(r'x="(\d+)"(?: y="([\d.]+)")? width="9" height="([\d.]+)" fill="var\(--(\w+)\)"', strip)
    assert boxes == [
        ("0", "", "10", "full"), ("10", "", "10", "cached"), ("10", "6.00", "4.00", "partial"),
        ("20", "", "10", "cached"), ("30", "", "10", "full"),
    ]  # fmt: skip
    assert "step 1: partial, 40 % computed" in strip
    assert page.source.count('viewBox="0 0 500 10"') == 2  # the same width per step in all rows: the base has 50


def test_several_recipes_have_no_contributions(comparison: Any) -> None:
    _, record = comparison(recipes={"one": ("cache",), "two": ("quantize", "cache")})
    page = Page(report_html(record, {}, {}))
    assert record["contributions"] is None
    assert "What each pass contributes" not in [e.text for e in page.of("h2")]
    assert [e.text for e in page.of("p", **{"class": "verdict"})] == [verdict(record)]
    assert [e.text.split()[0] for e in page.of("p")[1:3]] == ["one", "two"]


def test_an_interruption_is_said_and_what_is_there_is_shown(comparison: Any, make_engine: Any, tmp_path: Path) -> None:
    measurement, record = comparison(make_engine(stop_after=1))
    pictures = {name: m.pictures for name, m in measurement.rows.items() if m.generations}
    written = save_outcome(Comparison(record, pictures), tmp_path)
    assert [path.name for path in written] == [
        "compare.json",
        "table.md",
        "grid.png",
        "report.html",
    ]  # one row makes no plot
    page = Page(written[-1].read_text())
    assert page.of("p", **{"class": "warning"})[0].text.startswith("Interrupted")
    assert len(page.of("img")) == 1 and chart_svg(record) is None


def test_videos_are_sheets_of_frames(comparison: Any) -> None:
    _, record = comparison()
    clips = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1).expand(3, 5, 3, 12, 16)
    page = Page(report_html(record, {}, {"base": clips, "all": clips.flip(1)}))
    (section,) = page.of("section")
    assert section.attributes["data-frames"] == "5" and section.attributes["data-columns"] == "3"
    assert (
        page.of("span", **{"class": "frame small"})[0]
        .attributes["style"]
        .startswith("--shape: 16/12; --columns: 3; --lines: 2")
    )
    assert [e.text for e in page.of("button", id="play")] == ["Play"]
    assert page.of("input", id="frame")[0].attributes["max"] == "4"
    assert page.of("h2")[3].text == "Videos: base against stack"


def test_pictures_that_do_not_fit_are_left_to_the_grid(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measurement, record = comparison()
    monkeypatch.setattr(frames, "MOST_BYTES", 1)
    page = Page(report_html(record, {}, {"base": measurement.rows["base"].pictures}))
    assert len(page.of("img")) == 1
    assert "The other 2 prompts are in grid.png." in page.source


def test_the_chart_alone_has_its_own_colours(made: tuple[dict[str, Any], Page]) -> None:
    record, _ = made
    drawing = chart_svg(record)
    assert drawing is not None and drawing.startswith("<svg xmlns=")
    assert "prefers-color-scheme: dark" in drawing and "balanced on shapes-flux, 50 steps, 3 prompts" in drawing
    assert set(re.findall(r'data-row="([^"]+)"', drawing)) == {r["name"] for r in visible(record)[1:]}
