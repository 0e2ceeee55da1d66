"""Python blocks of the pages, as pytest runs them.

A page's blocks run one after the other in one namespace. Each is given a new `pipe` (a small random FluxPipeline),
`prompts` and `held_out`; other names stay. A block that needs what a test cannot have, such as weights from the hub,
says so in the line before it:

    <!-- not run: needs the weights of flux-turbo-alpha -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of a page: its code, the line it begins on, and why it is not run, if so."""

    page: Path
    line: int
    code: str
    why_not: str

    def run(self, namespace: dict[str, object]) -> None:
        """Execute it; a traceback names the page and the line."""
        exec(compile("\n" * (self.line - 1) + self.code, str(self.page), "exec"), namespace)


def pages() -> list[Path]:
    """Pages with python blocks."""
    known = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in known if "```python" in path.read_text()]


def blocks(page: Path) -> list[Block]:
    """The python blocks of a page, in their order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, found["code"], found["why"] or "")
        for found in BLOCK.finditer(text)
    ]
