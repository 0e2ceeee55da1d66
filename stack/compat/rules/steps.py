"""Clashes of caches with schedules, samplers and distilled trajectories."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

FEWEST_STEPS = 12  # below this an interval schedule has no history to extrapolate from

FEW_STEPS = Rule(
    "few-steps",
    "a cache on a few-step schedule",
    "With 4 or 8 steps neighbouring features differ by far more than the error that a cache may have, and a forecast "
    "has few features to extrapolate from. Gates find no step to skip. What helps is a corrector, and well-placed full "
    "steps.",
    (
        Evidence(
            "behind a corrector, against the adapter uncached: 5 of 8 steps full 50.0 and 54.4 dB at 1.60x, 4 of 8 "
            "44.5 and 50.5 at 2.00x, 3 of 4 47.0 at 1.33x; as many plain steps at the same levels 3 to 8 dB less",
            "[benchmarks](benchmarks.md#defaults), `shapes-flux` and `shapes-video`, 16 prompts",
        ),
        Evidence(
            "without one 4 steps leave no history: one cached step of 4 is worth 1.33x at 31.8 dB, half the depth "
            "1.12x at 34.8",
            "cache-dit on Qwen-Image-Lightning",
        ),
        Evidence("no hits at 8 to 10 steps for three gates", "TeaCache, issue 6; reports on Wan 4-step adapters"),
        Evidence("shipped off below 20 steps", "unsloth's first-block cache"),
    ),
    "Three steps in five run in full, placed by noise level, and correct the error of the forecasts before "
    "them. Behind samplers that allow no corrector: half of the steps in full, the others the front and back third of "
    "the blocks. The most that this can save is computed and said before the run.",
    "plan",
    ("distill", "cache"),
    {"fewest_steps": FEWEST_STEPS},
)
DISTILLED_TRAJECTORY = Rule(
    "distilled-trajectory",
    "a cache tuned on the base, under a distilled adapter",
    "A distilled model takes longer, more curved steps than the one that published settings were found on.",
    (
        Evidence(
            "caches without training fall to a semantic score of 42.7 to 63.7 from 70.4 on a 20-step distilled video "
            "model",
            "DisCa, on HunyuanVideo with MeanFlow",
        ),
    ),
    "Noted in the plan until the cache is calibrated on the distilled stack (`calibrate(prompts, held_out)`).",
    "plan",
    ("distill", "cache"),
)
CALIBRATED_ELSEWHERE = Rule(
    "calibrated-elsewhere",
    "a schedule calibrated on another model, adapter or size",
    "The best full steps depend on the model, adapter, schedule and picture size.",
    (
        Evidence(
            "full steps found on one trajectory fit no other: from prompt to prompt alone 51.5 dB become 44.7 to 53.6",
            "[benchmarks](benchmarks.md#shapes-flux), SVD-Cache at 9 full steps",
        ),
    ),
    "The calibrated schedule and forecast are replaced by the cache's own, with as many full steps; the plan says "
    "what differs.",
    "plan",
    ("distill", "cache"),
)
CALIBRATED_FOR_OTHER_STEPS = Rule(
    "calibrated-for-other-steps",
    "a schedule calibrated for another number of steps",
    "A mask of step numbers means nothing on a schedule of another length or shift.",
    (
        Evidence(
            "12 full steps of 50 carried to 36, 28 and 20 steps by noise level: 50.3, 51.6 and 47.6 dB with 10 to 11 "
            "full; evenly spread 41.5, 40.8 and 50.2",
            "`shapes-flux`, two prompts",
        ),
        Evidence(
            "at 9 full steps the best of twelve random schedules has 40.0 dB, a calibrated one 50.4",
            "[methods](methods.md#calibration), `shapes-flux`",
        ),
    ),
    "Full steps stay at the noise levels where they were, and the error is estimated anew: `stack/compat/horizon.py`.",
    "plan",
    ("cache",),
)
MOST_EVEN = 0.3  # of the steps: the advice was measured at a fifth to a quarter; with 20 of 50 some even rows win
EVEN_STEPS = Rule(
    "even-steps",
    "few full steps, evenly spread",
    "Published schedules spread full steps evenly. On the models that ship most caches are then worse than fewer "
    "plain steps in the same time. What helps is to place the full steps, and a corrector.",
    (
        Evidence(
            "9 of 50 steps full: evenly 32.3 dB, 9 plain second-order steps 36.7, dense near the data and corrected "
            "47.9",
            "[benchmarks](benchmarks.md#shapes-flux), SVD-Cache",
        ),
        Evidence(
            "12 / 10 / 9 full: evenly 34.6 / 28.9 / 28.8 dB, as many plain second-order steps 37.1 / 36.1 / 35.5, "
            "dense near the data and corrected 49.5 / 49.3 / 46.5, calibrated 50.9 / 50.3 / 48.4",
            "[benchmarks](benchmarks.md#shapes-video), SVD-Cache",
        ),
        Evidence(
            "where the first steps decide what a picture shows even steps are better, 25.4 to 28.3 dB, than dense ones "
            "near the data, 15.7 to 15.9: where they belong is read off the noise levels",
            "[benchmarks](benchmarks.md#shapes-dit), SVD-Cache",
        ),
    ),
    "Published settings stay as they are, and the plan says what to try: `spread='by-noise', corrected=True` at once, "
    "or `calibrate(prompts, held_out)`.",
    "plan",
    ("cache",),
    {"most_even": MOST_EVEN},
)
SAMPLER_NOT_PLAIN = Rule(
    "sampler-not-plain",
    "a corrector, or a forecast of the clean sample, behind a sampler that adds noise or clips",
    "Both need the sampler as numbers: every latent a weighted sum of the estimates of the clean sample so far. The "
    "deterministic samplers of diffusers have them, with memory or two calls a step too. One that adds noise of its "
    "own, clips or thresholds its estimates has none.",
    (
        Evidence(
            "its corrector counts on a step being exact: 5.4 dB over a searched second-order control rest on that",
            "[benchmarks](benchmarks.md#shapes-flux), at 12 full steps",
        ),
    ),
    'A cache of hidden states runs without its corrector, site "x0" is refused; both by the sampler\'s name.',
    "plan",
    ("distill", "cache"),
)
IN_AND_OUT = "expected as many numbers out as in, or fewer, or a variance behind them"
MORE_THAN_THE_LATENT = Rule(
    "more-than-the-latent",
    "a denoiser that returns more than the latent",
    "Around the whole denoiser what is cached is added to the latent, and a corrector reads it off the output: what "
    "comes out has to be about the latent. Conditions that go in behind it (FLUX Control) and a variance that comes "
    "out behind it (DiT, PixArt) do not matter.",
    (Evidence("4 numbers out for each that goes in", "defaults of NucleusMoEImageTransformer2DModel"),),
    "Refused, with a site that works; a corrector is left out.",
    "plan",
    ("cache",),
)

STEPS = (
    FEW_STEPS,
    DISTILLED_TRAJECTORY,
    CALIBRATED_ELSEWHERE,
    CALIBRATED_FOR_OTHER_STEPS,
    EVEN_STEPS,
    SAMPLER_NOT_PLAIN,
    MORE_THAN_THE_LATENT,
)
