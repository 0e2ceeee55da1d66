"""The smoke part: does every pass compute on this device what it computes on a CPU, and leave nothing behind."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from stack import Stack
from stack.loading import load
from stack.runtime.report import Report

from .cases import DRY, PROMPT, Case, cases
from .journal import Line
from .references import References, tiles_of_cuda
from .runner import Row, told
from .setting import Setting
from .timing import timed

STEPS, SIZE = 20, 64
# Below 12 steps caches skip parts of steps instead of whole ones.
TINY_STEPS, TINY_SIZE = 12, 32
COMPILING, SHORT = 40.0, 5.0  # seconds that a row wants
BASES = {"float32": "base", "bfloat16": "base bf16"}


class Models:
    """The trained model in both precisions, and the picture each makes without a stack."""

    def __init__(self, setting: Setting):
        self._setting = setting
        self._known: dict[str, tuple[Any, torch.Tensor]] = {}

    def __call__(self, dtype: str) -> tuple[Any, torch.Tensor]:
        """Pipeline and latent (1, N, C)."""
        if dtype not in self._known:
            pipe = load("shapes-flux", getattr(torch, dtype), str(self._setting.device))
            self._known[dtype] = pipe, latent(pipe, self._setting, steps=of(self._setting)["steps"])
        return self._known[dtype]

    def drop(self) -> None:
        """Load them anew for the next row: an error may have left something behind."""
        self._known.clear()


def of(setting: Setting) -> dict[str, int]:
    """Steps, and size in pixels."""
    return {"steps": setting.either(STEPS, TINY_STEPS), "size": setting.either(SIZE, TINY_SIZE)}


def latent(run: Callable[..., Any], setting: Setting, steps: int | None = None) -> torch.Tensor:
    """The latent (1, N, C) that a pipeline or a stack makes of the prompt. Noise is drawn on the host."""
    size, counted = of(setting)["size"], {} if steps is None else {"num_inference_steps": steps}
    generator = torch.Generator().manual_seed(0)
    return run(PROMPT, height=size, width=size, generator=generator, output_type="latent", **counted)[0]


def stack_of(case: Case, pipe: Any, setting: Setting) -> Stack:
    """The case's stack, not applied."""
    stack = case.build(Stack(pipe, steps=of(setting)["steps"]))
    # "off": the plan would compile rounded activations by itself on a GPU.
    return stack.compile("default" if case.compiled and setting.compiled else "off")


def smoke_rows(setting: Setting) -> Iterator[Row]:
    """A row per case."""
    models, references = Models(setting), References.load(setting.references, of(setting))
    for case in cases():
        if setting.brief and case.name not in DRY:
            continue
        wanted = COMPILING if case.compiled else SHORT
        yield Row("smoke", case.name, wanted, partial(measure, case, models, references, setting), case.needs_gpu)


def measure(case: Case, models: Models, references: References, setting: Setting) -> Line:
    """PSNR, reads that block the host, repeatability, and whether the model is as before."""
    try:
        pipe, bare = models(case.dtype)
        stack = stack_of(case, pipe, setting)
        with stack:
            started = time.perf_counter()
            first = latent(stack, setting).cpu()
            first_seconds = time.perf_counter() - started
            second = timed(lambda: with_reads_counted(lambda: latent(stack, setting), setting), setting.device)
            report = stack.report()
        again, reads = second.result
        undone = torch.equal(latent(pipe, setting, of(setting)["steps"]), bare)
    except BaseException:
        models.drop()
        raise
    return {
        "dtype": case.dtype,
        **references.compare(case.reference or case.name, BASES[case.dtype], first),
        "finite": bool(first.isfinite().all()),
        "repeats": torch.equal(first, again.cpu()),
        "undone": undone,
        "reads": reads,
        "full": report.full_steps,
        "kinds": kinds(report),
        "seconds": second.seconds,
        "first_seconds": first_seconds,
        "warnings": report.warnings,
    }


def kinds(report: Report) -> str:
    """What each step was: F full, c cached, p partial."""
    return "".join({"full": "F", "cached": "c", "partial": "p"}[record.kind] for record in report.steps)


def with_reads_counted(work: Callable[[], torch.Tensor], setting: Setting) -> tuple[torch.Tensor, int | None]:
    """The result, and how often the host waited for the device while it was made; None on a CPU.

    CUDA's debug mode is of the whole process, and is put back.
    """
    if not setting.on_gpu:
        return work(), None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return result, sum("synchronizing CUDA operation" in str(each.message) for each in caught)


def make_references(setting: Setting) -> int:
    """Compute on this CPU what a GPU will be compared with, and write it; returns the bytes of the file.

    A case that cannot be computed here is named with its reason and left out.
    """
    models, made = Models(setting), References(of(setting))
    with tiles_of_cuda():
        for case in cases():
            if case.needs_gpu:
                continue
            try:
                pipe, _ = models(case.dtype)
                with case.build(Stack(pipe, steps=of(setting)["steps"])) as stack:
                    made.latents[case.name] = latent(stack, setting)
            except Exception as error:
                models.drop()
                print(f"no reference of {case.name}: {told(error)['error']}", flush=True)
            else:
                print(f"computed: {case.name}", flush=True)
    return made.save(setting.references)
