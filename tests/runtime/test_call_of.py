"""Arguments of every call, from options of the command line and from `call=`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiTPipeline, FluxImg2ImgPipeline, FluxPipeline, QwenImagePipeline, WanPipeline
from PIL import Image

from stack.core.errors import StackError
from stack.runtime.call_arguments import call_of, call_words


def bare(kind: type[Any]) -> Any:
    """A pipeline without its parts: its call's signature is all that is looked at."""
    return kind.__new__(kind)


def test_options_become_the_pipeline_s_own_arguments() -> None:
    given = call_of(bare(WanPipeline), "64x32", 9, 3.5, "blur", {"max_sequence_length": 64})
    assert given == {
        "width": 64, "height": 32, "num_frames": 9, "guidance_scale": 3.5, "negative_prompt": "blur",
        "max_sequence_length": 64,
    }  # fmt: skip
    assert call_of(bare(WanPipeline)) == {}


def test_arguments_by_name_win_over_options() -> None:
    assert call_of(bare(WanPipeline), guidance=3.5, call={"guidance_scale": 1.0}) == {"guidance_scale": 1.0}


def test_a_function_of_the_prompts_has_the_options_beside_it() -> None:
    given = call_of(bare(WanPipeline), guidance=3.5, call=lambda prompts: {"num_frames": len(prompts)})
    assert callable(given) and given(["a", "b"]) == {"guidance_scale": 3.5, "num_frames": 2}


def test_a_negative_prompt_without_effect_is_told() -> None:
    with pytest.warns(UserWarning, match="FluxPipeline ignores negative_prompt unless true_cfg_scale is above 1: try"):
        call_of(bare(FluxPipeline), negative_prompt="blur")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call_of(bare(FluxPipeline), negative_prompt="blur", call={"true_cfg_scale": 4.0})
        call_of(bare(QwenImagePipeline), negative_prompt="blur")  # 4 by default
        call_of(bare(WanPipeline), negative_prompt="blur")
        call_of(bare(FluxPipeline), negative_prompt="")


def test_images_are_read_from_their_files(tmp_path: Path) -> None:
    Image.new("RGBA", (6, 4), (255, 0, 0, 255)).save(tmp_path / "cat.png")
    path = str(tmp_path / "cat.png")
    given = call_of(bare(FluxImg2ImgPipeline), call={"image": path, "ip_adapter_image": [path], "strength": 0.5})
    assert isinstance(given, dict) and given["image"].size == (6, 4) and given["image"].mode == "RGB"
    assert given["image"].getpixel((0, 0)) == (255, 0, 0) and given["ip_adapter_image"][0].size == (6, 4)
    assert call_words(given) == {"image": "Image", "ip_adapter_image": "list", "strength": 0.5}
    (tmp_path / "cat.txt").write_text("no image")
    for name in ("cat.txt", "gone.png"):
        with pytest.raises(StackError, match=r"^image: expected the file of an image, got '.*"):
            call_of(bare(FluxImg2ImgPipeline), call={"image": str(tmp_path / name)})


def test_what_a_pipeline_does_not_take_is_refused() -> None:
    with pytest.raises(StackError, match="DiTPipeline takes no negative_prompt: expected no negative prompt, got 'x'"):
        call_of(bare(DiTPipeline), negative_prompt="x")
    with pytest.raises(StackError, match="call= must be arguments by name, or a function that gives them, got 3"):
        call_of(bare(DiTPipeline), call=3)  # type: ignore[arg-type]
