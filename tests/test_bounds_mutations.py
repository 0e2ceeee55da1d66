"""Every bound is held to the code it speaks of: with the code broken as is said here, the named test fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stack.attention.maps import Grid, fewest, mass_map
from stack.attention.sage import rounded
from stack.caching.forecast import Forecast
from stack.caching.predictor import Predictor
from stack.quant.formats import pack_levels
from stack.quant.kernels.product import PLAIN
from stack.quant.kernels.rows import Rows, quantize_rows
from stack.quant.schemes import SCHEMES

from . import test_bounds_forecast as forecasts
from . import test_bounds_product as products
from . import test_bounds_rounding as rounding
from . import test_bounds_stack as stacks
from .attention import test_dropped_mass as sparse
from .attention import test_output_error as errors
from .attention import test_producers as producers
from .attention import test_sage as sage
from .caching import test_extrapolation as guards
from .compat.test_mutations import Mutation, Test, broken

VALUE = Predictor._value


def case(test: Callable[..., None], *values: Any) -> Test:
    """A property test on one example."""
    return lambda: test.hypothesis.inner_test(*values)  # type: ignore[attr-defined]


def truncated(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return (x.float() * inverse).trunc().to(torch.int8)


def coarse(x: torch.Tensor) -> Any:
    """Rows cut off to every eighth level."""
    values, step = quantize_rows(x)
    return Rows(values // 8 * 8, step)


def powers(forecast: Forecast, x: float, nodes: tuple[float, ...]) -> list[float]:
    """Taylor's weights for Newton's differences."""
    return [(x - nodes[0]) ** i for i in range(len(nodes))]


def without_growth(errors: list[float], gaps: list[float], lipschitz: float = 0.0) -> float:
    return sum(error * abs(gap) for error, gap in zip(errors, gaps, strict=True))


def averaged(out: torch.Tensor, lse: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> Any:
    return out.lerp_(v.mean(1, keepdim=True), 0.5)


def coarse_heads(x: torch.Tensor, block: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys cut off to every eighth level."""
    multiples, step = rounded(x, block, scale)
    return multiples // 8 * 8, step


def filled_with_zeros(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % sage.KEYS)) for x in (k, v))


MUTATIONS = {
    "4-bit levels one too high": Mutation(
        "stack.quant.formats", "pack_levels", lambda levels: pack_levels((levels + 1).clamp(max=15)),
        case(rounding.test_no_weight_is_off_by_more_than_the_bound, SCHEMES["nf4"], "uniform", 8, 64, 0),
    ),
    "rows cut off instead of rounded": Mutation(
        "stack.quant.kernels.rows", "round_to_int8", truncated,
        case(rounding.test_no_input_is_off_by_more_than_the_bound, "uniform", 8, 64, 0, torch.float32),
    ),
    "a kernel's 64 levels taken for 127": Mutation(
        "stack.quant.errors", "kernel_for", lambda machine: PLAIN,
        case(rounding.test_no_int8_weight_is_off_by_more_than_its_kernel_allows, "uniform", 8, 64, 0, False),
    ),
    "an estimate that forgets the inputs": Mutation(
        "stack.quant.errors", "row_levels", lambda scheme: torch.linspace(-1, 1, 10_001),
        lambda: rounding.test_outputs_of_gaussian_layers_are_off_by_about_the_estimate(SCHEMES["int8"], 128),
    ),
    "products of coarser rows": Mutation(
        "stack.quant.kernels.shared", "quantize_rows", coarse,
        case(
            products.test_the_int8_product_stays_within_its_bound,
            products.HERE, "uniform", "constant", 4, 65, 8, 0, "float32",
        ),
    ),
    "Newton's differences with Taylor's weights": Mutation(
        "stack.caching.predictor", "weights", powers,
        case(forecasts.test_a_forecast_of_bounded_curvature_and_noise, 2, 0.1, 0.3, 0.0, 3),
    ),
    "gains that an amplification forgets": Mutation(
        "stack.caching.amplification", "replace", lambda forecast, **_: Forecast(forecast.order, (0.0, 0.0)),
        case(
            forecasts.test_errors_of_full_steps_come_through_at_most_as_often_as_explain_says,
            1, "newton", (1.0, 1.0), 1.0, 0,
        ),
    ),
    "an average that lags twice as far": Mutation(
        Predictor, "_value", lambda predictor, feature: 2 * VALUE(predictor, feature) - feature,
        case(forecasts.test_the_average_of_a_line_reaches_its_bound, 0.5, 1.0, 1.0),
    ),
    "gains that are not halved": Mutation(
        Predictor, "_shape", lambda predictor, difference, gain, variance: 2 * difference,
        case(forecasts.test_a_shrunken_forecast_of_bounded_slope_curvature_and_noise, 1, 0.5, 3.0, 0.3, 0.0, 3),
    ),
    "a basis of one direction": Mutation(
        "stack.compat.subspace", "rank_by_energy", lambda eigenvalues, energy: 1,
        case(forecasts.test_the_principal_basis_of_a_feature_leaves_the_truncation_error, "even", 0.9, 0),
    ),
    "an eighth of the angle": Mutation(
        "stack.caching.bases", "sin_theta_bound", lambda noise, gap: noise / (4 * gap),
        case(forecasts.test_a_basis_turns_no_further_than_its_file_says, 0.1, 0.5, "across the gap", 0),
    ),
    "no shrinkage": Mutation(
        "stack.compat.noise", "wiener", lambda power, *_: torch.ones_like(power),
        forecasts.test_gains_of_shrunken_differences_lose_no_more_than_reuse_or_the_plain_forecast,
    ),
    "the mean of all values blended in": Mutation(
        "stack.attention.kernels", "add_remainder", averaged,
        case(sparse.test_error_of_what_runs_is_within_the_bound, 0, 30.0, 1e3, 0.9, False, "pooled", "share"),
    ),
    "dropped blocks whose means are not added": Mutation(
        "stack.attention.kernels", "add_remainder", lambda out, *_: out,
        case(errors.test_sampled_outputs_are_within_the_budget, Grid(4, 90, 4, 1), 0, 1.0, 1.0, False, 0.3),
    ),
    "half as much error again as the budget": Mutation(
        "stack.attention.output_error", "fewest",
        lambda losses, counts, most, grid: fewest(losses, counts, 1.5 * most, grid),
        case(errors.test_sampled_outputs_are_within_the_budget, Grid(4, 90, 4, 1), 0, 1.0, 1.0, False, 0.3),
    ),
    "half as much mass again as the budget": Mutation(
        "tests.attention.test_producers", "mass_map", lambda shares, grid, most: mass_map(shares, grid, 1.5 * most),
        case(producers.test_a_map_for_a_budget_is_the_sparsest_within_it, Grid(0, 90, 4, 1), 0, 1.0, 0.3),
    ),
    "a neighbourhood that may be dropped": Mutation(
        "stack.attention.maps", "_own", lambda grid, device: torch.zeros(grid.rows, grid.blocks, dtype=torch.bool),
        case(producers.test_a_map_for_a_budget_is_the_sparsest_within_it, Grid(0, 90, 4, 1), 0, 1.0, 0.3),
    ),
    "8-bit scores of coarser heads": Mutation(
        "stack.attention.sage", "rounded", coarse_heads,
        case(sage.test_the_error_is_what_the_steps_allow, 0, 100, 100, 64, 1.0, 1.0, 0.0, 1.0),
    ),
    "values that overflow fp16": Mutation(
        "stack.attention.sage", "scaled", lambda v: (v, torch.ones_like(v[:, :1])),
        case(sage.test_values_of_any_size_are_as_exact_as_any_other, [20] * 64, 0),
    ),
    "fillers whose value is 0": Mutation(
        "tests.attention.test_sage", "filled", filled_with_zeros,
        case(sage.test_fillers_weigh_no_more_than_the_average_key, 0, 100, 1.0, 1.0, 0.0),
    ),
    "fillers beside keys that keep their mean": Mutation(
        "tests.attention.test_sage", "smoothed", lambda k: k,
        case(sage.test_fillers_weigh_no_more_than_the_average_key, 0, 100, 1.0, 1.0, 20.0),
    ),
    "growth that is left out of the final error": Mutation(
        "tests.test_bounds_stack", "final_error_bound", without_growth,
        case(stacks.test_errors_of_all_passes_in_the_final_sample, 2.0, 20, 1.0, 2, "spread", 0),
    ),
    "a report that takes the mean over the steps": Mutation(
        "stack.runtime.final_error", "final_error_bound", lambda errors, gaps: without_growth(errors, gaps) / len(gaps),
        case(stacks.test_what_a_report_adds_up_holds_for_forecast_velocities, 1.0, 0, 1.0, {7}, 0),
    ),
    "a guard that forgets the differences": Mutation(
        "stack.caching.guard", "weights", lambda forecast, x, nodes: [1.0] + [0.0] * (len(nodes) - 1),
        case(guards.test_no_forecast_goes_further_than_is_said, 1, "newton", (1.0, 1.0), 0.3, 0.3, 1.0, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_broken_code_breaks_its_bound(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.fails()
    with monkeypatch.context() as patch:
        broken(mutation, patch)
        with pytest.raises(AssertionError):
            mutation.fails()
