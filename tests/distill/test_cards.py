"""The schema: every shipped card, and what a card may not be."""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import pytest

from stack import StackError
from stack.distill.card import RECALLED, Card, tag
from stack.distill.find import cards_in, find_card, shipped_folder
from stack.distill.listed import scheduler_of
from stack.distill.listing import COLUMNS, markdown, rewritten, row
from stack.distill.parse import parse_card

CARDS = cards_in(shipped_folder())
ROOT = Path(__file__).parents[2]
GOOD = """
base = ["shapes-flux"]
family = "flux"
steps = 4
[weights]
scale = 0.5
[weights.files]
transformer = "x.safetensors"
[schedule]
kind = "sigmas"
sigmas = [1.0, 0.75, 0.5, 0.25]
[guidance]
kind = "none"
[licence]
weights = "Apache-2.0"
[sources]
weights = "[run] trained here"
steps = "[run] trained here"
schedule = "[run] trained here"
guidance = "[run] trained here"
licence = "[run] trained here"
"""


def test_at_least_25_public_adapters() -> None:
    public = [card.model or (card.weights and (card.weights.repo, *card.weights.files.values())) for card in CARDS]
    assert len(set(public)) >= 25
    count = sum(bool(card.model or (card.weights and card.weights.repo)) for card in CARDS)
    assert f"{count} cards of public few-step adapters" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_fact_of_a_shipped_card_has_a_source_or_is_called_doubtful(card: Card) -> None:
    recalled = {fact for fact, source in card.sources.items() if tag(source) in RECALLED}
    unsourced = {fact for fact in card.facts if fact not in card.sources}
    assert unsourced <= {"licence"}, "only a licence may be unknown"
    assert ("licence" in unsourced) == (not card.licence)
    assert card.verified == (not recalled and not unsourced)
    assert card.steps and card.description
    if card.weights:
        assert card.base and all(file.endswith(".safetensors") for file in card.weights.files.values())
        ours = all((shipped_folder() / file).is_file() for file in card.weights.files.values())
        assert ours if not card.weights.repo else card.weights.repo.count("/") == 1


@pytest.mark.parametrize("card", [c for c in CARDS if c.pipeline], ids=lambda card: card.name)
def test_what_a_card_passes_is_what_its_pipeline_takes(card: Card) -> None:
    if issubclass(getattr(diffusers, card.pipeline), diffusers.ModularPipeline):
        # What it takes is what its blocks take. Stacks are made over its denoiser, which has no calls to correct.
        assert not (card.call or card.second_call)
        return
    known = set(inspect.signature(getattr(diffusers, card.pipeline).__call__).parameters)
    assert {*card.call, *card.second_call} <= known
    if card.guidance.value is not None:
        assert card.guidance.name in known
    if card.weights:
        components = set(inspect.signature(getattr(diffusers, card.pipeline).__init__).parameters)
        assert set(card.weights.files) <= components


@pytest.mark.parametrize("card", [c for c in CARDS if c.scheduler.sampler != "custom"], ids=lambda card: card.name)
def test_the_scheduler_of_a_shipped_card_can_be_built(card: Card) -> None:
    base = diffusers.DDIMScheduler()
    scheduler = scheduler_of(card, base, card.steps)
    assert (scheduler is None) == (not card.scheduler.name)
    if scheduler is not None:
        assert isinstance(scheduler, getattr(diffusers, card.scheduler.name))
        assert {k: scheduler.config[k] for k in card.scheduler.overrides} == dict(card.scheduler.overrides)


def test_a_good_card(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("verified = true\n" + GOOD)
    for name in (str(tmp_path / "mine.toml"), str(tmp_path)):
        card = find_card(name)
        assert card.name == "mine" and card.verified and card.weights is not None and card.weights.scale == 0.5
        assert card.sigmas() == (1.0, 0.75, 0.5, 0.25)
        assert (card.scheduler.name, card.scheduler.sampler) == ("FlowMatchEulerDiscreteScheduler", "euler")


BAD = {
    "no toml": ("steps = 4", "steps =", "is not valid TOML"),
    "no steps": ("steps = 4\n", "", "expected steps"),
    "steps not a number": (
        "steps = 4",
        'steps = "four"',
        "steps: expected a whole number of at least 0 and at most 10000, got 'four'",
    ),
    "true is no number": ("scale = 0.5", "scale = true", "weights.scale: expected a finite number, got True"),
    "unknown entry": ("steps = 4", "steps = 4\ncolour = 1", "unknown entry of the card 'colour'"),
    "unknown entry below": ("scale = 0.5", "skale = 0.5", "unknown entry of weights 'skale': did you mean 'scale'?"),
    "both kinds": ("steps = 4", 'steps = 4\nmodel = "a/b"', "expected either [weights] of a LoRA or model"),
    "no file": ('transformer = "x.safetensors"\n', "", "expected [weights.files]"),
    "steps and sigmas": ("steps = 4", "steps = 5", "4 noise levels are 4 steps, no others; got 5"),
    "range and sigmas": ("steps = 4", "steps = 4\nmost = 8", "4 noise levels are 4 steps"),
    "outside its range": ("steps = 4", "steps = 4\nfewest = 6", "4 steps are not within 6 to 4"),
    "two schedules": ("[guidance]", "shift = 3.0\n[guidance]", "schedule of kind 'sigmas' expects sigmas, got"),
    "words for sigmas": ("0.75, 0.5", '"a", 0.5', "schedule.sigmas[1]: expected a finite number, got 'a'"),
    "rising sigmas": ("0.75, 0.5", "0.5, 0.75", "a schedule must fall"),
    "guidance": ('kind = "none"', 'kind = "strong"', "unknown kind of guidance 'strong'"),
    "sampler": (
        "[guidance]",
        '[scheduler]\nclass = "FlowMatchLCMScheduler"\nsampler = "euler"\n[guidance]',
        "FlowMatchLCMScheduler is sampler 'lcm', the card says 'euler'",
    ),
    "scheduler": (
        "[guidance]",
        '[scheduler]\nclass = "MyScheduler"\nsampler = "euler"\n[guidance]',
        "unknown scheduler class of sampler 'euler' 'MyScheduler'",
    ),
    "tag": ('licence = "[run]', 'licence = "[heard]', "unknown evidence tag 'heard'"),
    "verified by memory": ('licence = "[run]', 'licence = "[mem]', "says verified, but these are not: licence"),
    "verified without source": ('licence = "[run] trained here"\n', "", "says verified, but these are not: licence"),
}


@pytest.mark.parametrize(("old", "new", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_card_is_one_clear_error(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    text = ("verified = true\n" + GOOD).replace(old, new)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(StackError) as error:
        find_card(str(tmp_path / "mine.toml"))
    assert said in str(error.value) and str(error.value).startswith("card mine")


def test_what_is_no_adapter(tmp_path: Path) -> None:
    for name, said in (
        ("turbo-9", "unknown adapter 'turbo-9'"),
        ("", "unknown adapter ''"),
        (str(tmp_path), "found 0"),
        (str(tmp_path / "x.safetensors"), "no adapter weights at"),
        (str(tmp_path / "x.toml"), "unknown adapter"),
    ):
        with pytest.raises(StackError, match=said):
            find_card(name)
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "b.toml").write_text(GOOD)
    with pytest.raises(StackError, match=r"2 \.toml files"):
        find_card(str(tmp_path))
    with pytest.raises(StackError, match="no folder of adapter cards"):
        cards_in(tmp_path / "nowhere")


def test_a_scheduler_setting_nobody_knows() -> None:
    card = parse_card(
        {
            "model": "a/b",
            "steps": 4,
            "scheduler": {"class": "DDIMScheduler", "sampler": "ddim", "overrides": {"shft": 1}},
        },
        "odd",
    )
    with pytest.raises(StackError, match="card odd: DDIMScheduler knows no shft"):
        scheduler_of(card, diffusers.DDIMScheduler(), 4)


def test_the_table_of_the_documentation_is_the_cards() -> None:
    text = (ROOT / "docs" / "adapters.md").read_text()
    assert rewritten(text, CARDS) == text, "write it anew: ditstack adapters --write docs/adapters.md"
    assert markdown(CARDS) in text


def test_only_the_table_of_a_page_is_written_anew() -> None:
    page = "before\n\n| adapter | class |\n| --- | --- |\n| x | y |\n\nafter\n"
    assert rewritten(page, CARDS[:2]) == f"before\n\n{markdown(CARDS[:2])}\n\nafter\n"
    with pytest.raises(StackError, match=r"expected a page with one table that .* found 0"):
        rewritten("before\n", CARDS)


def test_the_row_of_a_card_names_its_class_its_sizes_and_why_it_cannot_be_used() -> None:
    rows = {card.name: dict(zip(COLUMNS, row(card), strict=True)) for card in CARDS}
    wan = rows["wan22-i2v-lightx2v-4"]
    assert wan["class"] == "WanTransformer3DModel (num_layers 40, in_channels 36, 2 denoisers)"
    assert (wan["steps"], wan["schedule"], wan["usable"]) == ("4", "dmd", "yes")
    edit = rows["qwen-image-edit-lightning-4"]["class"]
    assert edit == "QwenImageTransformer2DModel (in QwenImageEditPipeline or QwenImageEditInpaintPipeline)"
    assert rows["tdd-sdxl"]["usable"] == "no: needs TDDScheduler of its authors, not in diffusers"
    assert sum(entry["usable"] == "yes" for entry in rows.values()) == 54
