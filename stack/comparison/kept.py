"""Pictures of a comparison kept on disk as they are made, so that the same comparison goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..core.files import answers_another, folder_for, whole, write_text
from ..runtime.step import Computed
from .base import Base
from .engine import Engine
from .rows import Generation, Row

SAMPLED = 64  # numbers of a tensor
PARTS, SETTINGS, RECORD = ".ditstack-parts", "settings.json", "compare.json"


def key_of(asked: Mapping[str, Any]) -> str:
    """Which comparison this is: equal for equal questions, also where they hold passes, pictures or tensors."""
    return hashlib.sha256(json.dumps(_content(asked), sort_keys=True).encode()).hexdigest()[:16]


def _content(value: Any) -> Any:
    """What a value is made of, in JSON: of a dataclass all of its arguments, those too that its repr leaves out."""
    from PIL.Image import Image

    if value is None or isinstance(value, (str, int, float)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(_content(vars(value)[f.name]) for f in fields(value) if f.init)]
    if isinstance(value, Mapping):
        return {str(name): _content(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_content(one) for one in value]
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if isinstance(value, Image):
        return f"{value.mode} {value.size} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return repr(value)


def weights_digest(denoiser: nn.Module) -> str:
    """Which weights a model has, adapters beside them included, by a sample of every tensor."""
    digest = hashlib.sha256()
    for name, weight in denoiser.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The record of this very comparison, where it was measured to the end in this folder."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    whole_one = isinstance(record, dict) and record.get("key") == key and record.get("partial") is False
    return record if whole_one else None


def folder_of(out: Path, numbered: bool, key: str, fresh: bool) -> Path:
    """The folder to write to, see `stack.core.files.folder_for`.

    Args:
        numbered: where it holds another comparison, the next free one of that name is taken.
        fresh: write over another comparison in a folder that is not numbered.
    """
    asked = {"key": key}

    def holds(folder: Path) -> str:
        records = folder / RECORD, folder / PARTS / SETTINGS
        other = any(answers_another(path, asked) for path in records)
        return "another comparison (--fresh writes over it)" if other else ""

    if fresh and not numbered:
        return out
    return folder_for(None if numbered else out, out, holds)


@dataclass(frozen=True)
class KeptPictures:
    """The pictures of one comparison in a folder.

    Attributes:
        folder: for this comparison alone.
    """

    folder: Path

    @classmethod
    def at(cls, out: Path, key: str, fresh: bool = False) -> KeptPictures:
        """Those in a comparison's folder. Of another comparison, or where all is to be made anew, there are none."""
        kept = cls(out / PARTS)
        if fresh or kept._settings().get("key") != key:
            shutil.rmtree(kept.folder, ignore_errors=True)
        kept.folder.mkdir(parents=True, exist_ok=True)
        write_text(kept.folder / SETTINGS, json.dumps({**kept._settings(), "key": key}))
        return kept

    def _settings(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / SETTINGS).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def base(self) -> tuple[str, dict[str, float]] | None:
        """Mode and seconds per step of the base that was chosen; None before."""
        found = self._settings()
        return (found["base_mode"], found["step_seconds"]) if "base_mode" in found else None

    def choose(self, base: Base) -> None:
        """Keep which base was chosen, for the rows that are still to come."""
        chosen = {"base_mode": base.mode, "step_seconds": base.step_seconds}
        write_text(self.folder / SETTINGS, json.dumps({**self._settings(), **chosen}))

    def load(self, row: Row, seed: int) -> Generation | None:
        """A picture of a row; None where it was not made, or its file is damaged."""
        try:
            with safe_open(self._path(row, seed), "pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                picture = file.get_tensor("picture")
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        if about.pop("row") != _row_words(row):
            return None
        computed = tuple(Computed(**share) for share in about.pop("computed"))
        about |= {name: tuple(about[name]) for name in ("kinds", "warnings", "sigmas", "errors")}
        return Generation(picture, computed=computed, **about)

    def save(self, row: Row, seed: int, made: Generation) -> None:
        """Keep a picture of a row, with its time and all else that was measured on it."""
        about = {name: value for name, value in vars(made).items() if name not in ("picture", "computed")}
        about |= {"row": _row_words(row), "computed": [asdict(share) for share in made.computed]}
        with whole(self._path(row, seed)) as path:
            save_file({"picture": made.picture.contiguous()}, path, {"about": json.dumps(about)})

    def drop(self) -> None:
        """Delete them: the comparison is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, row: Row, seed: int) -> Path:
        short = hashlib.sha256(row.name.encode()).hexdigest()[:8]  # names may differ in what no file's name can hold
        return self.folder / f"{re.sub('[^A-Za-z0-9]+', '-', row.name)[:60]}-{short}-{seed}.safetensors"


def _row_words(row: Row) -> list[Any]:
    """What a row runs."""
    return [row.name, list(row.passes), row.steps]


class KeptEngine:
    """An engine whose pictures are kept, and which makes those anew that are not there.

    Args:
        engine: what makes pictures.
        seeds: of all prompts: a row that has them all needs no warm-up.
    """

    def __init__(self, engine: Engine, kept: KeptPictures, seeds: Sequence[int]):
        self._engine, self._kept, self._seeds = engine, kept, seeds

    @property
    def multistep(self) -> bool:
        return self._engine.multistep

    @property
    def pace(self) -> float:
        return self._engine.pace

    def warm_up(self, row: Row, prompt: str) -> None:
        if any(self._kept.load(row, seed) is None for seed in self._seeds):
            self._engine.warm_up(row, prompt)

    def generate(self, row: Row, prompt: str, seed: int) -> Generation:
        made = self._kept.load(row, seed)
        if made is None:
            made = self._engine.generate(row, prompt, seed)
            self._kept.save(row, seed, made)
        return made
