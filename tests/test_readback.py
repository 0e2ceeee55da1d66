"""Numbers and times that arrive late, as they do from an accelerator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stack import Stack
from stack.caching.guard import ExtrapolationGuard, OutputGuard
from stack.caching.measurements import Measurements
from stack.core.readback import Readback, Stopwatch
from stack.models.timestep import place_in

from .conftest import inputs, tiny_denoiser
from .reads import CountReads


@dataclass
class Event:
    """Stands for a device's event: happens when it is told to, or waited for."""

    happened: bool = False
    waits: int = 0

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        self.happened, self.waits = True, self.waits + 1


def late(numbers: torch.Tensor) -> tuple[Readback, Event]:
    readback, event = Readback(numbers), Event()
    readback._event = event
    return readback, event


def test_numbers_of_a_cpu_are_there_at_once() -> None:
    readback = Readback(torch.tensor([[1.0, 2.0]]))
    assert readback.ready and readback.read() == [[1.0, 2.0]]


def test_late_numbers_are_only_waited_for_when_they_are_asked_for() -> None:
    readback, event = late(torch.tensor([3.0]))
    assert not readback.ready and event.waits == 0
    assert readback.read() == [3.0] and event.waits == 1 and readback.ready


def test_norms_are_taken_when_they_have_arrived_and_nothing_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []

    def slow(numbers: torch.Tensor) -> Readback:
        readback, event = late(numbers)
        events.append(event)
        return readback

    monkeypatch.setattr("stack.caching.measurements.Readback", slow)
    reach, other, norms = ExtrapolationGuard(), ExtrapolationGuard(), Measurements()
    reach.note(torch.tensor([float("nan")]))
    other.note(torch.tensor([1.0]))
    reach.send(norms)
    other.send(norms)
    norms.poll()
    assert reach.finite and len(events) == 1
    events[0].happened = True
    norms.poll()
    assert not reach.finite and other.finite
    assert events[0].waits == 1  # read once, after it had happened


def test_norms_of_a_state_that_is_gone_say_nothing_of_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pending: list[Event] = []

    def slow(numbers: torch.Tensor) -> Readback:
        readback, event = late(numbers)
        pending.append(event)
        return readback

    monkeypatch.setattr("stack.caching.measurements.Readback", slow)
    reach, norms = ExtrapolationGuard(), Measurements()
    reach.note(torch.tensor([float("inf")]))
    reach.send(norms)
    norms.poll()
    reach.clear()
    pending[0].happened = True
    norms.poll()
    assert reach.finite


def test_the_guard_says_what_is_wrong_once_it_is_known() -> None:
    stack = Stack(tiny_denoiser(), steps=14).cache("svd", warmup=3, interval=9)
    with torch.no_grad():
        for step in range(5):
            stack(**inputs(1 - step / 14))
    controller = stack._layers[-1].applied.details["controller"]
    guard = OutputGuard(controller.clock, stack._target.journal, controller.empty)
    good = Readback(torch.tensor([[1.0], [0.5]]))
    flat, event = late(torch.tensor([[1.0], [1.0]]))  # the mean of its tokens is as long as it is itself
    guard._late = [(controller.now.request, 3, 1, flat, good)]
    guard.settle()
    assert stack.report().warnings == [] and event.waits == 0
    event.happened = True
    guard.settle()
    assert stack.report().warnings == ["output of step 3 was constant over the tokens"]


def test_a_stopwatch_of_a_cpu_is_its_clock() -> None:
    watch = Stopwatch(torch.device("cpu"))
    time.sleep(0.01)
    watch.stop()
    assert watch.seconds == watch.host_seconds >= 0.01


def test_a_stopwatch_of_an_accelerator_reads_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Timed(Event):
        at: float = 0.0

        def record(self) -> None:
            self.at = next(times)

        def elapsed_time(self, end: Any) -> float:
            return end.at - self.at

    times = iter([100.0, 350.0])  # milliseconds
    monkeypatch.setattr(torch, "Event", lambda *_, **__: Timed())
    watch = Stopwatch(torch.device("cuda"))
    watch.stop()
    assert watch.seconds == 0.25 and 0 <= watch.host_seconds < 0.25


def test_a_step_is_told_from_the_scheduler_s_own_tensor_without_reading_it() -> None:
    timesteps = torch.arange(1000, 0, -20)
    with CountReads() as reads:
        assert place_in(timesteps[7][None].expand(4), timesteps) == 7
        assert place_in(timesteps[10:][3], timesteps[10:]) == 3
        assert place_in(timesteps[7].clone(), timesteps) is None
    assert reads.count == 0
