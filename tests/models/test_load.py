from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stack import Stack, StackError
from stack.loading import device_of, load


def test_unknown_names() -> None:
    with pytest.raises(
        StackError, match=r"unknown model 'shapes-fux': expected one of shapes-flux, shapes-flux-128, shapes-dit,"
    ):
        load("shapes-fux")


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"expected a folder with model_index\.json"):
        load(str(tmp_path))


def test_a_folder_whose_index_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline", "_diffusers_version": "0.42.1"}')
    with pytest.raises(StackError, match="cannot load"):
        load(str(tmp_path))


def test_a_hub_id_without_a_hub() -> None:
    with pytest.raises(StackError, match="cannot load 'nobody/nothing'"):
        load("nobody/nothing")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps"])
def test_devices_that_are_not_here(name: str) -> None:
    with pytest.raises(StackError, match="expected cpu"):
        device_of(name)


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), "a string", 3])
def test_things_that_are_no_model(thing: object) -> None:
    with pytest.raises(StackError, match=r"cannot accelerate a \w+: expected "):
        Stack(thing)
