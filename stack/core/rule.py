"""What a rule is: one known clash, the number behind it, and what is done about it. Data; passes do the checking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WHEN = {
    "plan": "before anything is changed",
    "apply": "while the passes are applied",
    "run": "during a request",
}


@dataclass(frozen=True)
class Evidence:
    """A measured or computed figure.

    Attributes:
        figure: what was measured, with its numbers.
        source: the paper, issue or pull request it is in, or the page of this project's docs.
    """

    figure: str
    source: str


@dataclass(frozen=True)
class Rule:
    """A clash between passes, or of a pass with a model, a schedule or a call.

    Attributes:
        name: a slug: what `explain()` and warnings show, and a heading of `docs/composability.md`.
        title: the clash in a few words.
        clash: what goes wrong, and why.
        evidence: the numbers behind it, the decisive one first.
        repair: what this project does about it.
        when: a key of `WHEN`.
        stages: of the passes involved.
        parameters: thresholds by name; the code that decides reads the same constants.
    """

    name: str
    title: str
    clash: str
    evidence: tuple[Evidence, ...]
    repair: str
    when: str
    stages: tuple[str, ...]
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """The decisive number, for findings."""
        return self.evidence[0].figure

    def annotate(self, text: str) -> str:
        """A warning or report entry that says which rule it is of."""
        return f"{text} ({self.why}; {self.tag})"

    @property
    def tag(self) -> str:
        """What the reader can look up: `ditstack rules NAME`."""
        return f"rule {self.name}"
