"""Caps on the device's memory: kept, kept by moving what is cold, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.cap import Offload, offload
from stack.caching.memory import state_size
from stack.caching.methods import PRESETS
from stack.core.facts import Machine
from stack.core.plan import explain, make_plan

from ..conftest import tiny_denoiser
from ..test_plan import FACTS

SHAPES_FLUX = replace(FACTS, lists=(2, 4), latent=(12, 12))
CUDA = Machine("cuda", "made up")
DEV = replace(
    FACTS, machine=CUDA, dtype="bfloat16", blocks=57, width=3072, image_tokens=4096, text_tokens=512, lists=(19, 38)
)  # FLUX.1-dev at 1,024 x 1,024
TAYLOR = 3 * 4608 * 3072 * 2  # bytes of a module: three differences of text and image


def test_a_cap_is_kept_by_the_plan() -> None:
    """svd on shapes-flux: two tensors of 1,024 x 192 in fp32 and a basis of at most 192 x 192."""
    needed = 2 * 1024 * 192 * 4 + 192 * 192 * 4
    make_plan(SHAPES_FLUX, [Cache("svd-published", max_bytes=needed)])
    with pytest.raises(StackError) as refused:
        make_plan(SHAPES_FLUX, [Cache("svd-published", max_bytes=needed - 1)])
    assert str(refused.value) == (
        "cache: 1.6 MB of state and at most 0.1 MB of bases per picture and guidance branch, max_bytes allows 1.7 MB; "
        "try: state_dtype='bfloat16' or order=0"
    )


def test_a_cap_names_only_what_keeps_it() -> None:
    def tries(cap: int) -> str:
        with pytest.raises(StackError) as refused:
            make_plan(SHAPES_FLUX, [Cache("taylorseer-published", max_bytes=cap)])
        return str(refused.value).partition("; try: ")[2]

    modules = 8 * 1040 * 192 * 4
    assert tries(2 * modules) == "state_dtype='bfloat16' or order=1 or order=0 or site='output'"
    assert tries(modules) == "order=0 or site='output'"
    assert tries(modules - 1) == "site='output'"
    assert tries(1) == f"max_bytes={3 * modules}"


def test_a_cap_on_what_nobody_knows_is_refused() -> None:
    with pytest.raises(StackError, match=r"not known before the run .*; try: max_bytes=0"):
        Stack(tiny_denoiser()).cache("svd-published", max_bytes=10**9).apply()


def test_what_does_not_fit_leaves_the_device() -> None:
    """76 modules; 22 and one in use are the most under 2 GB. Each of the first 38 has a feature per stream."""
    policy = replace(PRESETS["taylorseer-published"], max_bytes=2 * 10**9)
    assert offload(policy, DEV) == Offload(22, 54, 44, device=22 * TAYLOR, host=54 * TAYLOR, in_use=TAYLOR)
    assert offload(replace(policy, max_bytes=60 * TAYLOR), DEV) == Offload(
        59, 17, 2 * 38 + 21, device=59 * TAYLOR, host=17 * TAYLOR, in_use=TAYLOR
    )


def test_the_plan_says_what_leaves() -> None:
    plan = make_plan(DEV, [Cache("taylorseer-published", max_bytes=2 * 10**9)])
    (note,) = (f for f in plan.findings if f.what.startswith("state is split"))
    words = (
        "1868.6 MB on the device with 22 of 76 modules, 4586.5 MB in pinned host memory with 54, "
        "of which at most 84.9 MB are back at once"
    )
    assert note.note and note.what == f"state is split: {words}"
    text = explain(plan)
    assert f"[note] cache: {note.what} (max_bytes allows 2000.0 MB of 6455.0 MB;" in text
    assert f"6455.0 MB of state per picture and guidance branch: {words}" in text
    # Bases, 90 MB in all, stay; of 84.9 MB a block ten fit beside them, one of them for what is in use.
    assert "9 of 57 blocks" in explain(make_plan(DEV, [Cache("svd-published-blocks", max_bytes=10**9)]))


def test_other_findings_are_still_made() -> None:
    plan = make_plan(replace(DEV, steps=10), [Cache("taylorseer-published", max_bytes=2 * 10**9)])
    assert [(f.note, f.rule) for f in plan.findings] == [(True, ""), (False, "few-steps")]
    (cache,) = plan.passes()
    assert cache.policy.schedule.count == 6 and cache.policy.corrected and cache.policy.max_bytes == 2 * 10**9


def test_nothing_leaves_where_there_is_room_or_nowhere_to_go() -> None:
    policy = replace(PRESETS["taylorseer-published"], max_bytes=76 * TAYLOR)
    (note,) = make_plan(DEV, [Cache("taylorseer-published", max_bytes=76 * TAYLOR)]).findings
    assert offload(policy, DEV) is None and note.rule == "even-steps"
    tight = replace(policy, max_bytes=76 * TAYLOR - 1)
    assert offload(tight, DEV) == Offload(74, 2, 2 * 38 + 36, 74 * TAYLOR, 2 * TAYLOR, TAYLOR)
    assert offload(tight, replace(DEV, machine=FACTS.machine)) is None
    assert offload(replace(policy, max_bytes=0), DEV) is None


def test_a_cap_below_one_module_is_refused() -> None:
    def refused(cap: int) -> str:
        with pytest.raises(StackError) as error:
            make_plan(DEV, [Cache("taylorseer-published", max_bytes=cap)])
        return str(error.value)

    make_plan(DEV, [Cache("taylorseer-published", max_bytes=TAYLOR)])
    assert refused(TAYLOR - 1).endswith(
        "max_bytes allows 84.9 MB; 84.9 MB have to be on the device even with one module at a time; "
        "try: order=1 or order=0 or site='output'"
    )
    assert refused(1).endswith(f"; try: max_bytes={TAYLOR}")


@pytest.mark.parametrize(
    ("method", "cap"),
    [
        ("svd-published", 40 * 10**6),
        ("dbcache-taylor", 40 * 10**6),
        ("easycache-published", 10**6),
        ("toca-published", 10**9),
    ],
)
def test_one_feature_for_the_whole_model_is_not_divided(method: str, cap: int) -> None:
    facts = replace(DEV, latent=(64, 64))
    errors = []
    for machine in (CUDA, FACTS.machine):
        with pytest.raises(StackError, match="max_bytes allows") as refused:
            make_plan(replace(facts, machine=machine), [Cache(method, max_bytes=cap)])
        errors.append(str(refused.value))
    assert errors[0] == errors[1]


@given(
    st.sampled_from(
        [
            "taylorseer-published",
            "hicache-published",
            "fora-published",
            "pab-published",
            "rfc",
            "svd-published-blocks",
            "svd-published-ema",
        ]
    ),
    st.floats(0, 1.1),
    st.sampled_from(["", "bfloat16"]),
)
def test_a_split_keeps_the_cap_and_leaves_nothing_over(method: str, share: float, kept_in: str) -> None:
    facts = replace(SHAPES_FLUX, machine=CUDA)
    policy = replace(PRESETS[method], state_dtype=kept_in)
    size = state_size(policy, facts)
    assert size is not None
    cap = max(1, int(share * size.total))
    split = offload(replace(policy, max_bytes=cap), facts)
    if split is None:
        moved = sum(unit.bytes for unit in size.units)
        assert cap >= size.total or cap < size.total - moved + max(unit.bytes for unit in size.units)
        return
    assert split.device + split.in_use <= cap < size.total
    assert split.device + split.host == size.total and split.units + split.away == len(size.units)
    if split.away > 1:
        left = size.units[split.units + 1 :]
        assert split.device + size.units[split.units].bytes + max(unit.bytes for unit in left) > cap
