"""A LoRA file against a model: what is read, and what is refused before anything changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stack import Stack, StackError
from stack.distill.lora import read_lora, updates

from ..conftest import picture, tiny_denoiser, tiny_pipe
from ..lora import save_lora

State = dict[str, torch.Tensor]
FILE = "pytorch_lora_weights.safetensors"
LORA = ("lora_A", "lora_B")
Q = "transformer.transformer_blocks.0.attn.to_q"


def drop(state: State, *ends: str) -> None:
    for key in [key for key in state if key.startswith(Q) and key.endswith(ends)]:
        del state[key]


def changed(key: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], None]:
    return lambda state: state.__setitem__(f"{Q}.{key}", value(state[f"{Q}.{key}"]).contiguous())


def poison(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.clone().index_put_((torch.tensor([1]), torch.tensor([1])), torch.tensor(value))


# What is done to a good file, and what the error says.
BAD: dict[str, tuple[Callable[[State], None], str]] = {
    "whole numbers": (changed("lora_A.weight", torch.Tensor.int), "expected floating-point factors, found torch.int32"),
    "rank 0": (
        lambda s: s.update({f"{Q}.lora_A.weight": torch.zeros(0, 128), f"{Q}.lora_B.weight": torch.zeros(128, 0)}),
        "of one rank R, found (0, 128) and (128, 0)",
    ),
    "huge alpha": (
        lambda s: s.update({f"{Q}.alpha": torch.tensor(1e30)}),
        "expected one alpha other than 0, at most 100000",
    ),
    "an update beyond the weights": (
        lambda s: s.update({f"{Q}.{part}.weight": torch.full_like(s[f"{Q}.{part}.weight"], 3e38) for part in LORA}),
        "expected factors whose product float32 can hold; found transformer_blocks.0.attn.to_q",
    ),
    "foreign keys": (
        lambda s: s.update({"transformer.blocks.0.q.lora_A.weight": torch.zeros(1, 1)}),
        "expected LoRA keys of its linears; found blocks.0.q",
    ),
    "many foreign keys": (
        lambda s: s.update({f"transformer.blocks.{i}.q.lora_A.weight": torch.zeros(1, 1) for i in range(9)}),
        "found blocks.0.q, blocks.1.q, blocks.2.q and 6 more",
    ),
    "text encoder": (
        lambda s: s.update({"text_encoder.layers.0.q.lora_A.weight": torch.zeros(1, 1)}),
        "found text_encoder.layers.0.q",
    ),
    "a norm": (
        lambda s: s.update({"transformer.transformer_blocks.0.attn.norm_q.lora_A.weight": torch.zeros(1, 1)}),
        "found transformer_blocks.0.attn.norm_q",
    ),
    "half a module": (lambda s: drop(s, "lora_B.weight"), "expected both .lora_A.weight and .lora_B.weight"),
    "wrong rank": (
        changed("lora_B.weight", lambda t: torch.cat([t, t], 1)),
        "expected (R, K) and (N, R) of one rank R, found (4, 128) and (128, 8)",
    ),
    "wrong base": (
        changed("lora_A.weight", lambda t: torch.cat([t, t], 1)),
        "made for another base: expected a linear of 256 in and 128 out features, the model's is 128 in and 128 out",
    ),
    "missing alpha": (lambda s: drop(s, "alpha"), "1 of 5 modules have no alpha"),
    "NaN": (
        changed("lora_B.weight", poison(torch.nan)),
        "found NaN or infinity; found transformer_blocks.0.attn.to_q.lora_B.weight",
    ),
    "infinity": (changed("lora_A.weight", poison(torch.inf)), "expected finite numbers"),
    "NaN alpha": (changed("alpha", lambda t: t * torch.nan), "expected finite numbers"),
    "alpha of nothing": (changed("alpha", lambda t: t * 0), "expected one alpha other than 0"),
    "alphas": (changed("alpha", lambda t: torch.stack([t, t])), "expected one alpha other than 0"),
    "twice": (
        lambda s: s.update({f"{Q.removeprefix('transformer.')}.lora_A.weight": torch.zeros(4, 128)}),
        "expected every module once",
    ),
    "DoRA": (lambda s: s.update({f"{Q}.lora_magnitude_vector": torch.ones(128)}), "is a DoRA"),
    "odd bias": (lambda s: s.update({f"{Q}.lora_B.bias": torch.ones(3)}), "expected no .lora_B.bias or one per output"),
    "another tool's": (lambda s: s.update({"blocks_0_q.hada_w1": torch.ones(3)}), "found blocks_0_q.hada_w1"),
}


@pytest.mark.parametrize("switchable", [False, True])
def test_bad_files_are_one_clear_error_and_the_model_is_untouched(tmp_path: Path, switchable: bool) -> None:
    pipe = tiny_pipe()
    save_lora(pipe.transformer, tmp_path, alpha=2.0)
    good, before = load_file(tmp_path / FILE), {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    scheduler, drawn = pipe.scheduler, picture(pipe)
    for spoil, said in BAD.values():
        state = {key: tensor.clone() for key, tensor in good.items()}
        spoil(state)
        save_file(state, tmp_path / FILE)
        stack = Stack(pipe).distill(str(tmp_path), switchable=switchable, steps=4, shift=2.0)
        with pytest.raises(StackError) as error:
            stack.apply()
        assert said in str(error.value) and "\n" not in str(error.value)
        assert str(error.value).startswith(("pytorch_lora", "cannot read"))
        assert not stack.applied and pipe.scheduler is scheduler
        after = pipe.transformer.state_dict()
        assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert torch.equal(picture(pipe), drawn)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(StackError, match=r"cannot read x\.safetensors as safetensors"):
        read_lora(tmp_path / "x.safetensors")
    save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(StackError, match="holds no tensors"):
        read_lora(tmp_path / "x.safetensors")


def test_alpha_is_the_files_own_or_the_headers_or_the_cards(tmp_path: Path) -> None:
    denoiser = tiny_denoiser()
    path = tmp_path / FILE

    def scalings(alpha: float | None = None) -> set[float]:
        return {update.scaling for update in updates(read_lora(path), denoiser, alpha=alpha).values()}

    save_lora(denoiser, tmp_path)
    assert scalings() == {1.0} and scalings(alpha=2.0) == {0.5} and scalings(alpha=0) == {1.0}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "r": 4})})
    assert scalings() == {2.0}
    save_lora(denoiser, tmp_path, alpha=1.0)
    assert scalings() == {0.25} and scalings(alpha=2.0) == {0.5}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps({"transformer.use_rslora": True})})
    with pytest.raises(StackError, match="scaling of its own per module"):
        read_lora(path)


def test_several_ranks_need_an_alpha(tmp_path: Path) -> None:
    denoiser = tiny_denoiser()
    save_lora(denoiser, tmp_path, rank=4, targets=("attn.to_q",))
    state = load_file(tmp_path / FILE)
    save_lora(denoiser, tmp_path, rank=8, targets=("attn.to_v",))
    save_file(state | load_file(tmp_path / FILE), tmp_path / FILE)
    file = read_lora(tmp_path / FILE)
    with pytest.raises(StackError, match="no alpha and ranks from 4 to 8: expected alpha in the card"):
        updates(file, denoiser)
    assert {u.scaling for u in updates(file, denoiser, alpha=0).values()} == {1.0}
    assert {u.scaling for u in updates(file, denoiser, alpha=8).values()} == {1.0, 2.0}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("[[", "lora_adapter_metadata is no JSON"),
        ("[1]", "lora_adapter_metadata: expected a table, got [1]"),
        ('{"transformer.lora_alpha": "a"}', "lora_alpha: expected a finite number"),
        ('{"transformer.lora_alpha": NaN}', "lora_alpha: expected a finite number"),
        ('{"transformer.lora_alpha": 1e30}', "lora_alpha: expected a finite number of at least -100000"),
        ('{"transformer.lora_alpha": true}', "lora_alpha: expected a finite number"),
    ],
)
def test_a_header_that_says_nonsense(tmp_path: Path, header: str, told: str) -> None:
    save_lora(tiny_denoiser(), tmp_path)
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, metadata={"lora_adapter_metadata": header})
    with pytest.raises(StackError) as error:
        read_lora(tmp_path / FILE)
    assert told in str(error.value)
