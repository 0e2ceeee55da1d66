"""The quantization pass on a tiny FLUX: what it converts, what it keeps and why, and that it comes off again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stack import Stack
from stack.core.errors import StackError
from stack.core.facts import Facts, Machine
from stack.core.installer import Installer
from stack.core.passes import Applied
from stack.models.schedule import uniform
from stack.quant.linears.int8 import Int8Linear
from stack.quant.quantize import Quantize
from stack.quant.schemes import SCHEMES
from stack.quant.selection import Reason, Rules, choose_linears
from stack.runtime.report import Journal
from stack.runtime.target import Target
from tests.conftest import inputs

from ..clocks import clock_of
from ..wirings import FLUX

AVX2 = Machine("cpu", "AVX2", fast_bf16=False)
FACTS = Facts("flux", AVX2, "float32", 2, 128, 2, 64, 1024, 16, 50, weight_bits=32, activation_bits=32, wiring=FLUX)

DOUBLE = [
    *(f"transformer_blocks.0.attn.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
]
TEXT = [
    *(f"transformer_blocks.0.attn.{n}" for n in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")),
    "transformer_blocks.0.ff_context.net.0.proj",
    "transformer_blocks.0.ff_context.net.2",
]
SINGLE = [
    *(f"single_transformer_blocks.0.attn.{n}" for n in ("to_q", "to_k", "to_v")),
    "single_transformer_blocks.0.proj_mlp",
    "single_transformer_blocks.0.proj_out",
]


def target(denoiser: nn.Module, text_tokens: int | None = None) -> Target:
    facts = replace(FACTS, text_tokens=text_tokens or 0)
    return Target(denoiser, FLUX, facts, clock_of(uniform(50)), Journal(), lambda: 0)


def verdicts(denoiser: nn.Module, scheme: str = "int8", **rules: Any) -> dict[str, str]:
    """Why each linear stays, '' where it does not."""
    return {c.path: str(c.kept or "") for c in choose_linears(denoiser, FLUX, Rules(SCHEMES[scheme], **rules))}


def run(denoiser: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(**inputs(), return_dict=False)[0]


def apply(denoiser: nn.Module, text_tokens: int | None = None, **options: Any) -> tuple[Installer, Applied]:
    install = Installer()
    return install, Quantize(**options).apply(target(denoiser, text_tokens), install)


def test_exactly_the_large_linears_of_the_blocks_are_converted(denoiser: FluxTransformer2DModel) -> None:
    _, applied = apply(denoiser)
    converted = {name for name, module in denoiser.named_modules() if isinstance(module, Int8Linear)}
    assert converted == {*DOUBLE, *SINGLE}
    # In units of 128 x 128 and of 128: double block 4 x 1 and 2 x 4; single block 3 x 1, 4 and 5.
    values, outputs = (4 + 8 + 3 + 4 + 5) * 128 * 128, (4 + 4 + 1 + 3 + 4 + 1) * 128
    report = applied.report()
    assert (report["converted"], report["linears"], report["original_bytes"]) == (11, 28, 4 * values)
    # Steps, offsets, zero points, and what the kernel's own layout adds.
    assert values + 16 * outputs <= report["weight_bytes"] <= values + 20 * outputs
    megabytes = f"{4 * values / 1e6:.2f} MB -> {report['weight_bytes'] / 1e6:.2f} MB"
    assert applied.summary.startswith(f"11 of 28 linears converted to int8 (weights {megabytes}); not converted: ")


def test_reasons_to_keep_a_linear_are_told_apart(denoiser: FluxTransformer2DModel) -> None:
    kept = verdicts(denoiser, text_tokens=16)
    assert {kept[path] for path in TEXT} == {"no gain: 16 rows"}
    roles = {
        "time_text_embed.timestep_embedder.linear_1": "time and guidance embedding",
        "transformer_blocks.0.norm1.linear": "modulation",
        "transformer_blocks.0.norm1_context.linear": "modulation",
        "single_transformer_blocks.0.norm.linear": "modulation",
        "x_embedder": "input projection",
        "context_embedder": "input projection",
        "norm_out.linear": "output projection",
        "proj_out": "output projection",
    }
    for path, role in roles.items():
        assert kept[path] == f"error amplification: {role}"
    assert "unknown role" not in " ".join(kept.values())
    assert [path for path, why in kept.items() if not why] == sorted([*DOUBLE, *SINGLE], key=list(kept).index)
    assert verdicts(denoiser, min_features=129)[DOUBLE[0]] == "no gain: 128 x 128 is under 129 features"
    odd = verdicts(denoiser, multiple=lambda scheme: 96)
    assert odd[DOUBLE[0]] == "kernel legality: 128 x 128 is no multiple of 96"
    assert verdicts(denoiser, skip=("*.to_q",))[DOUBLE[0]] == "asked for: skipped"
    # Weights alone are rounded for their memory, whatever the number of rows.
    assert [verdicts(denoiser, "nf4", text_tokens=16)[path] for path in TEXT] == [""] * len(TEXT)


def test_a_plan_overrules_every_reason_but_the_kernels(denoiser: FluxTransformer2DModel) -> None:
    plan = {DOUBLE[0]: "keep", DOUBLE[1]: "nf4", TEXT[0]: "int8", "transformer_blocks.0.norm1.linear": "int8-weight"}
    choices = {c.path: c for c in choose_linears(denoiser, FLUX, Rules(SCHEMES["int8"], layers=plan))}
    kept = choices[DOUBLE[0]].kept
    assert kept is not None and kept.reason is Reason.ASKED
    skipped = Rules(SCHEMES["int8"], layers=plan, skip=("*",))
    assert [c.path for c in choose_linears(denoiser, FLUX, skipped) if c.kept is None] == sorted(
        list(plan)[1:], key=list(choices).index
    )
    for path, name in list(plan.items())[1:]:
        assert choices[path].kept is None and choices[path].scheme.name == name
    assert choices[DOUBLE[2]].scheme.name == "int8"
    with pytest.raises(StackError, match=r"expected paths of linears in layers, got 'nowhere'"):
        choose_linears(denoiser, FLUX, Rules(SCHEMES["int8"], layers={"nowhere": "nf4"}))
    illegal = Rules(SCHEMES["int8"], layers=plan, multiple=lambda scheme: 96 if scheme.name == "nf4" else 1)
    kept = {c.path: c for c in choose_linears(denoiser, FLUX, illegal)}[DOUBLE[1]].kept
    assert kept is not None and kept.reason is Reason.LEGALITY


def test_a_mixed_plan_is_applied_layer_by_layer(denoiser: FluxTransformer2DModel) -> None:
    before = run(denoiser)
    _, applied = apply(denoiser, layers={DOUBLE[0]: "keep", DOUBLE[1]: "nf4", DOUBLE[2]: "int8-weight"})
    kinds = [type(denoiser.get_submodule(path)).__name__ for path in DOUBLE[:4]]
    assert kinds == ["Linear", "WeightOnlyLinear", "WeightOnlyLinear", "Int8Linear"]
    assert "converted to 1 x nf4, 1 x int8-weight, 8 x int8 (" in applied.summary
    assert 1e-5 < float((run(denoiser) - before).norm() / before.norm()) < 0.05


def test_a_long_text_stream_is_converted_too(denoiser: FluxTransformer2DModel) -> None:
    _, applied = apply(denoiser, text_tokens=512)
    assert set(applied.details["converted"]) == {*DOUBLE, *TEXT, *SINGLE}


def test_linears_of_other_libraries_are_left_alone(denoiser: FluxTransformer2DModel) -> None:
    class Foreign(nn.Linear):
        pass

    block = denoiser.transformer_blocks[0].attn
    block.to_q = Foreign(128, 128)
    assert verdicts(denoiser)[DOUBLE[0]] == "kernel legality: not a plain linear but Foreign of Parameter"


@pytest.mark.parametrize("backend", ["native", "torchao"])
def test_output_changes_a_little_and_comes_back_bit_for_bit(denoiser: FluxTransformer2DModel, backend: str) -> None:
    before, modules, state = run(denoiser), list(denoiser.modules()), denoiser.state_dict()
    install, applied = apply(denoiser, backend=backend)
    after = run(denoiser)
    error = float((after - before).norm() / before.norm())
    assert 1e-5 < error < 0.03, error
    assert applied.details["backend"] == backend and len(applied.details["converted"]) == 11
    install.rollback()
    assert all(a is b for a, b in zip(denoiser.modules(), modules, strict=True))
    assert list(denoiser.state_dict()) == list(state)
    assert all(torch.equal(a, b) for a, b in zip(denoiser.state_dict().values(), state.values(), strict=True))
    assert torch.equal(run(denoiser), before)


def test_repeated_calls_and_batches_agree(denoiser: FluxTransformer2DModel) -> None:
    """Shared rows do not leak from one call into the next: call B between two calls A, and a batch against its rows."""
    apply(denoiser)
    one = run(denoiser)
    with torch.no_grad():
        other = denoiser(**inputs(sigma=0.9, side=6, batch=2), return_dict=False)[0]
        again = denoiser(**inputs(sigma=0.9, side=6, batch=2), return_dict=False)[0]
    assert torch.equal(run(denoiser), one) and torch.equal(other, again)


def test_an_exception_inside_a_block_leaves_nothing_behind(denoiser: FluxTransformer2DModel) -> None:
    _, applied = apply(denoiser)
    wanted = run(denoiser)
    norm = denoiser.transformer_blocks[0].attn.norm_k

    def fail(*_: object) -> None:
        raise RuntimeError("halfway")

    handle = norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="halfway"):
        run(denoiser)
    handle.remove()
    assert torch.equal(run(denoiser), wanted)
    applied.reset()
    assert torch.equal(run(denoiser), wanted)


def test_nothing_to_convert_is_an_error_before_anything_changes(denoiser: FluxTransformer2DModel) -> None:
    modules = list(denoiser.modules())
    with pytest.raises(
        StackError, match=r"0 of 28 linears can be converted to int8: .*no gain: 128 x 128 is under 256"
    ):
        apply(denoiser, min_features=256)
    assert all(a is b for a, b in zip(denoiser.modules(), modules, strict=True))


def test_weights_that_cannot_be_rounded_leave_the_model_as_it_was(denoiser: FluxTransformer2DModel) -> None:
    denoiser.single_transformer_blocks[0].proj_out.weight.data[0, 0] = float("inf")
    modules = list(denoiser.modules())
    with pytest.raises(StackError, match="finite weights"):
        apply(denoiser)
    assert all(a is b for a, b in zip(denoiser.modules(), modules, strict=True))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(StackError, match=r"scheme 'int3': expected one of fp8, fp8-weight, int4-weight, int8, int8-w"):
        Quantize("int3")
    with pytest.raises(StackError, match=r"backend 'cutlass': expected one of auto, bitsandbytes, native, quanto, to"):
        Quantize(backend="cutlass")
    with pytest.raises(StackError, match="scheme 'int5'"):
        Quantize(layers={"a": "int5"})


def test_findings() -> None:
    def fatal(facts: Facts, **options: Any) -> list[str]:
        return [f.what for f in Quantize(**options).check(facts) if f.fatal]

    assert Quantize().check(FACTS) == []
    assert fatal(replace(FACTS, weight_bits=8)) == ["the model is already quantized to 8 bits"]
    assert fatal(replace(FACTS, quantized_by="gguf", weight_bits=4)) == [
        "the model is already quantized by gguf to 4 bits"
    ]
    assert fatal(FACTS, min_features=256) == [
        "no linear would be converted: the model is 128 wide, min_features is 256"
    ]
    assert "no int8 product is known for mps" in fatal(replace(FACTS, machine=Machine("mps")))[0]
    (note,) = Quantize().check(replace(FACTS, image_tokens=64))
    assert note.note and not note.fatal and note.what.startswith("64 image tokens of width 128 are too few")


def test_facts_after() -> None:
    after = Quantize().facts_after(FACTS)
    assert (after.weight_bits, after.activation_bits, after.quantized_by) == (8, 8, "native")
    assert Quantize().facts_after(replace(FACTS, machine=Machine("cuda", "GPU"))).quantized_by == "torchao"
    mixed = Quantize(layers={"a": "nf4", "b": "keep"}).facts_after(FACTS)
    assert (mixed.weight_bits, mixed.activation_bits) == (4, 8)
    assert Quantize("nf4").facts_after(FACTS).activation_bits == FACTS.activation_bits


def test_describe_names_kernel_reason_and_rows() -> None:
    text = "\n".join(Quantize().describe(FACTS))
    for part in (
        "attention and mlp linears of 2 blocks",
        "int8 by native: ",
        "oneDNN, AVX2 without VNNI: weights use 64 levels",
        "not converted, errors there do not average out: time and guidance embedding",
        "not converted, no gain: the text stream's own linears (16 rows)",
    ):
        assert part in text
    vnni = replace(FACTS, machine=Machine("cpu", "AVX512", vnni=True), text_tokens=512)
    text = "\n".join(Quantize(backend="native").describe(vnni))
    assert "asked for; oneDNN, AVX512 with VNNI" in text and "text stream's own linears are converted too" in text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"layers": {"nope": "nf4"}}, "expected paths of linears in layers, got 'nope'; the nearest is "),
    ({"skip": ("*",)}, "0 of 28 linears can be converted to int8: 28 x asked for: skipped"),
    ({"min_features": 10**6, "layers": {DOUBLE[1]: "keep"}}, "0 of 28 linears can be converted to int8"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_explain_refuses_what_apply_refuses(options: dict[str, Any], message: str, denoiser: Any) -> None:
    stack = Stack(denoiser, steps=14).quantize(**{"min_features": 64, **options})
    for ask in (stack.explain, stack.apply):
        with pytest.raises(StackError) as error:
            ask()
        assert message in str(error.value)


def test_what_is_skipped_is_shown_and_a_pattern_that_meets_nothing_is_said(denoiser: Any) -> None:
    text = Stack(denoiser, steps=14).quantize(min_features=64, skip=("*.attn.*", "nowhere.*")).explain()
    hit = sum(".attn." in path and isinstance(m, torch.nn.Linear) for path, m in denoiser.named_modules())
    assert f"not converted, as asked: {hit} linears called *.attn.* or nowhere.*" in text
    assert "[note] quantize: skip: no linear is called 'nowhere.*'" in text
