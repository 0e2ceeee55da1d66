from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo.config
import yaml

from stack.models.families import FAMILIES
from stack.reference.captions import captions

from ..conftest import tiny_pipe
from .blocks import ROOT, Block, blocks, commands, pages
from .recipe_format import PAGE, written


@pytest.fixture(autouse=True)
def families_as_they_were() -> Iterator[None]:
    """Pages may register families of their own, which no other test is to see."""
    known = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(known)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    texts = captions(5, seed=0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec("from stack import Stack", namespace)
    for block in blocks(page):
        namespace |= {"pipe": tiny_pipe(), "prompts": texts[:3], "held_out": texts[3:]}
        if not block.why_not:
            # Compiling takes a minute and is tested elsewhere: here it is asked for, and the blocks run as they are.
            with torch._dynamo.config.patch(disable=True):
                block.run(namespace)
    for command in commands(page):
        command.run()


def test_a_block_prints_what_its_page_says(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    code = "from stack import StackError\nprint('one')\nprint('two, 2.5 s')\nraise StackError('no')\n"
    page.write_text(f"```python\n{code}```\n\n```text\none\ntwo, ... s\nStackError: no\n```\n")
    blocks(page)[0].run({})
    page.write_text(f"```python\n{code}```\n\n```text\ntwo, ... s\none\nStackError: no\n```\n")
    with pytest.raises(AssertionError, match="does not print 'one'"):
        blocks(page)[0].run({})
    page.write_text("```console\n$ ditstack adapters --names\n$ ditstack --version\nditstack ...\n```\n")
    first, second = commands(page)
    assert (first.arguments, first.printed, second.printed) == ("adapters --names", "", "ditstack ...\n")
    second.run()


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    found = [block for page in pages() for block in blocks(page)]
    assert len(found) == sum(page.read_text().count("```python") for page in pages())
    assert {(str(b.page.relative_to(ROOT)), b.why_not) for b in found if b.why_not} == {
        ("README.md", "needs the weights of FLUX.1-dev"),
        ("docs/adapters.md", "needs the weights of flux-turbo-alpha"),
        ("docs/living.md", "needs several GPUs"),
        ("docs/my-model.md", "needs the weights of Qwen-Image"),
        ("docs/sparse.md", "needs more tokens than the model of these tests has"),
    }


def test_a_block_that_fails_names_its_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    good, idle = "```python\na = 1\n```\n", "<!-- not run: no reason -->\n```python\nb\n```\n"
    page.write_text(f"# Page\n\n{good}\n{idle}\n```python\n\n1 / 0\n```\n")
    first, second, third = blocks(page)
    assert (first.line, second.why_not, third.line) == (4, "no reason", 13)
    with pytest.raises(ZeroDivisionError) as raised:
        third.run({})
    assert (raised.traceback[-1].path, raised.traceback[-1].lineno + 1) == (page, 14)
    assert third == Block(page, 13, "\n1 / 0\n", "")


def test_the_recipe_format_has_every_key() -> None:
    assert PAGE.read_text() == written(PAGE.read_text()), "write it anew: python -m tests.docs.recipe_format"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_load(text[text.index("nav:\n") :])["nav"]
    named = [page for entry in nav for page in leaves(entry)]
    written = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted([*written, "index.md", "contributing.md", "changelog.md"])


def leaves(entry: object) -> list[str]:
    """The pages below an entry of the navigation."""
    if isinstance(entry, dict):
        return [page for below in entry.values() for page in leaves(below)]
    return [page for below in entry for page in leaves(below)] if isinstance(entry, list) else [str(entry)]
