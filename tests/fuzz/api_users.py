"""What users do to a pipeline without the stack: adapters, processors, casts, caches, schedulers. By name, as data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    FluxPipeline,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from ..pipelines.build import NO_TEXT, PIPELINES, Tiny

KINDS = ("FluxPipeline", "DiTPipeline")
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SCHEDULERS: dict[str, list[Callable[[], Any]]] = {
    "FluxPipeline": [
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        lambda: UniPCMultistepScheduler(**FLOW),
        lambda: FlowMatchLCMScheduler(shift=3.0),
    ],
    "DiTPipeline": [
        lambda: DDIMScheduler(clip_sample=False),
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
    ],
}


class Damped(FluxAttnProcessor):
    """Attention at nine tenths: another result than the family's own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        return tuple(each * 0.9 for each in out) if isinstance(out, tuple) else out * 0.9


@cache
def _prototype(kind: str) -> Tiny:
    return PIPELINES[kind]()


class User:
    """A pipeline and what its user has done to it, which can be done again to another one like it."""

    def __init__(self, kind: str):
        self.kind = kind
        self.tiny = copy.deepcopy(_prototype(kind))
        self.done: list[tuple[str, Any]] = []

    @classmethod
    def twin(cls, of: User) -> User:
        """A pipeline that never carried a stack, with the same changes."""
        made = cls(of.kind)
        for name, argument in of.done:
            made.change(name, argument)
        return made

    @property
    def model(self) -> Any:
        return self.tiny.pipe.transformer

    def may(self, name: str) -> bool:
        """Whether a change makes sense on this pipeline as it is now."""
        has, lora = self.kind == "FluxPipeline", "lora on" in self.flags
        return {
            "lora on": has and not lora and "fused" not in self.flags,
            "lora off": lora,
            "lora scale": lora,
            "cache on": has and "cache on" not in self.flags,
            "cache off": "cache on" in self.flags,
            "processor": has,
            "fuse": has and not lora and "fused" not in self.flags,
            "unfuse": "fused" in self.flags,
        }.get(name, True)

    @property
    def flags(self) -> set[str]:
        """Which of the changes that can be taken back are there."""
        found: set[str] = set()
        pairs = {"lora on": "lora off", "cache on": "cache off", "fuse": "unfuse"}
        for name, _ in self.done:
            for on, off in pairs.items():
                flag = "fused" if on == "fuse" else on
                if name == on:
                    found.add(flag)
                elif name == off:
                    found.discard(flag)
        return found

    def change(self, name: str, argument: Any) -> None:
        """Do it, and remember it if it went well."""
        CHANGES[name](self, argument)
        self.done.append((name, argument))

    def call(self, run: Any, given: dict[str, Any]) -> torch.Tensor:
        """The output of a pipeline or a stack for these choices: steps, prompt, and more arguments."""
        dtype, tiny = self.model.dtype, self.tiny
        sign = 1.0 if given["prompt"] == 0 else -0.5
        more: dict[str, Any] = dict(given.get("more", {}))
        if self.kind == "FluxPipeline":
            for name in ("prompt_embeds", "pooled_prompt_embeds"):
                more[name] = (tiny.given[name].float() * sign).to(dtype)
        else:
            more["class_labels"] = [17 + given["prompt"]]
        return tiny.call(run, steps=given["steps"], **more)

    def second(self) -> Any:
        """Another pipeline on the same model, with a scheduler of its own."""
        scheduler = SCHEDULERS[self.kind][2]()
        if self.kind == "FluxPipeline":
            pipe: Any = FluxPipeline(transformer=self.model, vae=None, scheduler=scheduler, **NO_TEXT)
            pipe.vae_scale_factor = self.tiny.pipe.vae_scale_factor
        else:
            pipe = DiTPipeline(transformer=self.model, vae=self.tiny.pipe.vae, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _scheduler(user: User, which: int) -> None:
    user.tiny.pipe.scheduler = SCHEDULERS[user.kind][which]()


def _lora_on(user: User, _: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    user.model.add_adapter(config, adapter_name="x")


def _lora_scale(user: User, scale: float) -> None:
    user.model.set_adapters("x", weights=scale)


def _processor(user: User, own: bool) -> None:
    user.model.set_attn_processor(FluxAttnProcessor() if own else Damped())


def _cast(user: User, dtypes: tuple[torch.dtype, ...]) -> None:
    for dtype in dtypes:
        user.model.to(dtype)
        torch.nn.Module.to(user.tiny.pipe.vae, dtype)  # without diffusers' warning


CHANGES: dict[str, Callable[[User, Any], None]] = {
    "scheduler": _scheduler,
    "lora on": _lora_on,
    "lora off": lambda user, _: user.model.unload_lora(),
    "lora scale": _lora_scale,
    "processor": _processor,
    "cast": _cast,
    "cache on": lambda user, _: user.model.enable_cache(FirstBlockCacheConfig(threshold=0.2)),
    "cache off": lambda user, _: user.model.disable_cache(),
    "fuse": lambda user, _: user.model.fuse_qkv_projections(),
    "unfuse": lambda user, _: user.model.unfuse_qkv_projections(),
}
WEIGHTS = ("lora on", "lora off", "lora scale", "cast", "fuse", "unfuse")  # changes that reach rounded linears
