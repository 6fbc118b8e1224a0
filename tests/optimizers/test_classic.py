"""Inner optimizers: each equals its `torch.optim` class, over a registry, and has closed forms where it can."""

from dataclasses import fields, replace

import pytest
import torch

from metalr.optimizers.classic import OPTIMIZERS, SGD, Adagrad, Adam, AdamW, ExpectedSGD, RMSprop, from_torch

# Besides every entry of the registry: each argument away from its default.
VARIANTS = {
    **OPTIMIZERS,
    **{f"{name}-decay": replace(inner, weight_decay=0.1) for name, inner in OPTIMIZERS.items()},
    "nesterov-0.5": SGD(momentum=0.5, nesterov=True),
    "rmsprop-0.9": RMSprop(decay=0.9, eps=1e-3),
    "adagrad-eps": Adagrad(eps=1e-2),
    "adam-betas": Adam(beta1=0.5, beta2=0.9, eps=1e-3),
    "adamw-betas": AdamW(beta1=0.5, beta2=0.9, weight_decay=0.3),
}


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def gradient_of(params: torch.Tensor) -> torch.Tensor:
    """Gradient of the sum of cos(w) + w⁴/8: neither constant nor of one sign, and bounded along the way."""
    return -params.sin() + 0.5 * params**3


def run(inner, params, lr, num_steps=50):
    state = inner.init(params)
    for t in range(num_steps):
        step = torch.full((len(params), 1), t)
        gradient = inner.clip(gradient_of(params))
        params, state = inner.update(gradient, state, params, lr, step)
    return params


def run_torch(inner, row, lr, num_steps=50):
    weights = torch.nn.Parameter(row.clone())
    optimizer = inner.to_torch([weights], lr)
    for _ in range(num_steps):
        weights.grad = gradient_of(weights.detach())
        if inner.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([weights], inner.clip_norm)
        optimizer.step()
    return weights.detach()


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_torch_optim_over_fifty_steps(name, clip_norm):
    inner = replace(VARIANTS[name], clip_norm=clip_norm)
    start = torch.linspace(-2.0, 2.0, 21, dtype=torch.float64).view(3, 7)
    rates = [0.02, 0.05, 0.005]
    together = run(inner, start, torch.tensor(rates, dtype=torch.float64)[:, None])
    for row, lr, result in zip(start, rates, together, strict=True):
        torch.testing.assert_close(result, run_torch(inner, row, lr), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_rate_per_parameter_equals_torch_parameter_groups(name):
    inner = OPTIMIZERS[name]
    start = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)[None]
    rates = torch.tensor([[0.1, 0.1, 0.01, 0.01]], dtype=torch.float64)
    result = run(inner, start, rates, num_steps=20)
    first, second = (run_torch(inner, start[0, half], lr, 20) for half, lr in ((slice(2), 0.1), (slice(2, 4), 0.01)))
    torch.testing.assert_close(result[0], torch.cat([first, second]), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clip_equals_clip_grad_norm(scale):
    gradient = scale * torch.linspace(-1.0, 2.0, 10, dtype=torch.float64)
    weights = torch.nn.Parameter(torch.zeros_like(gradient))
    weights.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([weights], 1.0)
    torch.testing.assert_close(SGD(clip_norm=1.0).clip(gradient[None])[0], weights.grad, rtol=1e-14, atol=0.0)


def test_clip_works_on_each_run_alone():
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(SGD(clip_norm=1.0).clip(gradient), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_update_is_out_of_place(name):
    inner = VARIANTS[name]
    params, gradient, lr, step = ones(2, 3), 2.0 * ones(2, 3), 0.1 * ones(2, 1), torch.zeros(2, 1)
    state = inner.init(params)
    given = [params, gradient, lr, step, *state]
    before = [tensor.clone() for tensor in given]
    inner.update(gradient, state, params, lr, step)
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_from_torch_undoes_to_torch(name):
    inner = VARIANTS[name]
    optimizer = inner.to_torch([torch.nn.Parameter(ones(2))], 0.1)
    assert from_torch(optimizer, optimizer.param_groups[0]) == inner


UNKNOWN = [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1),
    lambda p: torch.optim.SGD(p, 0.1, maximize=True),
    lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, 0.1, centered=True),
    lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9),
    lambda p: torch.optim.Adagrad(p, 0.1, lr_decay=0.1),
    lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.1),
    lambda p: torch.optim.NAdam(p, 0.1),
]


@pytest.mark.parametrize("build", UNKNOWN)
def test_from_torch_does_not_guess(build):
    optimizer = build([torch.nn.Parameter(ones(2))])
    assert from_torch(optimizer, optimizer.param_groups[0]) is None


def test_from_torch_knows_adam_with_decoupled_decay():
    optimizer = torch.optim.Adam([torch.nn.Parameter(ones(2))], 0.1, weight_decay=0.1, decoupled_weight_decay=True)
    assert from_torch(optimizer, optimizer.param_groups[0]) == AdamW(weight_decay=0.1)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivative_with_respect_to_the_lr_is_finite_at_zero_gradient(name, dtype):
    inner = VARIANTS[name]
    params = torch.ones(1, 3, dtype=dtype, requires_grad=True)
    gradient = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    lr = torch.full((1, 1), 0.1, dtype=dtype, requires_grad=True)
    now, state = params, inner.init(params)
    for t in range(3):
        now, state = inner.update(inner.clip(gradient), state, now, lr, torch.full((1, 1), t))
    for derivative in torch.autograd.grad(now.sum(), (lr, gradient, params)):
        assert derivative.isfinite().all()


def test_first_adam_update_moves_by_the_lr_whatever_the_gradient():
    gradient = torch.tensor([[1e-3, -1.0, 1e6]], dtype=torch.float64)
    moved, _ = Adam().update(gradient, Adam().init(gradient), ones(1, 3), 0.1 * ones(1, 1), torch.zeros(1, 1))
    torch.testing.assert_close(moved, torch.tensor([[0.9, 1.1, 0.9]], dtype=torch.float64), rtol=0.0, atol=1e-5)


SETTINGS = [
    (SGD(momentum=0.9), {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "clip_norm": 0.1}),
    (RMSprop(), {"decay": 0.5, "eps": 0.1, "weight_decay": 0.1, "clip_norm": 0.1}),
    (Adagrad(), {"eps": 0.1, "weight_decay": 0.1, "clip_norm": 0.1}),
    (Adam(), {"beta1": 0.5, "beta2": 0.5, "eps": 0.1, "weight_decay": 0.1, "clip_norm": 0.1}),
    (AdamW(), {"beta1": 0.5, "beta2": 0.5, "eps": 0.1, "weight_decay": 0.1, "clip_norm": 0.1}),
    (ExpectedSGD(), {"noise": 0.5, "weight_decay": 0.1, "clip_norm": 0.1}),
]
CHANGES = [(base, name, value) for base, changes in SETTINGS for name, value in changes.items()]


@pytest.mark.parametrize("base", [base for base, _ in SETTINGS], ids=lambda base: type(base).__name__)
def test_every_setting_is_listed_above(base):
    changes = next(changes for other, changes in SETTINGS if other == base)
    assert {field.name for field in fields(base)} == set(changes)


@pytest.mark.parametrize(
    ("base", "name", "value"), CHANGES, ids=[f"{type(b).__name__}-{name}" for b, name, _ in CHANGES]
)
def test_every_setting_changes_the_run_or_is_refused(base, name, value):
    start = torch.linspace(0.5, 2.0, 4, dtype=torch.float64)[None]
    lr = 0.05 * ones(1, 1)
    try:
        changed = replace(base, **{name: value})
    except ValueError:
        return
    assert not torch.equal(run(base, start, lr, 5), run(changed, start, lr, 5))


# ExpectedSGD: the noisy quadratic in expectation.


@pytest.mark.parametrize(
    ("second_moment", "curvature", "lr", "noise", "expected"),
    [
        (1.0, 1.0, 1.0, 0.01, 0.01),  # the minimum in one step, and only the noise is left
        (1.0, 1.0, 0.5, 0.01, 0.2525),  # 0.5² + 0.5²·0.01
        (2.0, 0.5, 1.0, 0.1, 0.55),  # 0.5²·2 + 0.1·0.5
        (3.0, 0.2, 0.0, 0.1, 3.0),
    ],
)
def test_one_step_of_expected_sgd(second_moment, curvature, lr, noise, expected):
    inner = ExpectedSGD(noise=noise)
    gradient = 0.5 * curvature * ones(1, 1)
    params, _ = inner.update(gradient, (), second_moment * ones(1, 1), lr * ones(1, 1), torch.zeros(1, 1))
    assert params.item() == pytest.approx(expected, rel=1e-12)


def test_expected_sgd_is_the_mean_of_sgd():
    generator = torch.Generator().manual_seed(0)
    weights = ones(400_000)
    second_moment = ones(1, 1)
    for _ in range(5):
        noise = 0.3 * torch.randn(weights.shape, generator=generator, dtype=torch.float64) * 0.5**0.5
        weights = weights - 0.4 * (0.5 * weights + noise)
        second_moment, _ = ExpectedSGD(noise=0.09).update(
            0.25 * ones(1, 1), (), second_moment, 0.4 * ones(1, 1), torch.zeros(1, 1)
        )
    assert weights.square().mean().item() == pytest.approx(second_moment.item(), rel=0.01)


def final_loss(lr: torch.Tensor, horizon: int = 1000) -> torch.Tensor:
    """Expected loss of the noisy quadratic (d = 1000, h = 1/i) under constant LRs `(num_runs, 1)`."""
    curvature = 1.0 / torch.arange(1, 1001, dtype=torch.float64)
    params = ones(len(lr), 1000)
    for t in range(horizon):
        params, _ = ExpectedSGD(noise=0.01).update(
            (0.5 * curvature).expand_as(params), (), params, lr, torch.full((len(lr), 1), t)
        )
    return 0.5 * (params * curvature).sum(-1)


def test_best_constant_lr_of_the_noisy_quadratic():
    lr = torch.arange(1.10, 1.34, 0.02, dtype=torch.float64)[:, None]
    loss = final_loss(lr)
    assert lr[loss.argmin()].item() == pytest.approx(1.22, abs=0.021)
    assert loss.min().item() == pytest.approx(0.0425, abs=5e-5)


def test_greedy_lr_of_the_noisy_quadratic_is_short_sighted():
    curvature = 1.0 / torch.arange(1, 1001, dtype=torch.float64)
    params = ones(1, 1000)
    rates = []
    for t in range(1000):
        # The loss after the step is quadratic in lr: minimise it in closed form.
        lr = (curvature**2 * params).sum() / (curvature**3 * params + 0.01 * curvature**2).sum()
        rates.append(lr.item())
        params, _ = ExpectedSGD(noise=0.01).update(
            0.5 * curvature[None], (), params, lr.view(1, 1), torch.full((1, 1), t)
        )
    assert 0.5 * (params * curvature).sum().item() == pytest.approx(0.2548, abs=5e-5)
    assert rates[0] == pytest.approx(1.35, abs=0.01)
    assert rates[-1] == pytest.approx(0.12, abs=0.01)


def test_expected_sgd_has_no_torch_counterpart():
    with pytest.raises(NotImplementedError, match="got ExpectedSGD"):
        ExpectedSGD().to_torch([torch.nn.Parameter(ones(1))], 0.1)
