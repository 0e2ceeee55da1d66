"""Colours of the report on light and on dark paper, as CSS variables."""

from __future__ import annotations

from ...measure.style import GROUPS, INK, LINE, PAPER, STEPS

LIGHT = {
    "paper": PAPER,
    "panel": "#f4f6f8",
    "ink": INK,
    "faint": "#5b6370",
    "line": LINE,
    "warning": "#8a5300",
    "accent": "#1f5fa8",
    **{group.replace(" ", "-"): colour for group, (_, colour) in GROUPS.items()},
    **STEPS,
}
DARK = {
    "paper": "#14171b",
    "panel": "#1e2329",
    "ink": "#e6e9ed",
    "faint": "#a3acb8",
    "line": "#3a424c",
    "warning": "#f0b45a",
    "accent": "#7fb2ee",
    "base": "#e6e9ed",
    "alone": "#6ea8ea",
    "left-out": "#5480b4",
    "all": "#ff7486",
    "peer": "#4fc4a0",
    "control": "#e7a33a",
    "full": "#6ea8ea",
    "cached": "#2a3644",
    "partial": "#5480b4",
}
# Of the parts of a stacked bar: neighbours differ in lightness, so that they are told apart without colour vision.
SHARES = (("#1f5fa8", "#7fb2ee"), ("#8fb7e4", "#33567f"), ("#8c4a00", "#f0b45a"), ("#e0b070", "#7a5a2a"))
LIGHT |= {f"share-{n}": light for n, (light, _) in enumerate(SHARES)}
DARK |= {f"share-{n}": dark for n, (_, dark) in enumerate(SHARES)}


def contrast(one: str, other: str) -> float:
    """Contrast of two colours "#rrggbb", 1 to 21: the ratio of relative luminances of WCAG 2.2."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
