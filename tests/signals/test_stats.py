"""Raw statistics: closed forms on exact lines, and losses that have no logarithm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr.signals import stats
from metalr.signals.stats import UpdateSums, loss_stats

NAN, INF = float("nan"), float("inf")


def of(*losses: float):
    return [value.item() for value in loss_stats(torch.tensor(losses, dtype=torch.float64)[:, None])]


def test_an_exact_line_in_log_loss_has_its_slope_and_no_noise():
    losses = [math.exp(1.0 - 0.25 * t) for t in range(9)]
    mean, slope, noise, count, exploded = of(*losses)
    assert mean == pytest.approx(0.0, abs=1e-12)
    assert slope == pytest.approx(-0.25, rel=1e-12)
    assert noise == pytest.approx(0.0, abs=1e-7)
    assert (count, exploded) == (9.0, 0.0)


def test_a_constant_loss_is_flat():
    mean, slope, noise, count, exploded = of(2.0, 2.0, 2.0)
    assert mean == pytest.approx(math.log(2.0), rel=1e-12)
    assert (slope, noise, count, exploded) == (0.0, 0.0, 3.0, 0.0)


def test_slope_and_noise_are_least_squares():
    # log losses 0, 1, 0, 1: slope 0.2, residuals -0.2, 0.6, -0.6, 0.2 with a sum of squares of 0.8 over 4 - 2.
    mean, slope, noise, _, _ = of(1.0, math.e, 1.0, math.e)
    assert (mean, slope, noise) == pytest.approx((0.5, 0.2, math.sqrt(0.4)), rel=1e-12)


@given(st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=30))
@settings(max_examples=50, deadline=None)
def test_agrees_with_a_plain_line_fit(losses):
    logs = torch.tensor(losses, dtype=torch.float64).log()
    design = torch.stack([torch.ones(len(logs)), torch.arange(float(len(logs)))], 1).double()
    solution = torch.linalg.lstsq(design, logs[:, None]).solution
    residual = (logs[:, None] - design @ solution).norm().item() / math.sqrt(max(len(logs) - 2, 1))
    mean, slope, noise, _, _ = of(*losses)
    assert mean == pytest.approx(logs.mean().item(), abs=1e-9)
    assert slope == pytest.approx(solution[1].item(), abs=1e-9)
    assert noise == pytest.approx(residual, abs=1e-6)


@pytest.mark.parametrize("gap", [NAN, INF, -INF, 0.0, -1.0])
def test_a_loss_without_a_logarithm_is_a_gap_in_the_line(gap):
    mean, slope, noise, count, exploded = of(math.exp(3.0), gap, math.exp(1.0), math.exp(0.0))
    assert mean == pytest.approx(4.0 / 3.0, rel=1e-12)
    assert slope == pytest.approx(-1.0, rel=1e-12)
    assert noise == pytest.approx(0.0, abs=1e-7)
    assert count == 3.0
    assert exploded == (0.0 if math.isfinite(gap) else 1.0)


@pytest.mark.parametrize("losses", [(NAN, NAN), (INF, INF), (0.0, -1.0)])
def test_without_a_single_usable_loss_the_mean_is_unknown(losses):
    mean, slope, noise, count, exploded = of(*losses)
    assert math.isnan(mean)
    assert (slope, noise, count) == (0.0, 0.0, 0.0)
    assert exploded == float(not math.isfinite(losses[0]))


def test_one_loss_is_a_mean_without_slope_or_noise():
    assert of(math.e) == pytest.approx([1.0, 0.0, 0.0, 1.0, 0.0])


def test_runs_are_measured_alone():
    losses = torch.tensor([[4.0, NAN, 1.0], [2.0, 1.0, 1.0], [1.0, INF, 0.0]], dtype=torch.float64)
    together = loss_stats(losses)
    for run in range(3):
        for value, single in zip(together, loss_stats(losses[:, run : run + 1]), strict=True):
            torch.testing.assert_close(value[run], single[0], rtol=0.0, atol=0.0, equal_nan=True)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=12), st.sampled_from([1e-12, 1e-3, 7.0, 1e9]))
@settings(max_examples=50, deadline=None)
def test_a_scale_moves_the_mean_and_nothing_else(losses, scale):
    plain, scaled = of(*losses), of(*(scale * loss for loss in losses))
    assert scaled[0] == pytest.approx(plain[0] + math.log(scale), abs=1e-9)
    assert scaled[1:] == pytest.approx(plain[1:], abs=1e-6)


def test_the_derivative_is_finite_beside_a_loss_without_logarithm():
    losses = torch.tensor([[2.0], [0.0], [NAN], [1.0]], dtype=torch.float64, requires_grad=True)
    mean, slope, _, _, _ = loss_stats(losses)
    (derivative,) = torch.autograd.grad((mean + slope).sum(), losses)
    assert derivative.isfinite().all()
    assert derivative[1:3].flatten().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("losses", [[2.0, 1.0], [3.0, 3.0], [2.0, 2.0, 2.0], [4.0, 2.0, 1.0], [2.0]])
def test_the_derivative_is_finite_on_an_exact_line(losses):
    """The noise is the root of zero there, and of every interval of two losses."""
    values = torch.tensor(losses, dtype=torch.float64)[:, None].requires_grad_()
    mean, slope, noise, _, _ = loss_stats(values)
    assert noise.item() == pytest.approx(0.0, abs=1e-7)
    (derivative,) = torch.autograd.grad((mean + slope + noise).sum(), values)
    assert derivative.isfinite().all()


# Around an update


def around(before, after, update, params) -> UpdateSums:
    a, b, u, w = (torch.tensor(values, dtype=torch.float64) for values in (before, after, update, params))
    return UpdateSums(*(value.view(1, 1) for value in (a @ a, b @ b, a @ b, a @ u, b @ u, u @ u, w @ w)))


def test_the_statistics_of_an_update_by_hand():
    # |g'| = 5, |g| = 13, g'·g = 63, g'·u = -2, g·u = -7.6, |u|² = 0.8, |w| = 10.
    sums = around([3.0, 4.0], [5.0, 12.0], [0.4, -0.8], [6.0, -8.0])
    got = [value.item() for value in stats.update_stats(sums)]
    length = math.sqrt(0.8)
    expected = [
        math.sqrt((25.0 + 169.0) / 2.0),
        63.0 / 65.0,
        length / 10.0,
        math.log(2.0),  # 3 · 0.4 - 4 · 0.8 = -2
        (5.0 * 0.4 - 12.0 * 0.8) / (13.0 * length),
        1.0 - 7.6 / 2.0,
    ]
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lr", [0.1, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_gradient_descent_on_a_parabola(lr):
    """On ½·w² a step multiplies w by 1 - lr: the minimum is reached at lr 1, and stability ends at 2."""
    w = 2.0
    new = (1.0 - lr) * w
    norm, cosine, ratio, descent, overshoot, edge = (
        value.item() for value in stats.update_stats(around([w], [new], [-lr * w], [new]))
    )
    side = math.copysign(1.0, lr - 1.0) if lr != 1.0 else 0.0
    assert norm == pytest.approx(math.sqrt((w * w + new * new) / 2.0), rel=1e-12)
    assert (cosine, overshoot) == pytest.approx((-side, side), rel=1e-12)
    assert descent == pytest.approx(math.log(lr * w * w), rel=1e-12)
    assert edge == pytest.approx(lr, rel=1e-12)
    if lr != 1.0:
        assert ratio == pytest.approx(lr / abs(1.0 - lr), rel=1e-12)


def test_an_update_uphill_has_a_descent_too():
    # Momentum can carry uphill: the size of the change is what counts.
    up = stats.update_stats(around([1.0], [2.0], [0.5], [1.0]))
    assert up[3].item() == pytest.approx(math.log(0.5))
    assert (up[4].item(), up[5].item()) == pytest.approx((1.0, -1.0))


@pytest.mark.parametrize("zero", ["before", "update"])
def test_without_a_slope_descent_and_edge_are_unknown(zero):
    vectors = {"before": [1.0, 2.0], "after": [2.0, 1.0], "update": [0.1, 0.1], "params": [1.0, 1.0]}
    got = stats.update_stats(around(**vectors | {zero: [0.0, 0.0]}))
    assert got[3].isnan()
    assert got[5].isnan()
    assert all(bool(value.isfinite().all()) for value in (*got[:3], got[4]))


def test_an_unknown_measurement_stays_unknown():
    unknown = torch.full((1, 2), torch.nan, dtype=torch.float64)
    assert all(bool(value.isnan().all()) for value in stats.update_stats(UpdateSums(*[unknown] * 7)))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_statistics_of_an_update_in_single_precision(size):
    vectors = [torch.tensor(v) * size for v in ([3.0, 4.0], [5.0, 12.0], [0.4, -0.8], [6.0, -8.0])]
    a, b, u, w = vectors
    sums = UpdateSums(*(value.view(1, 1) for value in (a @ a, b @ b, a @ b, a @ u, b @ u, u @ u, w @ w)))
    got = [value.item() for value in stats.update_stats(sums)]
    length = math.sqrt(0.8)
    expected = [math.sqrt(97.0) * size, 63.0 / 65.0, length / 10.0, math.log(2.0 * size * size)]
    expected += [-7.6 / (13.0 * length), -2.8]
    assert got == pytest.approx(expected, rel=1e-5)


def test_cosine_and_ratio():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert stats.cosine(a @ b, a @ a, b @ b).item() == pytest.approx(24 / 25)
    assert stats.cosine(a @ -a, a @ a, a @ a).item() == pytest.approx(-1.0)
    assert stats.ratio(torch.tensor(4.0), torch.tensor(16.0)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-10, 1e-6, 1e12])
def test_cosine_of_small_and_large_gradients_in_single_precision(scale):
    a, b = scale * torch.tensor([3.0, 4.0]), scale * torch.tensor([4.0, 3.0])
    assert stats.cosine(a @ b, a @ a, b @ b).item() == pytest.approx(24 / 25, rel=1e-4)


@given(st.floats(-1e30, 1e30), st.floats(0.0, 1e30), st.floats(0.0, 1e30))
def test_cosine_stays_in_its_range(product, first, second):
    result = stats.cosine(*(torch.tensor(value, dtype=torch.float64) for value in (product, first, second)))
    assert -1.0 <= result.item() <= 1.0


def test_a_vanishing_gradient_has_cosine_zero_and_finite_derivatives():
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    cosine = stats.cosine(zero, zero.square(), zero.square())
    assert cosine.item() == 0.0
    total = cosine + stats.norm(zero.square()) + stats.ratio(zero.square(), zero.square())
    assert torch.autograd.grad(total.sum(), zero)[0].isfinite().all()
