"""The page in headless Chromium: what a reader without a mouse, on a phone or in the dark meets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.comparison.record import visible
from stack.comparison.report.page import report_html
from stack.comparison.table import HEADINGS, cells

from .reading import entry

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install 'ditstack[browser]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install 'ditstack[browser]'")

DESKTOP, PHONE = (1100, 900), (360, 740)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the system or playwright has installed it."""
    with playwright.sync_playwright() as run:
        own = run.chromium.executable_path
        found = next(filter(None, map(shutil.which, (*PROGRAMS, own))), None)
        if found is None:
            pytest.skip("no Chromium is installed (apt-get install chromium, or playwright install chromium)")
        browser = run.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def pages(comparison: Any, tmp_path: Path) -> dict[str, Any]:
    """A record, and where its page with pictures and one with videos lie."""
    measurement, record = comparison()
    pictures = {name: m.pictures for name, m in measurement.rows.items() if m.generations}
    clips = {name: pictures[name][:, None].repeat(1, 6, 1, 1, 1) * torch.linspace(0, 1, 6)[:, None, None, None]
             for name in pictures}  # fmt: skip
    record["command"] = "ditstack compare balanced --steps 50"
    for kind, made in (("pictures", pictures), ("videos", clips)):
        (tmp_path / f"{kind}.html").write_text(report_html(record, {"balanced": "1. quantize: int8"}, made))
    return {"record": record, "pictures": tmp_path / "pictures.html", "videos": tmp_path / "videos.html"}


def opened(browser: Any, path: Path, size: tuple[int, int], **options: Any) -> tuple[Any, list[str]]:
    """A page, and what its console and its errors say."""
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file", "data")) else None
    )
    page.goto(path.as_uri())
    return page, said


@pytest.mark.parametrize("kind", ["pictures", "videos"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_and_the_console_stays_empty(
    browser: Any, pages: dict[str, Any], kind: str, scheme: str, size: tuple[int, int]
) -> None:
    page, said = opened(browser, pages[kind], size, color_scheme=scheme, reduced_motion="reduce")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [node["html"][:100] for node in v["nodes"]]) for v in found] == []
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]  # nothing sticks out
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)"
    )


# Boxes of a table's parts that stick out of the window, and texts that do not fit their own box.
CUT = """all => all.flatMap(table => [...table.querySelectorAll("*")]).filter(e => {
  const box = e.getBoundingClientRect();
  const spills = e.matches("th, td") && e.scrollWidth > e.clientWidth + 1;
  return box.width && (box.left < 0 || box.right > innerWidth || spills);
}).map(e => e.outerHTML)"""
# Figures that are seen, with the heading that a card puts before them.
SEEN = (
    """all => all.filter(e => e.checkVisibility()).map(e => [getComputedStyle(e, "::before").content, e.innerText])"""
)


@pytest.mark.parametrize("width", [320, 390, 700, 1087])
def test_on_a_narrow_screen_every_figure_of_a_table_is_seen(browser: Any, pages: dict[str, Any], width: int) -> None:
    page, _ = opened(browser, pages["pictures"], (width, 844))
    assert page.eval_on_selector_all("table", CUT) == []
    rows = visible(pages["record"])
    expected = [
        [f'"{heading}"', text]
        for row in rows
        for heading, text in zip(HEADINGS[1:], cells(row)[1:], strict=True)
        if text != "-"
    ]
    found = page.eval_on_selector_all("table.columns >> nth=0 >> td", SEEN)
    assert found == expected and len(found) > 80
    judged = page.eval_on_selector_all("table.columns >> nth=1 >> td", SEEN)
    assert [heading for heading, _ in judged] == ['"PSNR, dB ↑"', '"SSIM ↑"', '"brightness ↓"'] * len(rows)
    assert page.locator("table.columns thead:visible").count() == 0
    names = page.get_by_role("rowheader").all_inner_texts()  # still a table to a screen reader
    assert names[: len(rows)] == [row["name"] for row in rows]


@pytest.mark.parametrize("width", [1100, 1280])
def test_on_a_desktop_the_table_of_results_needs_no_scrolling(browser: Any, pages: dict[str, Any], width: int) -> None:
    page, _ = opened(browser, pages["pictures"], (width, 900))
    assert page.eval_on_selector_all("table", CUT) == []
    assert page.eval_on_selector(".wide", "e => e.scrollWidth - e.clientWidth") == 0
    assert page.get_by_role("columnheader").all_inner_texts()[: len(HEADINGS)] == list(HEADINGS)


def test_figures_on_the_page_are_the_records(browser: Any, pages: dict[str, Any]) -> None:
    page, _ = opened(browser, pages["pictures"], DESKTOP)
    shown = page.eval_on_selector_all("data", "all => all.map(e => [e.dataset.source, Number(e.value), e.innerText])")
    assert len(shown) > 80
    assert [value for _, value, _ in shown] == [entry(pages["record"], source) for source, _, _ in shown]
    texts = {source: text for source, _, text in shown}
    assert texts["rows.all.speedup"].startswith("10.00x") and texts["rows.quantize.psnr_db"] == "40.0"


def test_the_keyboard_reaches_everything(browser: Any, pages: dict[str, Any]) -> None:
    page, said = opened(browser, pages["pictures"], DESKTOP)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.dataset.row || document.activeElement.className"
            )
        )
    assert reached == ["wide", "prompt", "amplify", "cut", "base", "quantize"]
    page.focus("#cut")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.getElementById('cut-view').style.getPropertyValue('--cut')") == "51%"
    assert page.inner_text("#right-name") == "all"
    page.focus(".scene:not([hidden]) button[data-row=cache]")
    page.keyboard.press("Enter")
    assert page.inner_text("#right-name") == "cache"
    assert page.get_attribute("#cut-view .over img", "alt") == f"cache: {pages['record']['prompts'][0]}"
    assert page.get_attribute(".scene:not([hidden]) button[data-row=cache]", "aria-pressed") == "true"
    page.select_option("#prompt", index=1)
    assert page.locator(".scene:visible").count() == 1
    assert page.get_attribute("#cut-view .over img", "alt") == f"cache: {pages['record']['prompts'][1]}"
    page.select_option("#amplify", "32")
    assert page.evaluate("getComputedStyle(document.getElementById('difference-view')).filter") == "brightness(32)"
    assert said == []


def test_the_difference_is_that_of_the_pictures(browser: Any, pages: dict[str, Any]) -> None:
    """quantize is 0.01 off everywhere: 3 of 255, 4 times amplified 12."""
    page, _ = opened(browser, pages["pictures"], DESKTOP)
    page.click(".scene:not([hidden]) button[data-row=quantize]")
    page.select_option("#amplify", "4")
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(page.locator("#difference-view").screenshot())).convert("RGB")
    low, high = image.resize((16, 16), Image.Resampling.NEAREST).crop((2, 2, 14, 14)).convert("L").getextrema()
    assert 8 <= low <= high <= 12


@pytest.mark.parametrize(("motion", "label"), [("reduce", "Play"), ("no-preference", "Pause")])
def test_videos_play_unless_less_motion_is_wanted(browser: Any, pages: dict[str, Any], motion: str, label: str) -> None:
    page, said = opened(browser, pages["videos"], DESKTOP, reduced_motion=motion)
    assert page.inner_text("#play") == label
    page.focus("#frame")
    page.keyboard.press("End")  # one of the two moves the frame, wherever it is, and so pauses
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#play") == "Play"  # moving the frame by hand pauses
    place = page.evaluate(
        "['--column', '--line'].map(n => document.getElementById('pictures').style.getPropertyValue(n))"
    )
    assert place == ["0", "1"]  # frame 3 of a sheet of 3 columns
    assert said == []


def test_without_a_script_every_picture_is_there(browser: Any, pages: dict[str, Any]) -> None:
    page, _ = opened(browser, pages["pictures"], DESKTOP, java_script_enabled=False)
    assert page.locator(".gallery img:visible").count() == 3 * 10
    assert not page.locator("#viewer").is_visible()
