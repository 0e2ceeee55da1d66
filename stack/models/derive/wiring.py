"""The wiring of any denoiser class, from a small random instance of it and a few calls; only what is proven there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, NoReturn

from diffusers import ModelMixin
from torch import nn

from ...core.errors import StackError
from ...core.parameters import parameters_of
from ..families import FamilyData, family_of
from ..layout import Along, CachedModule, Wiring
from ..plainly import plainly
from ..small import Small, small
from .along import along_tokens
from .arguments import batched_of_blocks, rows_differ
from .attention import HOW, self_attentions
from .blocks import candidates, main_lists
from .grid import Patches, token_grid
from .linears import linears_of, roles_in_blocks, same_inputs, sensitive_roles
from .modulation import modulated_input
from .modules import ModuleProof
from .probe import Probe
from .streams import Blocks, Unproven, named_blocks, prove_answers, prove_range
from .trace import Trace, tensors
from .unread import constant_modules, unread_modules

LATENTS = ("hidden_states", "sample", "x")  # what diffusers calls the noisy latent
TIMES = ("timestep", "timesteps", "t", "timestep_ratio")
ENDS = ("timestep_r", "r_timestep", "target_timestep")  # the time that a step ends at
AGAIN = ("audio_timestep", "sigma", "audio_sigma")  # the time once more, for other parts of the model
SOUND = ("audio_hidden_states",)  # what is denoised beside the latent
WHOLE, BLOCKS, RANGE, ROWS, MODULES = "whole", "blocks", "range", "rows", "modules"
TOKENS, ALONG = "tokens", "along"
MODULATION, GRID, ATTENTION = "modulation", "grid", "attention"


def wiring_of(denoiser: nn.Module) -> Wiring:
    """The wiring of a denoiser's class and configuration; made once for each.

    Raises:
        StackError: no model of diffusers, or one whose forward takes no latent or no time under a name that is known.
    """
    if not isinstance(denoiser, ModelMixin):
        name = type(denoiser).__name__
        raise StackError(f"cannot accelerate a {name}: expected a denoiser of diffusers, or a pipeline with one")
    config: Mapping[str, Any] = dict(vars(denoiser).get("_internal_dict", {}))
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    cls: Any = type(denoiser)
    return _of_class(cls, json.dumps(plain, sort_keys=True, default=str))


def wiring_of_class(cls: type[nn.Module]) -> Wiring:
    """The wiring of a class as it is by default.

    Raises:
        StackError: its forward takes no latent or no time under a name that is known.
    """
    return _of_class(cls, "{}")


class _NoSmallInstanceError(StackError):
    """There is nothing to try a class on."""


def _of_class(cls: Any, config: str) -> Wiring:
    try:
        return _derived(cls, config, family_of(cls))
    except _NoSmallInstanceError as error:
        return wiring_of_small(cls, str(error))


@lru_cache(maxsize=64)
def _derived(cls: type[nn.Module], config: str, known: FamilyData) -> Wiring:
    """The wiring of a class; `known` is what `small` finds, so that data which come later are not overlooked."""
    try:
        made = small(cls, json.loads(config))
    except StackError as error:  # raised, for what is raised is not kept
        raise _NoSmallInstanceError(f"no small instance to try it on: {error}") from None
    return wiring_of_small(cls, made)


@plainly()
def wiring_of_small(cls: type[nn.Module], made: Small | str) -> Wiring:
    """The wiring of a class.

    Args:
        made: a small instance, or why there is none.
    """
    if why := family_of(cls).unwired:
        raise StackError(f"cannot accelerate a {cls.__name__}: {why}; use diffusers' own options on it")
    takes = tuple(parameters_of(cls, "forward"))
    latent, time = (_one_of(cls, takes, names) for names in (LATENTS, TIMES))
    if isinstance(made, str):
        return _whole(cls, takes, latent, time, made)
    probe = Probe(made, latent, time)
    try:
        return _with_blocks(cls, takes, probe)
    except Unproven as error:
        return _whole(cls, takes, latent, time, str(error), probe)


def _one_of(cls: type, takes: tuple[str, ...], names: tuple[str, ...]) -> str:
    found = [name for name in names if name in takes]
    if not found:
        expected = " or ".join(names)
        raise StackError(f"cannot accelerate a {cls.__name__}: expected a denoiser whose forward takes {expected}")
    return found[0]


def _with_blocks(cls: type, takes: tuple[str, ...], probe: Probe) -> Wiring:
    """Raises `Unproven` where the class has no blocks that could be answered."""
    denoiser, trace = probe.denoiser, probe.trace
    found = candidates(denoiser, trace)
    main = main_lists(found)
    if not main or len(main[-1].calls) < 2:
        raise Unproven("no list of blocks that pass tokens (B, N, D) from one to the next")
    blocks = named_blocks(denoiser, trace, main, _stream_name(trace.given[probe.latent]))
    prove_answers(denoiser, trace, blocks)
    lacks = _lacking({RANGE: prove_range(denoiser, trace, blocks)})
    batched: tuple[str, ...] = ()
    if probe.two is not None:
        batched = batched_of_blocks(main, blocks, probe.two)
        lacks |= _lacking({ROWS: rows_differ(blocks, probe.two, batched)})
    else:
        lacks[ROWS] = probe.why_whole
    makers, unread = unread_modules(denoiser, trace, blocks)
    linears = linears_of(denoiser, trace, found, main)
    modules, without = _kept_modules(denoiser, trace, blocks, {one.path: one.role for one in linears})
    lacks |= without
    whole = _whole(cls, takes, probe.latent, probe.time, "", probe)
    other = probe.other_sizes()
    modulation = _proven(
        lacks, MODULATION, whole.modulation, lambda: modulated_input(denoiser, trace, probe.later(), blocks, modules)
    )
    grid = _proven(lacks, GRID, whole.grid, lambda: token_grid(denoiser, trace, other, blocks, probe.latent))
    along: Mapping[str, Along] = _proven(lacks, ALONG, {}, lambda: along_tokens(trace, other, blocks))
    first = main[0].calls[0]
    width = first.given[blocks.ports_at(first.path).takes[blocks.output]].shape[-1]
    return _changed(
        whole,
        block_lists=tuple(one.path for one in main),
        streams=dict(blocks.ports[main[0].path].takes),
        output_stream=blocks.output,
        also_read=blocks.read[1:],
        linears=roles_in_blocks(linears),
        sensitive=sensitive_roles(linears),
        batched=batched,
        constants=tuple(constant_modules(denoiser, trace, probe.next_step())),
        makers=tuple(makers),
        unread=tuple(unread),
        ports=dict(blocks.ports),
        same_input=same_inputs(linears),
        width_from=_width_from(first.path, denoiser, width),
        modules=modules,
        modulation=modulation,
        grid=grid,
        patch=grid.patch if isinstance(grid, Patches) else (),
        numbers=whole.numbers if GRID in lacks else _per_token(grid(denoiser, trace.given), probe),
        along=along,
        lacks={**whole.lacks, **lacks},
        how={**whole.how, **_how(blocks), **({} if GRID in lacks else {GRID: str(grid)})},
    )


def _kept_modules(
    denoiser: nn.Module, trace: Trace, blocks: Blocks, roles: Mapping[str, str]
) -> tuple[dict[str, tuple[CachedModule, ...]], dict[str, str]]:
    """The modules of blocks whose output a cache can keep, and what is lacking."""
    try:
        inside = ModuleProof(denoiser, trace, blocks, roles)
        modules = inside.of_lists()
        several = f"{len(blocks.read)} of its streams are read behind the last block" if blocks.read[1:] else ""
        return modules, _lacking({TOKENS: several or inside.token_by_token(modules)})
    except Unproven as error:
        return {}, {MODULES: str(error), TOKENS: str(error)}


def _proven(lacks: dict[str, str], name: str, otherwise: Any, derive: Callable[[], Any]) -> Any:
    """What is derived; or the other value, and the reason noted among what the class lacks."""
    try:
        return derive()
    except Unproven as error:
        lacks[name] = str(error)
        return otherwise


def _changed(wiring: Wiring, **fields: Any) -> Wiring:
    return Wiring(**{**vars(wiring), **fields})


def _lacking(reasons: Mapping[str, str]) -> dict[str, str]:
    return {name: reason for name, reason in reasons.items() if reason}


def _stream_name(latent: Any) -> str:
    """The output stream's: of a latent (B, C, F, H, W) a video's."""
    one = tensors(latent)[0]
    return "video" if one.ndim + isinstance(latent, list) == 5 and one.shape[-3] > 1 else "image"


def _width_from(block: str, denoiser: nn.Module, width: int) -> str:
    """A linear of the first block with as many inputs as the stream is wide; attention's first."""
    named = denoiser.get_submodule(block).named_modules()
    fitting = [path for path, module in named if isinstance(module, nn.Linear) and module.in_features == width]
    return next((path for path in fitting if "attn" in path), fitting[0] if fitting else "")


def _how(blocks: Blocks) -> dict[str, str]:
    paths = ", ".join(f"{one.path} ({len(one.calls)} in the small model)" for one in blocks.lists)
    return {
        "block_lists": f"{paths}: lists of modules that take and return tokens, in running order",
        "streams": "passed on from block to block",
        "output_stream": "the stream whose loss behind the last block changes the first output",
        "proof": "with its output in place of every block the model gives the same bits",
        "linears": "by the modules they are in, and the rows they were given",
    }


def _whole(
    cls: type, takes: tuple[str, ...], latent: str, time: str, why_no_blocks: str, probe: Probe | None = None
) -> Wiring:
    """The wiring of a denoiser of which nothing inside is known."""
    lacks = _lacking(dict.fromkeys((BLOCKS, GRID, ALONG), why_no_blocks))
    attention, why_dense = self_attentions(probe.small, latent) if probe else ({}, why_no_blocks)
    lacks |= _lacking({ATTENTION: why_dense})
    lacks |= _lacking({WHOLE: probe.unlike_latent if probe else ""})
    if probe is not None and probe.restless:
        lacks |= dict.fromkeys(
            (WHOLE, BLOCKS), "a call leaves other weights or buffers behind: nothing kept would be valid"
        )
    linears = [] if probe is None else linears_of(probe.denoiser, probe.trace, (), ())
    known = family_of(cls)
    return Wiring(
        family=family_name(cls),
        classes=(cls.__name__,),
        block_lists=(),
        streams={},
        output_stream="",
        linears=roles_in_blocks(linears),
        sensitive=sensitive_roles(linears),
        modules={},
        modulation=_unknown("the modulated input of a block", cls),
        grid=lambda denoiser, given: (),
        inputs=() if probe is None else probe.inputs,
        residuals=tuple(name for name in takes if _is_residual(name)),
        batched=(),
        flow_scale=known.flow_scale,
        halves=known.halves,
        latent=latent,
        time=time,
        times=tuple(name for name in takes if name in (*ENDS, *AGAIN, *SOUND, *(probe.beside if probe else ()))),
        beside=() if probe is None else probe.beside,
        returns=None if probe is None else probe.returns,
        numbers=(0, 0) if probe is None else (probe.ratio.denominator, probe.ratio.numerator),
        attention=attention,
        lacks=lacks,
        how={ATTENTION: HOW} if attention else {},
    )


def _is_residual(name: str) -> bool:
    """Whether an argument of the denoiser is what a control net adds."""
    return name.endswith(("block_samples", "controlnet_hidden_states", "residuals", "block_additional_residual"))


def _per_token(grid: tuple[int, ...], probe: Probe) -> tuple[int, int]:
    """Numbers of a token in the latent and in the output."""
    latent = sum(tensor.numel() for tensor in tensors(probe.trace.given[probe.latent]))
    into = Fraction(latent, math.prod(grid))
    out = into * probe.ratio
    exact = into.denominator == out.denominator == 1
    return (int(into), int(out)) if exact else (probe.ratio.denominator, probe.ratio.numerator)


def _unknown(what: str, cls: type) -> Callable[..., NoReturn]:
    def unknown(*args: Any) -> NoReturn:
        raise StackError(f"{what} is not known of a {cls.__name__}")

    return unknown


def family_name(cls: type) -> str:
    """The name of a class's family: that of the class without "Transformer3DModel" and the like, in lower case."""
    name = (
        re.sub(r"(Transformer)?([123]D)?(Model|Transformer)?$", "", cls.__name__.replace("UNet", "Unet"))
        or cls.__name__
    )
    return re.sub(r"(?<=[a-z])(?=[A-Z][A-Za-z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()
