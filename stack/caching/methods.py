"""Every published method as a row of choices."""

from __future__ import annotations

from .fastcache.chi_square import ADAPTIVE
from .policy import Policy

REUSE, WHOLE = (0.0, 0.0), (1.0, 1.0)

PRESETS: dict[str, Policy] = {
    # SVD-Cache: arXiv 2601.07396.
    "svd": Policy(),
    "svd-printed": Policy.of(site="per-block", level=0.9, order=0, coordinate="step"),
    "svd-swapped": Policy.of(site="per-block", level=0.1, order=0, coordinate="step"),
    "svd-blocks": Policy.of(site="per-block", smoothing=0.5),
    # Ours: data prediction with a corrector, on the steps of the model's own schedule.
    "predictor-corrector": Policy.of(site="x0", gains=WHOLE, corrected=True, schedule_power=2.0),
    # FORA: arXiv 2407.01425. The same at the last hidden state is ours.
    "fora": Policy.of(site="per-module", order=0, gains=REUSE, interval=3, warmup=1),
    "reuse": Policy.of(order=0, gains=REUSE),
    # TaylorSeer: arXiv 2503.06923; HiCache: arXiv 2508.16984; FreqCa: arXiv 2510.08669.
    "taylorseer": Policy.of(site="per-module", order=2, gains=WHOLE, basis="taylor", coordinate="step"),
    "taylorseer-lite": Policy.of(order=2, gains=WHOLE, basis="taylor", coordinate="step"),
    "hicache": Policy.of(site="per-module", order=2, gains=WHOLE, basis="hermite", coordinate="step"),
    "freqca": Policy.of(order=2, gains=(0.0, 1.0), basis="hermite", coordinate="step", split="band"),
    # First-block cache (ParaAttention) and DBCache (cache-dit).
    "first-block": Policy.of(site="residual", front=1, order=0, gains=REUSE, gate="prefix", threshold=0.08, warmup=1),
    "dbcache": Policy.of(
        site="residual", front=2, back=1, order=0, gains=REUSE, gate="prefix", threshold=0.08, warmup=8
    ),
    "dbcache-taylor": Policy.of(
        site="residual", front=1, gains=WHOLE, basis="taylor", coordinate="step", gate="prefix", threshold=0.2, warmup=8
    ),
    # TeaCache: arXiv 2411.19108; MagCache: arXiv 2506.09045; SpeCa: arXiv 2509.11628.
    "teacache": Policy.of(site="residual", order=0, gains=REUSE, gate="polynomial", threshold=0.4),
    "magcache": Policy.of(site="residual", order=0, gains=REUSE, gate="magnitude", threshold=0.06, longest=3),
    "speca": Policy.of(
        back=1, order=2, gains=WHOLE, basis="taylor", coordinate="step", gate="draft", longest=8,
        accept=(0.3, 0.3, 0.02),
    ),
    # EasyCache as published for HunyuanVideo (arXiv 2507.02860); RFC (arXiv 2602.19506) with a threshold of ours.
    "easycache": Policy.of(site="whole-model", order=0, gains=REUSE, gate="sum", threshold=0.025, warmup=5),
    "rfc": Policy.of(
        site="relational", order=2, gains=WHOLE, basis="taylor", coordinate="step", gate="sum", threshold=0.3, warmup=3
    ),
    # PAB: arXiv 2408.12588.
    "pab": Policy.of(site="attention", order=0, gains=REUSE, interval=2, warmup=6),
    # FastCache (arXiv 2505.20353), whole and module by module; approximation="static" is what it publishes.
    "fastcache": Policy.of(site="fastcache", approximation="delta", order=0, threshold=0.05, adaptive=ADAPTIVE),
    "fastcache-gate": Policy.of(
        site="fastcache", approximation="delta", order=0, threshold=0.05, adaptive=ADAPTIVE, parts=("gate",)
    ),
    "fastcache-tokens": Policy.of(site="fastcache", approximation="delta", order=0, parts=("tokens",)),
    "fastcache-merge": Policy.of(site="fastcache", order=0, parts=("merge",)),
    # Token-wise: ToCa (arXiv 2410.05317) as published for FLUX, DuCa (arXiv 2412.18911) as for HunyuanVideo (random
    # tokens) and for DiT with DDIM.
    "toca": Policy.of(site="tokens", order=0, gains=REUSE, interval=4, cycle="c", budget="flux"),
    "duca": Policy.of(site="tokens", order=0, gains=REUSE, interval=5, cycle="ca", budget="flux"),
    "duca-values": Policy.of(
        site="tokens", order=0, gains=REUSE, interval=5, cycle="ca", budget="flux", select="values"
    ),
    "duca-dit": Policy.of(
        site="tokens", order=0, gains=REUSE, interval=3, warmup=1, cycle="ca", pace="dit", ratio=0.05,
        budget="dit-ddim", grid=(2, 0.8),
    ),
}  # fmt: skip
