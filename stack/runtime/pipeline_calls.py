"""The calls of a pipeline that the package itself makes: prompts, seeds, and what else the user gives with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..compat.rules.compilers import SPLIT_TOKENS
from ..core.errors import StackError
from ..core.files import reason
from ..core.progress import ProgressLine
from ..core.validate import shown
from ..models.denoiser import all_denoisers
from ..models.parallel import ranks_of
from .call_arguments import PROMPT, STEPS, Call, CallParameters, named_arguments

EMBEDS = "prompt_embeds"
# What a measurement sets itself, and what to say instead.
OWN = {
    "generator": "give seed=",
    STEPS: "give Stack(pipe, steps=...)",
    "output_type": "leave it out",
    "return_dict": "leave it out",
    "num_images_per_prompt": "give more prompts",
    "num_videos_per_prompt": "give more prompts",
}
MEASURED_ALONE = (
    "cannot measure where processes share the tokens: expected one process with all of them; measure there, and "
    "give what was found to the stack here, as options or in a recipe"
)
REFUSALS = (ValueError, TypeError, LookupError)  # what pipelines raise over arguments
OTHER_REFUSALS = (RuntimeError, AttributeError)  # and over those in call= that they do not check


@dataclass(frozen=True)
class PipelineCalls:
    """Makes calls of a pipeline, or of a stack on it.

    Attributes:
        pipe: the pipeline, whose signature the calls keep to.
        more: arguments beside prompts, seed and steps: an image, a size, a number of frames, a negative prompt, the
            scale of an adapter. With `prompt_embeds` among them, or the argument that prompts go to, prompts are only
            names. Embeddings of one sample serve all samples of a call.

    Raises:
        StackError: a modular pipeline, or one of several processes that share the tokens.
    """

    pipe: Any
    more: Call | None = None

    def __post_init__(self) -> None:
        from diffusers import DiffusionPipeline, ModularPipeline

        if isinstance(self.pipe, ModularPipeline):
            raise StackError(f"cannot measure on a {type(self.pipe).__name__}: expected a DiffusionPipeline")
        denoisers = all_denoisers(self.pipe) if isinstance(self.pipe, DiffusionPipeline) else {}
        if not all(ranks_of(denoiser).alone for denoiser in denoisers.values()):
            raise StackError(f"{MEASURED_ALONE} ({SPLIT_TOKENS.tag})")

    def arguments(self, prompts: Sequence[Any], seed: int, steps: int, output: str = "pt") -> dict[str, Any]:
        """The arguments of one call: prompt i has the seed `seed` + i.

        Args:
            steps: of the denoiser; 0 where they are not known yet.

        Raises:
            StackError: an argument that the pipeline does not take or that is set here, or a prompt that is no text.
        """
        more = self._more(list(prompts))
        given = {name: _for_all(name, value, len(prompts)) for name, value in more.items()}
        place = CallParameters.of(self.pipe).takes_prompts
        if place not in more and EMBEDS not in more:
            given[place] = self._prompts(prompts, place)
        for name in ("sigmas", "timesteps"):
            if steps and more.get(name) is not None and len(more[name]) != steps:
                raise StackError(f"call= has {len(more[name])} {name}, planned are {steps} steps: {OWN[STEPS]}")
        steps = steps or 1
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        given |= {"generator": generators if len(prompts) > 1 else generators[0], STEPS: steps}
        given |= {"output_type": output, "return_dict": False}
        try:
            return named_arguments(self.pipe, (), given)
        except StackError as error:
            raise StackError(f"call= cannot be passed on: {error}") from None

    def make(
        self, run: Callable[..., Any], prompts: Sequence[Any], seed: int, steps: int, output: str = "pt"
    ) -> torch.Tensor:
        """What a call returns: pictures (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1], or latents.

        Args:
            run: the pipeline, or a stack on it.
            output: "pt" or "latent".

        Raises:
            StackError: see `arguments`; or the pipeline refuses what it is given.
        """
        given = self.arguments(prompts, seed, steps, output)
        with refusals(self.pipe, prompts, self._more(list(prompts)) if self.more else {}):
            return _tensor(run(**given)[0])

    def per_prompt(
        self,
        run: Callable[..., Any],
        prompts: Sequence[Any],
        seed: int,
        steps: int,
        bar: ProgressLine,
        phase: str,
        output: str = "pt",
    ) -> Iterator[torch.Tensor]:
        """One call per prompt, each with its own seed; all prompts are looked at before the first runs.

        Raises:
            StackError: see `make`.
        """
        self.check(prompts, steps)
        for number, prompt in enumerate(bar.track(prompts, phase)):
            yield self.make(run, [prompt], seed + number, steps, output)

    def check(self, prompts: Sequence[Any], steps: int) -> None:
        """Refuse what can be refused before anything runs.

        Raises:
            StackError: see `arguments`.
        """
        for prompt in prompts:
            self.arguments([prompt], 0, steps)

    def _more(self, prompts: list[Any]) -> Mapping[str, Any]:
        return given_with(self.more, prompts)

    def _prompts(self, prompts: Sequence[Any], place: str) -> Any:
        for prompt in prompts:
            if place == PROMPT and not isinstance(prompt, str):
                raise StackError(f"prompts must be texts, got {prompt!r}")
        return prompts[0] if place == PROMPT and len(prompts) == 1 else list(prompts)


def pipeline_for(asker: str, model: Any) -> Any:
    """The pipeline that `asker`, the call of a function, is given to draw pictures with.

    Raises:
        StackError: it is none, such as a model's name or a bare denoiser.
    """
    from diffusers import DiffusionPipeline, ModularPipeline

    if isinstance(model, (DiffusionPipeline, ModularPipeline)):
        return model
    got = "a bare denoiser" if isinstance(model, torch.nn.Module) or model is None else shown(model)
    hint = f"; try load({shown(model)})" if isinstance(model, str) else ""
    raise StackError(f"{asker} draws pictures: expected a pipeline, got {got}{hint}")


@contextmanager
def refusals(pipe: Any, prompts: Sequence[Any], more: Mapping[str, Any]) -> Iterator[None]:
    """What a pipeline raises over these prompts and over `more`, the other arguments given with them, as one line.

    Raises:
        StackError: the pipeline refuses what it is given.
    """
    try:
        yield
    except StackError:
        raise
    except (*REFUSALS, *OTHER_REFUSALS) as error:
        if isinstance(error, torch.OutOfMemoryError) or not (isinstance(error, REFUSALS) or more):
            raise
        asked, named = ", ".join(map(shown, prompts)), ", ".join(more) or "nothing"
        raise StackError(f"{type(pipe).__name__} refused {asked}: {reason(error)} (call= had {named})") from error


def given_with(call: Call | None, prompts: list[Any]) -> Mapping[str, Any]:
    """The arguments that `call` gives for these prompts.

    Raises:
        StackError: they are no arguments by name, or set something that is set here.
    """
    more = call(prompts) if callable(call) else call or {}
    if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
        raise StackError(f"call= must be arguments by name, or a function that gives them, got {more!r}")
    for name in more:
        if name in OWN:
            raise StackError(f"call= has {name}, which is set here: {OWN[name]}")
    return more


def _for_all(name: str, value: Any, count: int) -> Any:
    """Embeddings of one sample for as many as a call has."""
    one = isinstance(value, torch.Tensor) and "embeds" in name and value.ndim > 1 and len(value) == 1
    return value.repeat(count, *[1] * (value.ndim - 1)) if one else value


def _tensor(made: Any) -> torch.Tensor:
    """A pipeline's result as a tensor; some return (B, H, W, 3) arrays whatever they are asked for."""
    if isinstance(made, np.ndarray):
        made = torch.from_numpy(made)
        return made.permute(*range(made.ndim - 3), -1, -3, -2)
    if not isinstance(made, torch.Tensor):
        raise StackError(f"the pipeline returned {type(made).__name__}: expected a tensor for output_type='pt'")
    return made
