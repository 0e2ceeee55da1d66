"""Rules in words: one for the screen, all of them for `docs/composability.md`."""

from __future__ import annotations

from ...core.rule import WHEN, Rule
from . import SUBJECTS

INTRODUCTION = """# What clashes, and what is done about it

Each rule is a known clash between passes, or of a pass with a model or a call. Plans, warnings and errors name their
rule, and `ditstack rules NAME` prints it. In a plan a clash is `[repaired]`, `[refused]`, or a `[note]`; with
`strict=True` repairs are refused as well.

Figures of others are cited as published; those of this project name the page that they are on. None of this project's
were measured on a GPU. [Clashes that cannot occur](not-here.md) have their own page. This one is written by
`ditstack rules --write docs/composability.md` from `stack/compat/rules/`.
"""


def section(rule: Rule) -> str:
    """A rule as markdown, without its heading."""
    stages = ", ".join(f"`{stage}`" for stage in rule.stages)
    lines = [f"**{rule.title[0].upper()}{rule.title[1:]}.** {rule.clash}", "", "- The number behind it:"]
    lines += [f"  - {e.figure} ({e.source})" for e in rule.evidence]
    lines += [f"- What is done: {rule.repair}", f"- Found {WHEN[rule.when]}; stages: {stages}"]
    if rule.parameters:
        lines.append("- Thresholds: " + ", ".join(f"`{name}` {value:,g}" for name, value in rule.parameters.items()))
    return "\n".join(lines)


def page() -> str:
    """`docs/composability.md`: a table of contents, and a heading per rule."""
    parts = [INTRODUCTION, "## Contents", ""]
    for subject, rules in SUBJECTS.items():
        parts += [f"- **{subject}**", *(f"  - [{rule.name}](#{rule.name}): {rule.title}" for rule in rules)]
    for subject, rules in SUBJECTS.items():
        parts += ["", f"## {subject}"]
        for rule in rules:
            parts += ["", f"### {rule.name}", "", section(rule)]
    return "\n".join(parts) + "\n"
