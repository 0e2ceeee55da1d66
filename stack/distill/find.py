"""Where cards and weights are: shipped, the user's own, on this machine or on the hub."""

from __future__ import annotations

import hashlib
import os
import shutil
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from ..core.errors import StackError
from ..core.files import whole
from ..core.validate import checked, shown
from .card import Card, Weights
from .parse import read_card


def shipped_folder() -> Path:
    """Where the shipped cards are."""
    return Path(str(resources.files("stack.adapters")))


def list_adapters() -> list[Card]:
    """The shipped cards of few-step adapters, by name."""
    return cards_in(shipped_folder())


def is_shipped(adapter: str) -> bool:
    """Whether this is the name of a shipped card."""
    return Path(adapter).name == adapter and os.path.isfile(shipped_folder() / f"{adapter}.toml")


def cards_in(folder: Path) -> list[Card]:
    """Every card of a folder, by name.

    Raises:
        StackError: no folder, or a card that is none.
    """
    if not os.path.isdir(folder):
        raise StackError(f"no folder of adapter cards at {shown(str(folder))}")
    return [read_card(path) for path in sorted(folder.glob("*.toml"))]


def find_card(adapter: str) -> Card:
    """The card of a shipped adapter's name, a `.toml`, a `.safetensors`, or a folder that holds one of either.

    Weights without a card have no schedule: what the pipeline does stays as it is.

    Raises:
        StackError: nothing by this name, or a folder that holds several.
    """
    path = Path(checked(str, adapter, "adapter"))
    if adapter and is_shipped(adapter):
        return read_card(shipped_folder() / f"{adapter}.toml")
    # os.path, because a Path raises for names that no file can have.
    if adapter and os.path.isdir(path):
        path = _only_one(path)
    if path.suffix == ".toml" and os.path.isfile(path):
        return read_card(path)
    if path.suffix == ".safetensors":
        if not os.path.isfile(path):
            raise StackError(f"no adapter weights at {path}: expected a .safetensors file")
        return Card(path.stem, weights=Weights({"transformer": path.name}), folder=path.parent)
    like = get_close_matches(path.name, [card.stem for card in shipped_folder().glob("*.toml")], 1)
    hint = f"; did you mean {like[0]!r}?" if like else ""
    raise StackError(
        f"unknown adapter {shown(adapter)}: expected a .toml card, a .safetensors file, a folder that holds one, "
        f"or a shipped card ('ditstack adapters' lists them){hint}"
    )


def _only_one(folder: Path) -> Path:
    for pattern in ("*.toml", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise StackError(f"{len(found)} {pattern[1:]} files in {folder}: expected one; name the file itself")
    raise StackError(f"no adapter in {folder}: expected one .toml card or one .safetensors file, found 0")


def carry(adapter: str, folder: Path) -> str:
    """Copy a card and its files, or a file of weights, into a folder; returns the name that finds it there.

    What ships, or is fetched from the hub, is left where it is.
    """
    if is_shipped(adapter):
        return adapter
    path = _only_one(Path(adapter)) if os.path.isdir(adapter) else Path(adapter)
    card = find_card(str(path))
    here = {name: path.parent / name for name in (path.name, *(card.weights.files.values() if card.weights else ()))}
    for name, source in here.items():
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with whole(folder / name) as made:
                shutil.copyfile(source, made)
    return path.name


def on_this_machine(card: Card) -> dict[str, Path] | None:
    """The card's files by component, beside the card or in the hub's cache; None where one has to be fetched."""
    found: dict[str, Path] = {}
    assert card.weights is not None
    for component, name in card.weights.files.items():
        beside = (card.folder or Path()) / name
        cached = try_to_load_from_cache(card.weights.repo, name) if card.weights.repo else None
        if beside.is_file():
            found[component] = beside
        elif isinstance(cached, str):
            found[component] = Path(cached)
        else:
            return None
    return found


def fetched(card: Card) -> dict[str, Path]:
    """The card's files by component, downloaded if they have to be.

    Raises:
        StackError: not beside the card, and not to be had from the hub.
    """
    here = on_this_machine(card)
    if here is not None:
        return here
    assert card.weights is not None
    repo, files = card.weights.repo, card.weights.files
    if not repo:
        raise StackError(f"card {card.name}: no {' nor '.join(files.values())} beside the card in {card.folder}")
    try:
        return {component: Path(hf_hub_download(repo, name)) for component, name in files.items()}
    except Exception as error:  # the hub's client raises a dozen kinds, from a missing file to a missing network
        what = f"{', '.join(files.values())} of {repo}"
        hint = "put the files beside a copy of the card"
        raise StackError(f"card {card.name}: cannot fetch {what} ({type(error).__name__}); {hint}") from None


def content(files: dict[str, Path]) -> str:
    """The first 12 digits of the SHA-256 of the files, in the order of their components."""
    digest = hashlib.sha256()
    for component in sorted(files):
        with files[component].open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
