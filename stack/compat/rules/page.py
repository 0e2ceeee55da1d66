"""Rules in words: one for the screen, all of them for `docs/composability.md`."""

from __future__ import annotations

from ...core.rule import WHEN, Rule
from . import SUBJECTS

INTRODUCTION = """# What clashes, and what is done about it

Written by `ditstack rules --write docs/composability.md` from the data that the passes decide by
(`stack/compat/rules/`). `explain()`, warnings and errors name their rule, and `ditstack rules NAME` prints it.

A pass that meets a clash repairs it, refuses, or says it: `[repaired]`, `[refused]` and `[note]` in the plan. With
`strict=True` repairs are refused as well. Figures of others are cited as they were published; those of this project
name the page they are on. Nothing here was measured on a GPU. Clashes of other projects that cannot occur here are on
[a page of their own](not-here.md), with the reason.
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
