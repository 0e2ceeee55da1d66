"""A card's TOML table, checked entry by entry."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import StackError, choose
from .card import Card, Guidance, SchedulerChoice, Weights, tag
from .schedules import KINDS, AdapterSchedule

_NUMBER = (int, float)
TOP: dict[str, Any] = {
    "name": str, "description": str, "base": list, "family": str, "model": str, "pipeline": str, "steps": int,
    "fewest": int, "most": int, "switch": int, "verified": bool, "weights": dict, "schedule": dict, "second": dict,
    "scheduler": dict, "guidance": dict, "call": dict, "licence": dict, "sources": dict,
}  # fmt: skip
WEIGHTS: dict[str, Any] = {"repo": str, "files": dict, "scale": _NUMBER, "alpha": _NUMBER}
SCHEDULE: dict[str, Any] = {"kind": str, "shift": _NUMBER, "sigmas": list, "timesteps": list}
SCHEDULER: dict[str, Any] = {"class": str, "sampler": str, "from_base": bool, "overrides": dict}
GUIDANCE: dict[str, Any] = {"kind": str, "value": _NUMBER, "most": _NUMBER, "argument": str}
LICENCE: dict[str, Any] = {"weights": str, "base": str}
FLOW_EULER = SchedulerChoice("FlowMatchEulerDiscreteScheduler", "euler")


def read_card(path: Path) -> Card:
    """The card in a file.

    Raises:
        StackError: not TOML, an unknown or missing entry, or a value of another kind.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StackError(f"card {path.name} is not valid TOML: {error}") from None
    return parse_card(data, path.stem, path.parent)


def parse_card(data: Mapping[str, Any], name: str, folder: Path | None = None) -> Card:
    """A card from its table; the file's name is its own unless the table gives another.

    Raises:
        StackError: an unknown or missing entry, or a value of another kind or outside its range.
    """
    try:
        return _card(data, name, folder)
    except StackError as error:
        raise StackError(str(error) if f"card {name}" in str(error) else f"card {name}: {error}") from None


def _card(data: Mapping[str, Any], name: str, folder: Path | None) -> Card:
    top = _checked(data, TOP, "the card")
    if ("weights" in top) == ("model" in top):
        raise StackError("expected either [weights] of a LoRA or model, the hub id of a whole checkpoint")
    if "steps" not in top:
        raise StackError("expected steps, the number the adapter was made for")
    schedule = _schedule(top.pop("schedule", {}), "[schedule]")
    second = dict(top.pop("second", {}))
    second_call = second.pop("call", {})
    licence = _checked(top.pop("licence", {}), LICENCE, "[licence]")
    sources = top.pop("sources", {})
    for source in sources.values():
        tag(str(source))
    return Card(
        name=top.pop("name", name),
        base=tuple(top.pop("base", [])),
        weights=_weights(top.pop("weights")) if "weights" in top else None,
        schedule=schedule,
        second=_schedule(second, "[second]") if second else None,
        second_call=second_call,
        scheduler=_scheduler(top.pop("scheduler", None), schedule),
        guidance=Guidance(**_checked(top.pop("guidance", {}), GUIDANCE, "[guidance]")),
        licence=licence.get("weights", ""),
        base_licence=licence.get("base", ""),
        sources=sources,
        folder=folder,
        **top,
    )


def _weights(table: Mapping[str, Any]) -> Weights:
    found = _checked(table, WEIGHTS, "[weights]")
    if not found.get("files") or not all(isinstance(file, str) for file in found["files"].values()):
        raise StackError('expected [weights.files] with a file per component, such as transformer = "x.safetensors"')
    return Weights(**found)


def _schedule(table: Mapping[str, Any], where: str) -> AdapterSchedule:
    found = _checked(table, SCHEDULE, where)
    kind = found.pop("kind", "scheduler")
    if kind not in KINDS:
        raise choose("kind of schedule", kind, list(KINDS))
    if set(found) != set(KINDS[kind]):
        wanted = " and ".join(KINDS[kind]) or "no other entry"
        raise StackError(f"{where} of kind {kind!r} expects {wanted}, got {', '.join(found) or 'none'}")
    values = found.get("sigmas", found.get("timesteps", []))
    if not all(isinstance(v, _NUMBER) for v in values):
        raise StackError(f"{where} expects a list of numbers, got {values}")
    return AdapterSchedule(kind, tuple(float(v) for v in values), float(found.get("shift", 1.0)))


def _scheduler(table: Mapping[str, Any] | None, schedule: AdapterSchedule) -> SchedulerChoice:
    """A card with noise levels of its own is a flow's, walked by Euler unless it says otherwise."""
    if table is None:
        return SchedulerChoice() if schedule.kind == "scheduler" else FLOW_EULER
    found = _checked(table, SCHEDULER, "[scheduler]")
    return SchedulerChoice(name=found.pop("class", ""), **found)


def _checked(table: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name, value in table.items():
        if name not in known:
            raise choose(f"entry of {where}", name, list(known))
        # TOML's true is no number, though Python's is.
        if not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] is not bool):
            kinds = known[name] if isinstance(known[name], tuple) else (known[name],)
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise StackError(f"entry {name!r} of {where} must be {wanted}, got {value!r}")
    return dict(table)
