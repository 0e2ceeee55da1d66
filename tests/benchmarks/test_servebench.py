"""The serving benchmark on a tiny model: it serves, and it notices what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from servebench.judge import growth, look_at, rows_of, targets_of
from servebench.mix import ABORTS, BROKEN, DEEP, RAISES, TURNED, WHOLE, Job, Phase, Request, draw_phases
from servebench.serve import Findings, Server
from servebench.world import World, tiny_world

from stack.caching.controller import CacheController

from ..conftest import tiny_pipe

STEPS = (12, 13)
OPTIONS = {"interval": 4, "warmup": 2}
ASKED = Request(("a red ring",), seed=1, steps=12)
EDITED = Request(("a red ring",), seed=1, steps=12, edited=6)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = tiny_world(tiny_pipe, "svd", tmp_path, OPTIONS)
    yield made
    made.stack.undo()


def serve(world: World, phases: list[Phase]) -> Findings:
    server = Server(world)
    server.prepare(phases)
    for phase in phases:
        server.serve(phase)
    return server.found


def test_every_kind_of_phase_and_job_is_served_right(world: World) -> None:
    before = look_at(world.pipe.transformer)
    alone = (Job(ASKED), Job(ASKED, ABORTS, 3), Job(EDITED, TURNED), Job(ASKED, DEEP, 2), Job(ASKED, RAISES, 5))
    several = (Job(ASKED), Job(ASKED, DEEP, 2), Job(ASKED, RAISES, 4), Job(ASKED))
    phases = [
        Phase("in turn", 1, alone, "one"),
        Phase("threads", 3, several, "two", scaled=True),
        Phase("asyncio", 2, several, "one"),
    ]
    found = serve(world, phases)
    assert found.wrong == [] and found.drops == 1
    assert sum(found.served.values()) == 13 and found.served["threads", DEEP] == 1
    world.stack.undo()
    assert look_at(world.pipe.transformer) == before
    targets = targets_of(found, "")
    assert all(target.met for target in targets if not target.name.startswith("growth"))
    assert {row["how"] for row in rows_of(found)} == {"in turn", "threads", "asyncio"}


def test_a_stack_that_keeps_what_it_should_drop_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.runtime.stamp.Stamp.__eq__", lambda mine, other: True)
    found = serve(world, [Phase("in turn", 1, (Job(ASKED), Job(EDITED, TURNED)), "one")])
    assert any("nothing was dropped" in what for what in found.wrong)
    assert not targets_of(found, "")[0].met


def test_a_leak_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheController, "reset", lambda controller: None)
    found = serve(world, [Phase("in turn", 1, (Job(ASKED, RAISES, 5),), "one")])
    assert any("bytes of state are left" in what for what in found.wrong)


def test_another_answer_is_found_out(world: World) -> None:
    server = Server(world)
    phase = Phase("in turn", 1, (Job(ASKED),), "one")
    server.prepare([phase])
    key = (ASKED, "one", False)
    server._fresh[key] = server._fresh[key] + torch.finfo(torch.float32).eps
    server.serve(phase)
    assert "another answer" in server.found.wrong[0]


def test_the_mix_holds_everything_and_is_the_same_again() -> None:
    phases = draw_phases(300, ["a", "b"], STEPS, (0, 32), pool=4, seed=1)
    assert phases == draw_phases(300, ["a", "b"], STEPS, (0, 32), pool=4, seed=1)
    jobs = [job for phase in phases for job in phase.jobs]
    assert len(jobs) >= 300 and {job.kind for job in jobs} == {WHOLE, TURNED, *BROKEN}
    assert {phase.how for phase in phases} == {"in turn", "threads", "asyncio"}
    assert {phase.workers for phase in phases} == {1, 2, 3, 4} and {phase.scaled for phase in phases} == {True, False}
    assert len({job.request for job in jobs if job.kind == WHOLE}) == 4
    # Ctrl-C and edits concern everybody: only where one job runs at a time.
    assert all(job.kind not in (ABORTS, TURNED) for p in phases if p.how != "in turn" for job in p.jobs)


def test_memory_that_grows_is_told_from_memory_that_has_grown() -> None:
    steady = [(served, 1000 + 5 * (served < 10)) for served in range(1, 101)]
    assert growth(steady) == pytest.approx(0, abs=0.001)
    assert growth([(served, 1000 + served) for served in range(1, 101)]) == pytest.approx(0.048, abs=0.01)
    assert growth([(5, 1000)]) == 0.0
