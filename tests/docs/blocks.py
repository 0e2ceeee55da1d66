"""Python blocks of the pages, as pytest runs them.

A page's blocks run one after the other in one namespace. Each is given a new `pipe` (a small random FluxPipeline),
`prompts` and `held_out`; other names stay. A block that needs what a test cannot have, such as weights from the hub,
says so in the line before it:

    <!-- not run: needs the weights of flux-turbo-alpha -->

A block of `text` right behind a block holds lines that it prints, `...` standing for any text in a line. A last line
"StackError: ..." is the error that it ends with. In a block of `console` each line "$ ditstack ..." is run likewise.
"""

from __future__ import annotations

import re
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from stack import StackError
from stack.cli import main

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```python\n(?P<code>.*?)^```$(?:\n+```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
CONSOLE = re.compile(r"^```console\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ditstack (?P<arguments>.*)\n(?P<printed>(?:(?!\$ ).*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page: its code, the line it begins on, why it is not run, if so, and what it is said to print."""

    page: Path
    line: int
    code: str
    why_not: str
    printed: str = ""

    def run(self, namespace: dict[str, object]) -> None:
        """Execute it and hold what it prints against the page; a traceback names the page and the line."""
        out = StringIO()
        try:
            with redirect_stdout(out):
                code = compile("\n" * (self.line - 1) + self.code, str(self.page), "exec", dont_inherit=True)
                exec(code, namespace)
        except StackError as error:
            if "StackError: " not in self.printed:
                raise
            out.write(f"StackError: {error}\n")
        expect_lines(self.printed, out.getvalue(), f"{self.page}, block of line {self.line}")


@dataclass(frozen=True)
class Command:
    """A command line of a page, and what it is said to print."""

    page: Path
    arguments: str
    printed: str

    def run(self) -> None:
        """Run it in this process and hold what it prints against the page."""
        out = StringIO()
        with redirect_stdout(out):
            try:
                main(shlex.split(self.arguments))
            except SystemExit as end:
                assert not end.code, f"{self.page}: ditstack {self.arguments} ends with {end.code}"
        expect_lines(self.printed, out.getvalue(), f"{self.page}, ditstack {self.arguments}")


def expect_lines(expected: str, printed: str, where: str) -> None:
    """Every expected line has to be printed, in this order; `...` stands for any text, alone for any lines."""
    wanted = [line.strip() for line in expected.splitlines() if line.strip() not in ("", "...")]
    lines = iter(line.strip() for line in printed.splitlines())
    for line in wanted:
        pattern = ".*".join(map(re.escape, line.split("...")))
        assert any(re.fullmatch(pattern, found) for found in lines), f"{where} does not print {line!r} but\n{printed}"


def pages() -> list[Path]:
    """Pages with python blocks or commands."""
    known = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in known if blocks(path) or commands(path)]


def blocks(page: Path) -> list[Block]:
    """The python blocks of a page, in their order."""
    text = page.read_text()
    return [
        Block(page, _line(text, found.start("code")), found["code"], found["why"] or "", found["printed"] or "")
        for found in BLOCK.finditer(text)
    ]


def commands(page: Path) -> list[Command]:
    """The command lines of a page that begin with `$ ditstack`, in their order."""
    consoles = [found["text"] for found in CONSOLE.finditer(page.read_text())]
    found = [command for text in consoles for command in COMMAND.finditer(text)]
    return [Command(page, command["arguments"], command["printed"]) for command in found]


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
