"""Few-step adapters with whole steps cached behind the corrector."""

from __future__ import annotations

from statistics import median

import torch

from stack import Stack
from stack.loading import load
from stack.measure.metrics import psnr
from stack.reference.captions import captions

PROMPTS = captions(3, seed=88, model="shapes-flux")


def pictures(stack: Stack, steps: int) -> torch.Tensor:
    seeds = [torch.Generator().manual_seed(900 + i) for i in range(len(PROMPTS))]
    with stack:
        return stack(PROMPTS, num_inference_steps=steps, generator=seeds, output_type="pt")[0]


def test_an_adapter_of_four_steps_caches_one_and_puts_it_right() -> None:
    pipe = load("shapes-flux")
    pipe.set_progress_bar_config(disable=True)
    own = pictures(Stack(pipe).distill("shapes-flux-4"), 4)
    cached = Stack(pipe).distill("shapes-flux-4").cache("svd")
    made = pictures(cached, 4)
    assert "".join(step.kind[0] for step in cached.report().steps) == "fcff"
    assert "3 of 4 steps run in full: 0 2 3" in cached.explain()
    found = [psnr(a[None], b[None]) for a, b in zip(made, own, strict=True)]
    assert median(found) > 40, found
    wrong = pictures(Stack(pipe).distill("shapes-flux-4").cache("svd", corrected=False, count=3), 4)
    assert median(found) > 3 + median(psnr(a[None], b[None]) for a, b in zip(wrong, own, strict=True))
