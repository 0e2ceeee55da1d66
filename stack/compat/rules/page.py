"""Rules in words: one for the screen, all of them for `docs/composability.md`."""

from __future__ import annotations

from ...core.rule import WHEN, Rule
from . import SUBJECTS
from .elsewhere import ELSEWHERE

INTRODUCTION = """# What clashes, and what is done about it

Written by `ditstack rules --write docs/composability.md` from the data that the passes decide by
(`stack/compat/rules/`). `explain()`, warnings and errors name their rule, and `ditstack rules NAME` prints it.

A pass that meets a clash repairs it, refuses, or says it: `[repaired]`, `[refused]` and `[note]` in the plan. With
`strict=True` repairs are refused as well. Figures of others are cited as they were published; those of this project
name the page they are on. Nothing here was measured on a GPU.
"""
TABLE_HEAD = "| clash | seen in | why not here |\n|---|---|---|"


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
    """`docs/composability.md`: a table of contents, a heading per rule, and what cannot occur here."""
    parts = [INTRODUCTION, "## Contents", ""]
    for subject, rules in SUBJECTS.items():
        parts += [f"- **{subject}**", *(f"  - [{rule.name}](#{rule.name}): {rule.title}" for rule in rules)]
    for subject, rules in SUBJECTS.items():
        parts += ["", f"## {subject}"]
        for rule in rules:
            parts += ["", f"### {rule.name}", "", section(rule)]
    rows = [f"| {each.clash} | {each.source} | {each.why} |" for each in ELSEWHERE]
    return "\n".join([*parts, "", "## Cannot occur here", "", TABLE_HEAD, *rows]) + "\n"
