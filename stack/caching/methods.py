"""Every method as a row of choices.

A plain name is the best that is known for what the method caches, without calibration. What a paper has published is
the same name with "-published"; where it can be read in several ways, the others have "-published-" and a word.
"""

from __future__ import annotations

from typing import Any

from .fastcache.chi_square import ADAPTIVE
from .policy import Policy

REUSE, WHOLE = (0.0, 0.0), (1.0, 1.0)
READING = "-published"
# Full steps where the noise levels want them, each putting right the forecasts before it.
PLACED: dict[str, Any] = {"spread": "by-noise", "corrected": True}
# Forecasts over the real gaps in time: published ones reuse, or count steps, which suits even gaps only.
STRAIGHT: dict[str, Any] = {"order": 1, "gains": WHOLE, "basis": "newton", "coordinate": "time"}

PRESETS: dict[str, Policy] = {
    # SVD-Cache: arXiv 2601.07396. As published the residual of the principal part is reused; extrapolated it is better.
    "svd-published": Policy(),
    "svd-published-ema": Policy.of(site="per-block", level=0.9, order=0, coordinate="step"),
    "svd-published-swapped": Policy.of(site="per-block", level=0.1, order=0, coordinate="step"),
    "svd-published-blocks": Policy.of(site="per-block", smoothing=0.5),
    # Ours: data prediction with a corrector, on the steps of the model's own schedule.
    "predictor-corrector": Policy.of(site="x0", gains=WHOLE, **PLACED),
    # FORA: arXiv 2407.01425. The same at the last hidden state is ours.
    "fora-published": Policy.of(site="per-module", order=0, gains=REUSE, interval=3, warmup=1),
    "reuse": Policy.of(order=0, gains=REUSE, **PLACED),
    # TaylorSeer: arXiv 2503.06923; HiCache: arXiv 2508.16984; FreqCa: arXiv 2510.08669.
    "taylorseer-published": Policy.of(site="per-module", order=2, gains=WHOLE, basis="taylor", coordinate="step"),
    "taylorseer-lite-published": Policy.of(order=2, gains=WHOLE, basis="taylor", coordinate="step"),
    "hicache-published": Policy.of(site="per-module", order=2, gains=WHOLE, basis="hermite", coordinate="step"),
    "freqca-published": Policy.of(order=2, gains=(0.0, 1.0), basis="hermite", coordinate="step", split="band"),
    # First-block cache (ParaAttention) and DBCache (cache-dit).
    "first-block-published": Policy.of(
        site="residual", front=1, order=0, gains=REUSE, gate="prefix", threshold=0.08, warmup=1
    ),
    "dbcache-published": Policy.of(
        site="residual", front=2, back=1, order=0, gains=REUSE, gate="prefix", threshold=0.08, warmup=8
    ),
    "dbcache-taylor-published": Policy.of(
        site="residual", front=1, gains=WHOLE, basis="taylor", coordinate="step", gate="prefix", threshold=0.2, warmup=8
    ),
    # TeaCache: arXiv 2411.19108; MagCache: arXiv 2506.09045; SpeCa: arXiv 2509.11628.
    "teacache-published": Policy.of(site="residual", order=0, gains=REUSE, gate="polynomial", threshold=0.4),
    "magcache-published": Policy.of(site="residual", order=0, gains=REUSE, gate="magnitude", threshold=0.06, longest=3),
    # Drafts that are checked cost more than as many plain steps here, whatever is forecast: as published only.
    "speca-published": Policy.of(
        back=1, order=2, gains=WHOLE, basis="taylor", coordinate="step", gate="draft", longest=8,
        accept=(0.3, 0.3, 0.02),
    ),
    # EasyCache as published for HunyuanVideo (arXiv 2507.02860); RFC (arXiv 2602.19506) with a threshold of ours.
    "easycache-published": Policy.of(site="whole-model", order=0, gains=REUSE, gate="sum", threshold=0.025, warmup=5),
    "rfc-published": Policy.of(
        site="relational", order=2, gains=WHOLE, basis="taylor", coordinate="step", gate="sum", threshold=0.3, warmup=3
    ),
    # PAB: arXiv 2408.12588.
    "pab-published": Policy.of(site="attention", order=0, gains=REUSE, interval=2, warmup=6),
    # FastCache: arXiv 2505.20353, and each of its modules alone. Ours is the gate with nothing fitted, at a limit
    # chosen on other pictures than are measured.
    "fastcache": Policy.of(site="fastcache", approximation="residual", order=0, threshold=0.03, parts=("gate",)),
    "fastcache-published": Policy.of(site="fastcache", order=0, threshold=0.05, adaptive=ADAPTIVE),
    "fastcache-published-gate": Policy.of(
        site="fastcache", order=0, threshold=0.05, adaptive=ADAPTIVE, parts=("gate",)
    ),
    "fastcache-published-tokens": Policy.of(site="fastcache", order=0, parts=("tokens",)),
    "fastcache-published-merge": Policy.of(site="fastcache", order=0, parts=("merge",)),
    # Token-wise: ToCa (arXiv 2410.05317) as published for FLUX, DuCa (arXiv 2412.18911) as for HunyuanVideo (random
    # tokens) and for DiT with DDIM.
    "toca-published": Policy.of(site="tokens", order=0, gains=REUSE, interval=4, cycle="c", budget="flux"),
    "duca-published": Policy.of(site="tokens", order=0, gains=REUSE, interval=5, cycle="ca", budget="flux"),
    "duca-values-published": Policy.of(
        site="tokens", order=0, gains=REUSE, interval=5, cycle="ca", budget="flux", select="values"
    ),
    "duca-dit-published": Policy.of(
        site="tokens", order=0, gains=REUSE, interval=3, warmup=1, cycle="ca", pace="dit", ratio=0.05,
        budget="dit-ddim", grid=(2, 0.8),
    ),
}  # fmt: skip


def is_reading(name: str) -> bool:
    """Whether a preset is what a paper has published."""
    return READING in name


def unlike_published(name: str) -> str:
    """What a plain name has of its own, in words for `explain()`; "" where nothing is published under it."""
    if name + READING not in PRESETS:
        return ""
    own = PRESETS[name].differing(PRESETS[name + READING])
    said = ", ".join(f"{option}={value!r}" for option, value in own.items())
    return f"unlike {name}{READING}: {said}" if said else ""


def _improved(name: str, **choices: Any) -> Policy:
    """A published reading with other choices."""
    return PRESETS[name + READING].changed(**choices)


PRESETS |= {
    "svd": _improved("svd", gains=WHOLE, **PLACED),
    "fora": _improved("fora", interval=7, warmup=3, **PLACED),
    "taylorseer": _improved("taylorseer", **STRAIGHT, **PLACED),
    "taylorseer-lite": _improved("taylorseer-lite", **STRAIGHT, **PLACED),
    "hicache": _improved("hicache", **STRAIGHT, **PLACED),
    "freqca": _improved("freqca", **STRAIGHT, **PLACED),
    "first-block": _improved("first-block", **STRAIGHT, corrected=True),
    "dbcache": _improved("dbcache", **STRAIGHT, corrected=True),
    "dbcache-taylor": _improved("dbcache-taylor", **STRAIGHT, corrected=True),
    "teacache": _improved("teacache", **STRAIGHT, corrected=True, threshold=0.2),
    "magcache": _improved("magcache", **STRAIGHT, corrected=True),
    "rfc": _improved("rfc", **STRAIGHT, corrected=True),
    "easycache": _improved("easycache", **STRAIGHT),
    "pab": _improved("pab", corrected=True),
    "toca": _improved("toca", **PLACED),
    "duca": _improved("duca", **PLACED),
    "duca-values": _improved("duca-values", **PLACED),
    "duca-dit": _improved("duca-dit", **PLACED),
}
