"""What makes each rule speak that is not of the plan: calls and small stacks, to what they say."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stack import Stack
from stack.distill.call import corrected
from stack.distill.find import find_card

from ..conftest import inputs, picture, tiny_denoiser, tiny_pipe

STEPS = 14
ARGUMENTS = ("prompt", "num_inference_steps", "sigmas", "guidance_scale")


def asked(**given: object) -> str:
    return "; ".join(corrected(find_card("shapes-flux-4"), given, ARGUMENTS).contradictions)


def walked(stack: Stack, steps: range) -> str:
    with torch.no_grad():
        for step in steps:
            stack(**inputs(1 - step / STEPS))
    return str(stack.report())


def other_weights() -> str:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=STEPS).cache("svd", warmup=2, interval=6)
    walked(stack, range(4))
    with torch.no_grad():
        denoiser.proj_out.weight.mul_(1.5)
    return walked(stack, range(4, 5))


def overflowing_state() -> str:
    denoiser = tiny_denoiser()
    with torch.no_grad():
        denoiser.x_embedder.weight.mul_(1e7)
    return walked(Stack(denoiser, steps=STEPS).cache("svd", warmup=1, state_dtype="float16"), range(2))


def unnamed_branches() -> str:
    """Two calls per step, and nothing that says which is which."""
    stack = Stack(tiny_denoiser(), steps=STEPS).cache("svd", warmup=1)
    for step in range(3):
        walked(stack, range(step, step + 1))
        text = walked(stack, range(step, step + 1))
    return text


def noise_told() -> str:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", noise=((1.0, 0.0033), (0.06, 0.0123)))
    picture(stack)
    return str(stack.report())


def masked() -> str:
    stack = Stack(tiny_denoiser(), steps=STEPS).sparse_attn(0.5, even_if_slower=True, block=64)
    mask = torch.ones(1, 1, 80, 80).bool().tril()
    with torch.no_grad():
        for step in range(4):
            stack(**inputs(1 - step / STEPS), joint_attention_kwargs={"attention_mask": mask})
    return str(stack.report().passes["sparse_attn"])


def other_processor() -> str:
    denoiser = tiny_denoiser()
    denoiser.transformer_blocks[0].attn.processor._attention_backend = "sage"
    return str(Stack(denoiser, steps=STEPS).sparse_attn(0.5, even_if_slower=True, block=64).apply().report().warnings)


def many_kinds_of_blocks() -> str:
    """Blocks that a mixed plan makes differ, and a compiler that keeps one version."""
    denoiser = tiny_denoiser()
    second = tiny_denoiser().single_transformer_blocks[0]
    denoiser.single_transformer_blocks.append(second)
    mixed = {"single_transformer_blocks.1.proj_mlp": "keep"}
    stack = Stack(denoiser, steps=STEPS).quantize("int8", min_features=64, layers=mixed).compile()
    with torch._dynamo.config.patch(recompile_limit=1):
        return str(stack.apply().report().warnings)


def unknown_step() -> str:
    stack = Stack(tiny_denoiser(), steps=STEPS).cache("svd", warmup=1)
    with torch.no_grad():
        stack(**inputs(0.9 + 0.05 / STEPS))
    return str(stack.report())


OCCURRING: dict[str, Callable[[], str]] = {
    "call-steps": lambda: asked(num_inference_steps=50),
    "call-schedule": lambda: asked(sigmas=[1.0, 0.75, 0.5, 0.25]),
    "call-guidance": lambda: asked(guidance_scale=3.5),
    "noise-in-differences": noise_told,
    "masked-attention": masked,
    "other-processors": other_processor,
    "recompile-limit": many_kinds_of_blocks,
    "other-conditions": other_weights,
    "not-a-number": overflowing_state,
    "unnamed-branches": unnamed_branches,
    "step-unknown": unknown_step,
}
