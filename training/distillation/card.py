"""The card of a trained adapter: what it was trained for, so that it is used for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CARD = """\
# Trained by `python -m training.train_adapter {model} --steps {steps}`.
description = "{model} in {steps} steps, trained here"
base = ["{model}"]
family = "{family}"
steps = {steps}
verified = true

[weights.files]
transformer = "{file}"

[schedule]
kind = "sigmas"
sigmas = [{sigmas}]

[scheduler]
class = "FlowMatchEulerDiscreteScheduler"
sampler = "euler"

[guidance]
kind = "none"

[licence]
weights = "Apache-2.0"
base = "Apache-2.0"

[sources]
weights = "[run] trained here"
steps = "[run] trained here"
schedule = "[run] {steps} of the base's own {of} noise levels"
guidance = "[run] the base has none"
licence = "[run] ours"
"""


def write_card(weights: Path, model: str, family: str, sigmas: Sequence[float], of: int) -> Path:
    """Write the card beside the weights; returns its path.

    Args:
        sigmas: of the student's steps, without the final 0.
        of: steps of the teacher.
    """
    levels = ", ".join(f"{sigma:.6g}" for sigma in sigmas)
    steps, card = len(sigmas), weights.with_suffix(".toml")
    card.write_text(CARD.format(model=model, family=family, steps=steps, file=weights.name, sigmas=levels, of=of))
    return card
