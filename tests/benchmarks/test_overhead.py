"""The benchmark of the layer's own cost runs the steps that it says, and leaves the model as it was."""

from __future__ import annotations

import overhead
import pytest
import torch


def test_steps_are_made_again_and_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "REPEATS", 2)
    monkeypatch.setattr(overhead, "STEPS", 20)
    monkeypatch.setattr(overhead, "least", lambda run, repeats=2: [run(), 1.0][1])
    bench = overhead.Bench("shapes-dit")
    with torch.no_grad():
        before = bench.call()[0]
        assert bench.step() == {"step": 1.0, "forecast": 1.0, "update": 1.0}
        with bench.answering(cached=True):
            assert not torch.equal(bench.call()[0], torch.zeros_like(before))
        assert torch.equal(bench.call()[0], before)
    assert not any("forward" in vars(module) for module in bench.denoiser.modules())
