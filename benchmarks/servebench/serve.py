"""Serves phases of jobs from one stack, and holds every answer against a fresh stack's."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from .mix import ABORTS, DEEP, RAISES, TURNED, WHOLE, Job, Phase, Request
from .world import World, scale


class Broken(RuntimeError):
    """What a callback raises here."""


ERRORS = {RAISES: Broken, ABORTS: KeyboardInterrupt, DEEP: torch.OutOfMemoryError}


@dataclass
class Findings:
    """What was seen.

    Attributes:
        served: jobs by phase and kind.
        wrong: answers that differ from a fresh stack's, and what else should not be, in words.
        state: bytes of cache state behind whole requests, by request, adapter and weights.
        memory: (jobs served so far, resident bytes) behind every phase.
        drops: states dropped because weights changed in the middle of a request.
    """

    served: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    state: dict[tuple[Any, ...], set[int]] = field(default_factory=dict)
    memory: list[tuple[int, int]] = field(default_factory=list)
    drops: int = 0


class Server:
    """One world under test; every distinct request is drawn once by a world of its own."""

    def __init__(self, world: World):
        self.world, self.found = world, Findings()
        self._adapter = ""
        self._scaled = False
        self._fresh: dict[tuple[Request, str, bool], torch.Tensor] = {}
        self._lock = threading.Lock()

    def prepare(self, phases: Sequence[Phase]) -> None:
        """Draw every whole request of these phases afresh."""
        for phase in phases:
            self._adapter, self._scaled = phase.adapter, phase.scaled
            for job in phase.jobs:
                if job.kind not in ERRORS:
                    self._expected(job.request)
        self._adapter = ""

    def serve(self, phase: Phase) -> None:
        """All jobs of a phase, and what they left behind."""
        if phase.adapter != self._adapter:
            self.world.stack.swap_adapter(adapter_path(self.world, phase.adapter))
            self._adapter = phase.adapter
        self._scaled = phase.scaled
        if phase.scaled:
            scale(self.world.weight, 2.0)
        try:
            self._run(phase)
        finally:
            if phase.scaled:
                scale(self.world.weight, 0.5)
        gc.collect()
        self.found.memory.append((sum(self.found.served.values()), psutil.Process().memory_info().rss))

    def _run(self, phase: Phase) -> None:
        if phase.how == "threads":
            with ThreadPoolExecutor(phase.workers) as workers:
                list(workers.map(lambda job: self._one(job, phase.how), phase.jobs))
        elif phase.how == "asyncio":
            asyncio.run(self._interleaved(phase))
        else:
            for job in phase.jobs:
                before = self._figures().get("dropped", 0)
                self._one(job, phase.how)
                self._look(job, self._figures(), before)

    async def _interleaved(self, phase: Phase) -> None:
        limit = asyncio.Semaphore(phase.workers)

        async def one(job: Job) -> None:
            async with limit:
                await asyncio.to_thread(self._one, job, phase.how)

        await asyncio.gather(*(one(job) for job in phase.jobs))

    def _one(self, job: Job, how: str) -> None:
        """A job: its answer is the one of a fresh stack, or its error the one that was asked for."""
        got = error = None
        try:
            got = self._attempt(job)
        except (Broken, KeyboardInterrupt, torch.OutOfMemoryError) as raised:
            error = type(raised)
        expected = ERRORS.get(job.kind)
        right = error is expected and (got is None or torch.equal(got, self._expected(job.request)))
        with self._lock:
            self.found.served[how, job.kind] += 1
            if not right:
                ended = "another answer" if error is expected else f"{error} for {expected}"
                self.found.wrong.append(f"{how}, {job}: {ended}")

    def _attempt(self, job: Job) -> torch.Tensor:
        if job.kind == DEEP:
            with out_of_memory(self.world.pipe, job.after):
                return self.world.draw(job.request)

        def broken(step: int) -> None:
            if job.kind in ERRORS and step == job.after:
                raise ERRORS[job.kind]

        return self.world.draw(job.request, broken)

    def _expected(self, request: Request) -> torch.Tensor:
        key = (request, self._adapter, self._scaled)
        with self._lock:
            if key not in self._fresh:
                other = self.world.another()
                other.stack = other.build(other.pipe, self._adapter)
                if self._scaled:
                    other.stack.apply()
                    scale(other.weight, 2.0)
                self._fresh[key] = other.draw(request)
            return self._fresh[key]

    def _figures(self) -> dict[str, Any]:
        return self.world.stack.report().passes.get("cache", {})

    def _look(self, job: Job, figures: dict[str, Any], dropped: int) -> None:
        """Behind a job that was served alone: its state, and what was dropped."""
        request = job.request
        if job.kind in (WHOLE, TURNED):
            key = (request, self._adapter, self._scaled)
            self.found.state.setdefault(key, set()).add(figures["bytes"])
        elif figures["bytes"] or figures["table_bytes"]:
            self.found.wrong.append(f"{job}: broken off, and {figures['bytes']} bytes of state are left")
        if job.kind == TURNED:
            self.found.drops += figures["dropped"] - dropped
            if figures["dropped"] == dropped:
                self.found.wrong.append(f"{job}: weights changed, and nothing was dropped")


def adapter_path(world: World, name: str) -> str:
    """The file of an adapter."""
    return str(world.folder / f"{name}.safetensors")


@contextmanager
def out_of_memory(pipe: Any, after: int) -> Iterator[None]:
    """The first block runs out of memory in this thread's call number `after`."""
    mine, calls = threading.get_ident(), iter(range(10**9))

    def hook(*_: Any) -> None:
        if threading.get_ident() == mine and next(calls) == after:
            raise torch.OutOfMemoryError("out of memory, as asked for")

    handle = next(iter(pipe.transformer.transformer_blocks)).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
