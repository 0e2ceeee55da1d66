"""A card's TOML table, checked entry by entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import StackError, choose
from ..core.files import inside, read_toml
from ..core.validate import Setting, check_table, hints_of, shown
from .card import Card, Guidance, SchedulerChoice, Weights, tag
from .schedules import KINDS, AdapterSchedule

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
Table = Mapping[str, Any]
Settings = Mapping[str, Setting | tuple[Setting, ...]]
TOP: dict[str, Any] = {
    **{name: hint for name, hint in hints_of(Card).items() if name not in ("base_licence", "second_call", "folder")},
    "weights": Table, "schedule": Table, "second": Table, "scheduler": Table, "guidance": Table, "licence": Table,
    "call": Settings, "config": Settings,
}  # fmt: skip
SCHEDULE: dict[str, Any] = {
    "kind": str, "shift": float, "sigmas": tuple[float, ...], "timesteps": tuple[float, ...], "call": Settings,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {"class": str, "sampler": str, "from_base": bool, "overrides": Settings}
LICENCE: dict[str, Any] = {"weights": str, "base": str}
FLOW_EULER = SchedulerChoice("FlowMatchEulerDiscreteScheduler", "euler")


def read_card(path: Path) -> Card:
    """The card in a file.

    Raises:
        StackError: not TOML, an unknown or missing entry, or a value of another kind.
    """
    return parse_card(read_toml(path, f"card {path.name}"), path.stem, path.parent)


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
    top = check_table(TOP, data, "", "the card")
    if ("weights" in top) == ("model" in top):
        raise StackError("expected either [weights] of a LoRA or model, the hub id of a whole checkpoint")
    if "steps" not in top:
        raise StackError("expected steps, the number the adapter was made for")
    schedule = _schedule(top.pop("schedule", {}), "schedule")
    second = dict(top.pop("second", {}))
    second_call = check_table(SCHEDULE, {"call": second.pop("call", {})}, "second.")["call"]
    licence = check_table(LICENCE, top.pop("licence", {}), "licence.")
    sources = top.pop("sources", {})
    for source in sources.values():
        tag(source)
    return Card(
        name=top.pop("name", name),
        base=top.pop("base", ()),
        weights=_weights(top.pop("weights")) if "weights" in top else None,
        schedule=schedule,
        second=_schedule(second, "second") if second else None,
        second_call=second_call,
        scheduler=_scheduler(top.pop("scheduler", None), schedule),
        guidance=Guidance(**check_table(Guidance, top.pop("guidance", {}), "guidance.")),
        licence=licence.get("weights", ""),
        base_licence=licence.get("base", ""),
        sources=sources,
        folder=folder,
        **top,
    )


def _weights(table: Mapping[str, Any]) -> Weights:
    found = check_table(Weights, table, "weights.")
    if not found.get("files"):
        raise StackError('expected [weights.files] with a file per component, such as transformer = "x.safetensors"')
    for component, file in found["files"].items():
        inside(Path(), file, f"weights.files.{component}")
    if found.get("repo") and not _REPO.fullmatch(found["repo"]):
        raise StackError(f"weights.repo: expected a hub id OWNER/NAME, got {shown(found['repo'])}")
    return Weights(**found)


def _schedule(table: Mapping[str, Any], where: str) -> AdapterSchedule:
    found = check_table(SCHEDULE, table, f"{where}.")
    kind = found.pop("kind", "scheduler")
    if kind not in KINDS:
        raise choose("kind of schedule", kind, list(KINDS))
    if set(found) != set(KINDS[kind]):
        wanted = " and ".join(KINDS[kind]) or "no other entry"
        raise StackError(f"{where} of kind {kind!r} expects {wanted}, got {', '.join(found) or 'none'}")
    values = found.get("sigmas", found.get("timesteps", ()))
    return AdapterSchedule(kind, values, found.get("shift", 1.0))


def _scheduler(table: Mapping[str, Any] | None, schedule: AdapterSchedule) -> SchedulerChoice:
    """A card with noise levels of its own is a flow's, walked by Euler unless it says otherwise."""
    if table is None:
        return SchedulerChoice() if schedule.kind == "scheduler" else FLOW_EULER
    found = check_table(SCHEDULER, table, "scheduler.")
    return SchedulerChoice(name=found.pop("class", ""), **found)
