"""Ways to keep one linear, by name: a scheme, and what calibration may add to it.

"nf4", "nf4/32" (32 weights per step), "nf4+feedback", "nf4/128+feedback+rank8", "int8+balance".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ...core.errors import StackError
from ..schemes import KEEP, Scheme, scheme_named
from .grids import with_group

_NAME = re.compile(r"(?P<scheme>[a-z0-9-]+)(/(?P<group>\d+))?(?P<extras>(\+[a-z]+\d*)*)")


@dataclass(frozen=True)
class RoundingCandidate:
    """One way to keep a linear.

    Attributes:
        name: see above. "+feedback": codes are chosen with error feedback, and the bias takes up what the mean input
            shows of the error; 4 bits only. "+rankR": a branch of rank R in 16 bits. "+balance": channels of inputs
            and weights are balanced first.

    Raises:
        StackError: a name that cannot be read, or parts that do not go together.
    """

    name: str

    def __post_init__(self) -> None:
        extras = {re.sub(r"\d+", "", extra) for extra in self._extras}
        read = _NAME.fullmatch(self.name)
        if not read or extras - {"feedback", "rank", "balance"} or len(extras) != len(self._extras):
            raise StackError(
                f"cannot read the scheme {self.name!r}: expected SCHEME[/GROUP][+feedback][+rankR][+balance], "
                "such as 'nf4/32+feedback+rank8'"
            )
        if self.name == KEEP:
            return
        four_bits = scheme_named(read["scheme"]).weight_bits == 4
        if not four_bits and (self.feedback or read["group"]):
            raise StackError(f"{self.name!r}: error feedback and groups are for 4-bit weights, such as 'nf4'")
        if ("rank" in extras and not self.rank) or (read["group"] and (not self.scheme.group or self.scheme.group % 2)):
            raise StackError(f"{self.name!r}: a rank has to be positive, a group positive and even")

    @property
    def _extras(self) -> list[str]:
        return self.name.split("+")[1:]

    @cached_property
    def scheme(self) -> Scheme:
        """The scheme, with the group asked for."""
        base, _, group = self.name.split("+")[0].partition("/")
        scheme = scheme_named(base)
        return with_group(scheme, int(group)) if group else scheme

    @property
    def keeps(self) -> bool:
        """Whether the linear stays as it is."""
        return self.name == KEEP

    @property
    def plain(self) -> bool:
        """Whether a backend converts it as it does without calibration."""
        return not self._extras and "/" not in self.name

    @property
    def feedback(self) -> bool:
        return "feedback" in self._extras

    @property
    def balance(self) -> bool:
        return "balance" in self._extras

    @property
    def rank(self) -> int:
        return next((int(extra[4:] or 0) for extra in self._extras if extra.startswith("rank")), 0)

    def fits(self, inner: int) -> bool:
        """Whether a linear of `inner` input features divides into its groups: a padded group would cost more."""
        return self.keeps or self.plain or not self.scheme.group or inner % self.scheme.group == 0
