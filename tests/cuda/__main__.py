"""`python -m tests.cuda`: calls and waits of every preset's steps, with a CUDA build of torch and without a GPU."""

from __future__ import annotations

from collections import Counter

from stack.caching.methods import PRESETS

from .run import preset
from .test_fake_cuda import QUANTIZED, family_of, quantized


def main() -> None:
    print(f"{'preset':22}{'full':>8}{'cached':>8}  what a cached step waits for, most a step")
    for name in PRESETS:
        made = preset(name, family_of(name))
        cached = made.of("cached", "partial")
        calls = max((calls for calls, _ in cached), default=0)
        waits: Counter[str] = Counter()
        for _, each in cached:
            waits |= Counter(each)
        print(f"{name:22}{made.of('full')[-1][0]:8}{calls:8}  {dict(waits) or ''}", flush=True)
    for scheme, backend in (("", ""), *QUANTIZED):
        name = f"{scheme or 'bf16'} {backend}"
        print(f"{name:22}{quantized(scheme, backend):8}", flush=True)


if __name__ == "__main__":
    main()
