"""Damaged saved stacks and LoRA files: each is taken, or refused with one line and the model as it was, bit for bit.

python -m tests.fuzz.saved --count 1000 --seed 0
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stack.stack import Stack
from tests.conftest import inputs, tiny_denoiser, tiny_pipe
from tests.lora import save_lora

from .mutate import mutant
from .tally import Tally, main

FILE, RECIPE = "quantized.safetensors", "recipe.toml"
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 7, 2.5, 10**9, 10**30, "", "int8", "nf4", "F64", "I8", "U8", "BF16", "X", [], [0, 8], [1, 2, 3],
    [-1, 5], {}, {"a": 1}, "NaN", "1e400",
)  # fmt: skip


def fuzz(count: int, seed: int) -> Tally:
    """So many damaged things, half of them saved stacks, half LoRA files."""
    rng, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        saved, loras = _stacks(root), _loras(root)
        plain = tiny_pipe()
        for number in range(count):
            pipe = copy.deepcopy(plain)
            if number % 2:
                path = rng.choice(loras)
                _lora(tally, f"case {number}: {path.name}", path, root / "bad.safetensors", pipe, rng)
            else:
                source = rng.choice(saved)
                _folder(tally, f"case {number}: {source.name}", source, root / "bad", saved, pipe, rng)
    return tally


def _stacks(root: Path) -> list[Path]:
    """Saved stacks of several schemes; the last one is of another model."""
    made = []
    for scheme in ("int8", "int8-weight", "int4-weight", "nf4", "fp8-weight"):
        with Stack(tiny_pipe(), steps=6).quantize(scheme, min_features=64).cache("svd", interval=3) as stack:
            stack.save(root / scheme)
            made.append(root / scheme)
    with Stack(tiny_denoiser(double=2)).quantize("int8") as stack:
        stack.save(root / "other")
    return [*made, root / "other"]


def _loras(root: Path) -> list[Path]:
    save_lora(tiny_denoiser(), root, name="plain")
    save_lora(tiny_denoiser(), root, name="alpha", alpha=8.0)
    save_lora(tiny_denoiser(), root, name="bare", prefix="")
    return [root / f"{name}.safetensors" for name in ("plain", "alpha", "bare")]


def _folder(tally: Tally, case: str, source: Path, bad: Path, saved: list[Path], pipe: Any, rng: random.Random) -> None:
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(source, bad)
    damage = rng.choice((_weights, _weights, _weights, _recipe, _files))
    case += f", {damage(bad, rng, saved)}"
    if rng.random() < 0.7 and (bad / RECIPE).is_file():  # without the digest, every check behind it has its turn
        lines = (bad / RECIPE).read_bytes().splitlines()
        (bad / RECIPE).write_bytes(b"\n".join(line for line in lines if not line.startswith(b"weights = ")))
    before, scheduler = bits(pipe.transformer), pipe.scheduler
    if not tally.take(case, lambda: Stack.load(bad, pipe)) and not (
        same(before, bits(pipe.transformer)) and pipe.scheduler is scheduler
    ):
        tally.changed.append(case)


def _lora(tally: Tally, case: str, source: Path, bad: Path, pipe: Any, rng: random.Random) -> None:
    shutil.copy(source, bad)
    case += f", {_tensors(bad, rng)}"
    before, scheduler = bits(pipe.transformer), pipe.scheduler
    switchable = rng.random() < 0.5
    stack = Stack(pipe if rng.random() < 0.7 else pipe.transformer, steps=6)
    tally.take(case, lambda: stack.distill(str(bad), switchable=switchable).apply())
    stack.undo()
    if not same(before, bits(pipe.transformer)) or pipe.scheduler is not scheduler:
        tally.changed.append(case)


def bits(denoiser: torch.nn.Module) -> dict[str, Any]:
    """Everything of a denoiser that a file could change: modules, weights, and what it computes."""
    modules = {f"{path} module": module for path, module in denoiser.named_modules()}
    weights = {name: tensor.clone() for name, tensor in [*denoiser.named_parameters(), *denoiser.named_buffers()]}
    with torch.no_grad():
        return {**modules, **weights, "output": denoiser(**inputs(side=2), return_dict=False)[0]}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two states are one, bit for bit."""
    return before.keys() == after.keys() and all(
        torch.equal(one, after[name]) if isinstance(one, torch.Tensor) else one is after[name]
        for name, one in before.items()
    )


def _weights(bad: Path, rng: random.Random, saved: list[Path]) -> str:
    return _tensors(bad / FILE, rng)


def _recipe(bad: Path, rng: random.Random, saved: list[Path]) -> str:
    path = bad / rng.choice((RECIPE, RECIPE, "scheduler/scheduler_config.json"))
    if not path.is_file():
        path = bad / RECIPE
    if path.name == RECIPE:
        path.write_bytes(mutant(path.read_text(), rng))
    else:
        config = json.loads(path.read_text())
        config[rng.choice(list(config))] = rng.choice(ODD)
        text = json.dumps(config)
        path.write_text(text if rng.random() < 0.7 else text[: rng.randrange(len(text))])
    return f"{path.name} mutated"


def _files(bad: Path, rng: random.Random, saved: list[Path]) -> str:
    """Files exchanged, missing, or something else than files."""
    name, way = rng.choice((FILE, RECIPE, "scheduler/scheduler_config.json")), rng.randrange(5)
    path = bad / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    other = rng.choice(saved) / name
    if way == 1 and other.is_file():
        shutil.copy(other, path)
    elif way == 2:
        path.mkdir()
    elif way == 3:
        path.symlink_to(other)
    elif way == 4:
        path.write_bytes(b"")
    return f"{name} {('missing', 'of another', 'a folder', 'a link', 'empty')[way]}"


def _tensors(path: Path, rng: random.Random) -> str:
    """Damage a safetensors file: its bytes, its header, or its tensors."""
    data = path.read_bytes()
    ways: tuple[Callable[[], str], ...] = (
        lambda: _cut(path, data, rng),
        lambda: _flip(path, data, rng),
        lambda: _header(path, data, rng),
        lambda: _header(path, data, rng),
        lambda: _other_tensors(path, rng),
        lambda: _other_tensors(path, rng),
    )
    return rng.choice(ways)()


def _cut(path: Path, data: bytes, rng: random.Random) -> str:
    at = rng.choice((0, 4, 8, rng.randrange(len(data)), len(data) - 1))
    path.write_bytes(data[:at] if rng.random() < 0.8 else data + b"more")
    return f"cut at {at}"


def _flip(path: Path, data: bytes, rng: random.Random) -> str:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8))):
        changed[rng.choice((rng.randrange(len(data)), rng.randrange(min(600, len(data)))))] = rng.randrange(256)
    path.write_bytes(changed)
    return "bytes changed"


def _header(path: Path, data: bytes, rng: random.Random) -> str:
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    key = rng.choice(list(header))
    entry = header[key]
    if key == "__metadata__" or rng.random() < 0.4:
        told = _metadata(header, rng)
    else:
        part = rng.choice(("dtype", "shape", "data_offsets"))
        value = rng.choice(ODD)
        entry[part] = value
        told = f"{key}.{part} = {value!r}"
        if rng.random() < 0.2:
            header[key + "x"] = header.pop(key)
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**40, 2**63))
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + size :])
    return told


def _metadata(header: dict[str, Any], rng: random.Random) -> str:
    """Change what a header says of linears, or of alpha."""
    about = header.setdefault("__metadata__", {})
    if "linears" not in about or rng.random() < 0.2:
        alpha = json.dumps({"transformer.lora_alpha": rng.choice(ODD)})
        value = rng.choice((*ODD, alpha, alpha, '{"use_rslora": true}', "[["))
        about[rng.choice(("lora_adapter_metadata", "linears"))] = value if rng.random() < 0.3 else str(value)
        return f"metadata {value!r}"
    linears = json.loads(about["linears"])
    path = rng.choice(list(linears))
    key, value = rng.choice((*linears[path], "x")), rng.choice(ODD)
    if rng.random() < 0.2:
        linears[path + "x"] = linears.pop(path)
    elif rng.random() < 0.2:
        linears[path] = value
    else:
        linears[path][key] = value
    about["linears"] = json.dumps(linears)
    return f"linears {path}.{key} = {value!r}"


def _other_tensors(path: Path, rng: random.Random) -> str:
    """Write the file again with one tensor changed, missing, or too much."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dict: not iterable
    key = rng.choice(list(tensors))
    tensor = tensors[key]
    way = rng.randrange(10)
    if way == 0:
        del tensors[key]
    elif way == 1:
        tensors[key + rng.choice(("x", ".alpha", ".dora_scale"))] = tensors.pop(key)
    elif way == 2:
        tensors[rng.choice(("x", "a.lora_A.weight", "lora_unet_x.lora_down.weight"))] = tensor.clone()
    elif way == 3:
        tensors[key] = tensor.float().reshape(-1)[:0].contiguous()
    elif way == 4:
        tensors[key] = torch.zeros_like(tensor)
    elif way == 5:
        tensors[key] = tensor.to(rng.choice((torch.int64, torch.float64, torch.bool, torch.uint8)))
    elif way == 6:
        tensors[key] = tensor[None].contiguous()
    elif way == 7:
        tensors[key] = torch.full_like(tensor.float(), rng.choice((1e30, -1e30, 3e38, 1e6, -1.0)))
    else:
        odd = tensor.float().flatten()
        odd[rng.randrange(max(1, odd.numel()))] = rng.choice((float("nan"), float("inf")))
        tensors[key] = odd.view(tensor.shape).to(tensor.dtype if tensor.is_floating_point() else torch.float32)
    save_file(tensors, path, metadata=about)
    return f"{key}, way {way}"


if __name__ == "__main__":
    sys.exit(main(fuzz, 1000))
