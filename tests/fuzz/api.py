"""Random sequences of what a user does with a stack, against a twin that never carried one.

`python -m tests.fuzz.api --count 2000 --seed 0` prints counts and the shortest failing sequences.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from stack import Stack, StackError
from stack.attention.dense_attn import DenseAttention
from stack.attention.sage_attn import SageAttention
from stack.attention.sparse_attn import SparseAttention
from stack.caching.cache import Cache
from stack.core.passes import Pass
from stack.quant.quantize import Quantize

from ..pipelines.matrix import same
from .api_users import KINDS, WEIGHTS, User

Op = tuple[str, Any]
PASSES: dict[str, Callable[[], Pass]] = {
    "int8": lambda: Quantize("int8", min_features=32),
    "int8-weight": lambda: Quantize("int8-weight", min_features=32),
    "sage": lambda: SageAttention(even_if_slower=True),
    "sparse": lambda: SparseAttention(0.5, even_if_slower=True),
    "dense": lambda: DenseAttention("torch"),
    **{n: (lambda name=n: Cache(name)) for n in ("svd", "fora", "taylorseer", "predictor-corrector", "easycache")},
    "svd often": lambda: Cache("svd", interval=3, warmup=1),
    "svd all": lambda: Cache("svd", interval=1),
    "budget": lambda: Cache("svd", max_error=0.05),
    "first-block": lambda: Cache("first-block"),
}  # fmt: skip
STEPS = (4, 8, 12, 14)  # below 12 no whole step is cached
OPTIONS: tuple[dict[str, Any], ...] = ({}, {}, {"steps": 8}, {"steps": 13}, {"strict": True}, {"max_error": 0.05})


class Mine(RuntimeError):
    """Raised by the user's own code."""


class Complaint(AssertionError):
    """What a stack did that it must not."""


def draw(rng: random.Random) -> list[Op]:
    """A sequence: the pipeline and the options of its stack, then three to nine steps."""
    ops: list[Op] = [("start", (rng.choice(KINDS), rng.randrange(len(OPTIONS)))), ("add", rng.choice(list(PASSES)))]
    return ops + [_draw_one(rng) for _ in range(rng.randint(3, 9))]


def _draw_one(rng: random.Random) -> Op:
    call = {"steps": rng.choice(STEPS), "prompt": rng.randrange(2)}
    name = rng.choice(
        ["call"] * 4 + ["pipe"] * 2 + ["second", "with", "raise", "copy", "apply", "undo", "look", "add"]
        + ["another"]
        + ["undo stage", "replace", "scheduler", "lora on", "lora off", "lora scale", "processor", "cast", "cache on"]
        + ["cache off", "fuse", "unfuse"]
    )  # fmt: skip
    arguments: dict[str, Callable[[], Any]] = {
        "add": lambda: rng.choice(list(PASSES)),
        "replace": lambda: rng.choice(list(PASSES)),
        "undo stage": lambda: rng.choice(["quantize", "sage_attn", "sparse_attn", "dense_attn", "cache"]),
        "scheduler": lambda: rng.randrange(4),
        "lora scale": lambda: rng.choice([0.0, 0.3, 2.0]),
        "processor": lambda: rng.random() < 0.4,
        "cast": lambda: rng.choice([(torch.bfloat16,), (torch.float32,), (torch.bfloat16, torch.float32)]),
        **dict.fromkeys(("call", "pipe", "second", "with", "raise", "copy"), lambda: call),
    }
    return name, arguments.get(name, lambda: None)()


class Trial:
    """A stack on a pipeline, and what is expected of it."""

    def __init__(self, kind: str, options: int):
        self.user = User(kind)
        self.options = OPTIONS[options]
        self.stack = Stack(self.user.tiny.pipe, **self.options)
        self.passes: dict[str, Pass] = {}
        self.tainted = False  # weights were changed under a rounded copy of them: no fresh stack is like this one
        self.partly = False  # a library has refused a change after it had begun: what it left behind stays
        self.ran: Counter[str] = Counter()

    def fresh(self) -> tuple[User, Stack]:
        """A new stack of the same passes on a twin with the same changes."""
        twin = User.twin(self.user)
        stack = Stack(twin.tiny.pipe, **self.options)
        for each in self.passes.values():
            stack.add(each)
        return twin, stack

    def do(self, name: str, argument: Any) -> None:
        """One step. A `StackError` is an answer; what else is raised goes on."""
        if name in ("call", "pipe", "second", "with"):
            self._compare(name, argument)
        elif name in _STEPS:
            try:
                _STEPS[name](self, argument)
                self.ran[name] += 1
            except StackError:
                self.ran[f"{name}: refused"] += 1
        elif self.user.may(name):
            self._change(name, argument)
        if not self.stack.applied:
            self.tainted = False

    def _change(self, name: str, argument: Any) -> None:
        rounded = self.stack.applied and "quantize" in self.passes
        try:
            self.user.change(name, argument)
        except Exception:
            if not rounded:
                raise
            self.ran[f"{name}: refused by its library over rounded linears"] += 1
            self.partly = True
            return
        self.ran[name] += 1
        self.tainted |= rounded and name in WEIGHTS

    def _compare(self, how: str, given: dict[str, Any]) -> None:
        """The output is that of a new stack that knows nothing of what went on before."""
        was_applied = self.stack.applied
        got, refused = self._run(how, self.user, self.stack, given, was_applied)
        if self.tainted:
            return
        twin, fresh = self.fresh()
        wanted, too = self._run(how, twin, fresh, given, was_applied)
        self.ran[f"{how}: refused" if refused else how] += 1
        if got is not None and wanted is not None:
            if not same(got, wanted):
                raise Complaint(f"{how}: another output than a fresh stack's")
            if how == "call" or was_applied:
                self._all_reported(how)
        elif got is None and wanted is not None:
            raise Complaint(f"{how}: refused what a fresh stack runs: {refused}")
        elif got is not None and (how != "pipe" or not self.stack.report().warnings):
            raise Complaint(f"{how}: ran what a fresh stack refuses: {too}")

    def _all_reported(self, how: str) -> None:
        records, calls = len(self.stack.report().steps), self.user.tiny.seen["denoiser"]
        if records != calls:
            raise Complaint(f"{how}: {records} of {calls} calls in the report")

    def _run(
        self, how: str, user: User, stack: Stack, given: dict[str, Any], applied: bool
    ) -> tuple[torch.Tensor | None, str]:
        """The output, or why it was refused."""
        try:
            if how == "with":
                with stack:
                    return user.call(stack, given), ""
            if applied:
                stack.apply()
            if how == "call":
                return user.call(stack, given), ""
            return user.call(user.second() if how == "second" else user.tiny.pipe, given), ""
        except StackError as error:
            return None, str(error)

    def finish(self) -> None:
        """Everything comes off, and what is left is what the twin is."""
        try:
            self.stack.undo()
        except StackError:
            # Refused for what the user put on later: that comes off first.
            for flag, off in (("lora on", "lora off"), ("cache on", "cache off"), ("fused", "unfuse")):
                if flag in self.user.flags:
                    self.user.change(off, None)
            self.stack.undo()
        twin = User.twin(self.user)
        for prompt in (0, 1):
            given = {"steps": 4, "prompt": prompt}
            if not same(self.user.call(None, given), twin.call(None, given)):
                raise Complaint("after undo(): another output than the twin's")
        _same_state(self.user.model, twin.model, {"_hf_peft_config_loaded", "peft_config"} if self.partly else set())


def _own(module: torch.nn.Module) -> set[str]:
    """Its attributes; diffusers' hooks leave a module's own method behind as one."""
    own = dict(vars(module))
    if getattr(own.get("forward"), "__func__", None) is type(module).forward:
        del own["forward"]
    return set(own)


def _same_state(model: Any, twin: Any, ignored: set[str]) -> None:
    mine, theirs = model.state_dict(), twin.state_dict()
    if list(mine) != list(theirs):
        raise Complaint("after undo(): other keys in the state dict than the twin's")
    if not all(same(value, theirs[key]) for key, value in mine.items()):
        raise Complaint("after undo(): other weights than the twin's")
    for name, module in model.named_modules():
        left = (_own(module) ^ _own(twin.get_submodule(name))) - ignored
        if left:
            raise Complaint(f"after undo(): attributes left or lost on a module: {', '.join(sorted(left))}")


def _add(trial: Trial, name: str) -> None:
    new = PASSES[name]()
    trial.stack.add(new)
    trial.passes[new.stage] = new


def _replace(trial: Trial, name: str) -> None:
    new = PASSES[name]()
    trial.stack.replace(new)
    trial.passes[new.stage] = new


def _undo_stage(trial: Trial, stage: str) -> None:
    trial.stack.undo(stage)
    trial.passes.pop(stage, None)


def _look(trial: Trial, _: Any) -> None:
    str(trial.stack.report())
    trial.stack.explain()


def _raise(trial: Trial, given: dict[str, Any]) -> None:
    """The user's own exception goes through, and nothing of the broken call is used later."""
    places = iter(range(100))

    def fail(*_: Any) -> None:
        if next(places) == given["steps"] // 2:
            raise Mine

    try:
        if trial.user.kind == "FluxPipeline":
            trial.user.call(trial.stack, {**given, "more": {"callback_on_step_end": lambda *_: fail() or {}}})
        else:  # a pipeline without callbacks
            handle = trial.user.model.register_forward_pre_hook(fail)
            try:
                trial.user.call(trial.stack, given)
            finally:
                handle.remove()
    except Mine:
        return
    raise Complaint("raise: the user's exception did not arrive")


def _copy(trial: Trial, given: dict[str, Any]) -> None:
    """A copy of the model is a plain model with the user's changes."""
    if "cache on" in trial.user.flags:  # the hooks of diffusers' own caches do not survive a copy
        return
    copied = User(trial.user.kind)
    copied.tiny.pipe.transformer = copy.deepcopy(trial.user.model)
    copied.tiny.pipe.vae = trial.user.tiny.pipe.vae  # it was cast with the model, and is no part of the copy
    for name, argument in trial.user.done:
        if name == "scheduler":
            copied.change(name, argument)
    got = copied.call(None, given)
    twin = User.twin(trial.user)
    twin.tiny.pipe.transformer = copy.deepcopy(twin.model)
    if not trial.tainted and not same(got, twin.call(None, given)):
        raise Complaint("copy: a copy of the model is not the plain model")


def _another(trial: Trial, _: Any) -> None:
    """A second stack on the model: refused beside the first, and gone without a trace where that one is off."""
    other = Stack(trial.user.tiny.pipe).cache("svd")
    try:
        other.apply()
    except StackError:
        return
    other.undo()
    if trial.stack.applied:
        raise Complaint("another: a second stack was put on the model")


_STEPS: dict[str, Callable[[Trial, Any], object]] = {
    "add": _add,
    "replace": _replace,
    "undo stage": _undo_stage,
    "apply": lambda trial, _: trial.stack.apply(),
    "undo": lambda trial, _: trial.stack.undo(),
    "look": _look,
    "raise": _raise,
    "copy": _copy,
    "another": _another,
}


def run(ops: list[Op], ran: Counter[str] | None = None) -> str:
    """What went wrong in a sequence, or ''."""
    (_, start), *rest = ops
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = Trial(*start)
            for name, argument in rest:
                trial.do(name, argument)
            trial.finish()
    except Complaint as complaint:
        return str(complaint)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if ran is not None:
        ran.update(trial.ran)
    return ""


def shortened(ops: list[Op]) -> list[Op]:
    """The sequence without the steps that it fails without just the same."""
    kind = kind_of(run(ops))
    index = len(ops) - 1
    while index > 0:
        shorter = ops[:index] + ops[index + 1 :]
        if kind_of(run(shorter)) == kind:
            ops = shorter
        index = min(index, len(ops)) - 1
    return ops


def kind_of(failure: str) -> str:
    """A failure without its figures."""
    return re.sub(r"[\d.]+", "#", failure)[:90]


def words(ops: list[Op]) -> str:
    """A sequence in one line."""
    (_, (kind, options)), *rest = ops
    steps = [name if argument is None else f"{name} {argument}" for name, argument in rest]
    return f"{kind}, Stack({OPTIONS[options]}): {'; '.join(steps)}"


def fuzz(count: int, seed: int, told: Callable[[str], None] = print) -> dict[str, tuple[str, list[Op]]]:
    """The first failing sequences by kind of failure."""
    failures: dict[str, tuple[str, list[Op]]] = {}
    ran: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    started = time.perf_counter()
    for number in range(count):
        ops = draw(random.Random(f"{seed}-{number}"))
        if not (failure := run(ops, ran)):
            continue
        kind = kind_of(failure)
        kinds[kind] += 1
        if kind not in failures or len(ops) < len(failures[kind][1]):
            failures[kind] = failure, ops
    failed = sum(kinds.values())
    told(f"{count} sequences from seed {seed}, {time.perf_counter() - started:.0f} s: {failed} failed")
    told("done: " + ", ".join(f"{name} {times}" for name, times in sorted(ran.items())))
    for kind, times in kinds.most_common():
        failures[kind] = failures[kind][0], shortened(failures[kind][1])
        told(f"{times} x {failures[kind][0]}\n    {words(failures[kind][1])}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    return 1 if fuzz(given.count, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
