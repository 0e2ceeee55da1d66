"""Pipelines from a folder, by the command line: ten families and more without a line about any of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stack import Stack
from stack.cli import main
from stack.loading import load_pipeline
from stack.runtime.call_arguments import size_arguments

from .build import SAVED

STEPS = 8
RECIPES = {
    "blocks": '[quantize]\nscheme = "int8-weight"\nmin_features = 32\n[cache]\nmethod = "svd"\ninterval = 2\nwarmup = 2\n',
    "whole": '[quantize]\nscheme = "int8-weight"\nmin_features = 32\n[cache]\nmethod = "predictor-corrector"\ninterval = 2\nwarmup = 2\n',
}


@pytest.fixture(scope="module", params=SAVED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline, and a recipe beside it."""
    path = tmp_path_factory.mktemp(request.param)
    saved = SAVED[request.param]
    saved.make().save_pretrained(path / "model")
    (path / "mine.toml").write_text(f'name = "mine"\nsteps = {STEPS}\n{RECIPES[saved.recipe]}')
    return path
