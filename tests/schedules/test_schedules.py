"""Schedules: parity with torch step by step, one contract over the whole registry, properties, errors.

Golden numbers are worked out by hand or come from torch's own classes. `test_tensorflow_names.py` has
TensorFlow's.
"""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from metalr import schedules
from metalr.schedules import (
    REX,
    SCHEDULES,
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    Function,
    InverseSquareRoot,
    InverseTime,
    KDecay,
    Linear,
    LinearCosine,
    MultiStep,
    NaturalExponential,
    NoisyLinearCosine,
    OneCycle,
    PiecewiseConstant,
    Polynomial,
    Schedule,
    Sequence,
    Step,
    Tanh,
    Warmup,
)

BASE_LR = 0.3
EXACT = {"rtol": 0.0, "atol": 1e-12}

# Besides every entry of the registry with its defaults: the branches that defaults do not reach.
VARIANTS = [
    Exponential(staircase=True),
    NaturalExponential(staircase=True),
    InverseTime(staircase=True),
    Polynomial(power=0.5, end=0.1, cycle=True),
    Polynomial(power=2.0, end=1.5),
    CosineRestarts(period=0.07, t_mul=2.0, m_mul=0.7, floor=0.1),
    NoisyLinearCosine(num_periods=5.0, seed=3, draws=50),
    KDecay(k=3.0, shape="cosine"),
    WSD(warmup=0.0, decay=1.0, shape="linear"),
    WSD(warmup=0.3, decay=0.7, shape="cosine", floor=0.2),
    WSD(warmup=0.1, decay=0.0),
    OneCycle(three_phase=True, anneal_strategy="linear"),
    OneCycle(steps=100),
    Cyclic(up=0.1, low=0.0),
    Cyclic(up=0.05, down=0.11, mode="triangular2"),
    Cyclic(up=0.05, mode="exp_range"),
    Warmup(OneCycle(), shape="exponential"),
    Warmup(WSD(warmup=0.0), length=0.3),
    Sequence((Linear(0.1, 1.0), Warmup(Cosine()), Step()), milestones=(0.2, 0.7)),
    Sequence((Cosine(),), milestones=()),
]
CONTRACT = [*(make() for make in SCHEDULES.values()), *VARIANTS]


def in_steps(schedule: Schedule, num_steps: int) -> np.ndarray:
    """The LRs of updates 0, 1, ..., num_steps for a horizon of num_steps."""
    progress = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    return BASE_LR * schedule(progress).numpy()


def torch_lrs(make_scheduler, num_steps: int, key: str = "lr", lr: float = BASE_LR) -> np.ndarray:
    """The LRs that torch's scheduler sets for updates 0, 1, ..., num_steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    values = []
    for step in range(num_steps + 1):
        values.append(optimizer.param_groups[0][key])
        if step < num_steps:
            optimizer.step()
            scheduler.step()
    return np.array(values)


# Parity with torch. Horizons that are not round numbers, so that progress is not either.


@pytest.mark.parametrize(("step_size", "gamma"), [(1, 0.97), (3, 0.5), (7, 0.1), (30, 1.3), (500, 0.1)])
@pytest.mark.parametrize("horizon", [90, 97])
def test_step_is_torch(step_size, gamma, horizon):
    want = torch_lrs(lambda opt: lr_scheduler.StepLR(opt, step_size, gamma), horizon)
    np.testing.assert_allclose(in_steps(Step(every=step_size / horizon, gamma=gamma), horizon), want, **EXACT)


@pytest.mark.parametrize(("milestones", "gamma"), [((30, 60), 0.1), ((1, 2, 96), 0.5), ((40, 40), 0.3), ((), 0.5)])
def test_multi_step_is_torch(milestones, gamma):
    want = torch_lrs(lambda opt: lr_scheduler.MultiStepLR(opt, list(milestones), gamma), 97)
    schedule = MultiStep(tuple(milestone / 97 for milestone in milestones), gamma)
    np.testing.assert_allclose(in_steps(schedule, 97), want, **EXACT)


@pytest.mark.parametrize("gamma", [0.999, 0.9, 1.01])
def test_exponential_is_torch(gamma):
    want = torch_lrs(lambda opt: lr_scheduler.ExponentialLR(opt, gamma), 97)
    for schedule in (Exponential(rate=gamma, every=1 / 97), Exponential(rate=gamma**97, every=1.0)):
        np.testing.assert_allclose(in_steps(schedule, 97), want, **EXACT)


@pytest.mark.parametrize(("horizon", "floor"), [(100, 0.0), (97, 0.1), (10, 0.5)])
def test_cosine_is_torch(horizon, floor):
    want = torch_lrs(lambda opt: lr_scheduler.CosineAnnealingLR(opt, horizon, BASE_LR * floor), horizon)
    np.testing.assert_allclose(in_steps(Cosine(floor), horizon), want, **EXACT)


@pytest.mark.parametrize(("first", "t_mul", "floor"), [(10, 1, 0.0), (7, 2, 0.1), (1, 3, 0.0), (3, 1, 0.2), (1, 1, 0)])
def test_cosine_restarts_are_torch(first, t_mul, floor):
    want = torch_lrs(lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, first, t_mul, BASE_LR * floor), 300)
    schedule = CosineRestarts(period=first / 300, t_mul=t_mul, floor=floor)
    np.testing.assert_allclose(in_steps(schedule, 300), want, **EXACT)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.7])
def test_polynomial_is_torch(power):
    want = torch_lrs(lambda opt: lr_scheduler.PolynomialLR(opt, 97, power), 97)
    np.testing.assert_allclose(in_steps(Polynomial(power), 97), want, **EXACT)


@pytest.mark.parametrize(("start", "end"), [(1 / 3, 1.0), (1.0, 0.0), (0.05, 0.5)])
def test_linear_is_torch(start, end):
    want = torch_lrs(lambda opt: lr_scheduler.LinearLR(opt, start, end, total_iters=97), 97)
    np.testing.assert_allclose(in_steps(Linear(start, end), 97), want, **EXACT)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize(("steps", "pct_start", "div", "final_div"), [(100, 0.3, 25.0, 1e4), (97, 0.45, 4.0, 10.0)])
def test_one_cycle_is_torch(three_phase, anneal_strategy, steps, pct_start, div, final_div):
    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer,
            BASE_LR,
            total_steps=steps,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            div_factor=div,
            final_div_factor=final_div,
            three_phase=three_phase,
            base_momentum=0.8,
            max_momentum=0.97,
        )

    schedule = OneCycle(
        pct_start,
        anneal_strategy,
        div,
        final_div,
        three_phase,
        base_momentum=0.8,
        max_momentum=0.97,
        steps=steps,
    )
    progress = torch.arange(steps, dtype=torch.float64) / steps
    np.testing.assert_allclose(BASE_LR * schedule(progress).numpy(), torch_lrs(make, steps - 1), **EXACT)
    np.testing.assert_allclose(schedule.momentum(progress), torch_lrs(make, steps - 1, "momentum"), **EXACT)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize(("up", "down"), [(10, None), (7, 13), (1, 2), (200, 1)])
def test_cyclic_is_torch(mode, up, down):
    def make(optimizer):
        return lr_scheduler.CyclicLR(
            optimizer, 0.2 * BASE_LR, BASE_LR, up, down, mode, gamma=0.99, base_momentum=0.8, max_momentum=0.9
        )

    schedule = Cyclic(up / 97, None if down is None else down / 97, low=0.2, mode=mode, gamma=0.99**97)
    progress = torch.arange(98, dtype=torch.float64) / 97
    np.testing.assert_allclose(in_steps(schedule, 97), torch_lrs(make, 97), **EXACT)
    np.testing.assert_allclose(schedule.momentum(progress), torch_lrs(make, 97, "momentum"), **EXACT)


@pytest.mark.parametrize(("warmup", "horizon"), [(10, 100), (5, 97), (1, 50)])
def test_linear_warmup_is_torch(warmup, horizon):
    def make(optimizer):
        ramp = lr_scheduler.LinearLR(optimizer, 0.05, 1.0, warmup)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, horizon - warmup, 0.1 * BASE_LR)
        return lr_scheduler.SequentialLR(optimizer, [ramp, fall], [warmup])

    schedule = Warmup(Cosine(0.1), length=warmup / horizon, start=0.05)
    want = torch_lrs(make, horizon)
    np.testing.assert_allclose(in_steps(schedule, horizon), want, **EXACT)
    same = Sequence((Linear(0.05, 1.0), Cosine(0.1)), milestones=(warmup / horizon,))
    np.testing.assert_allclose(in_steps(same, horizon), want, **EXACT)


def test_sequence_is_torch():
    def make(optimizer):
        parts = [
            lr_scheduler.LinearLR(optimizer, 0.2, 1.0, 13),
            lr_scheduler.StepLR(optimizer, 9, 0.5),
            lr_scheduler.PolynomialLR(optimizer, 37, 0.5),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, [13, 60])

    parts = (Linear(0.2, 1.0), Step(every=9 / 47, gamma=0.5), Polynomial(0.5))
    schedule = Sequence(parts, milestones=(13 / 97, 60 / 97))
    np.testing.assert_allclose(in_steps(schedule, 97), torch_lrs(make, 97), **EXACT)


# Values worked out by hand from the papers' equations.

HAND = [
    (Constant(2.0), 0.9, 2.0),
    (PiecewiseConstant((0.1, 0.3), (1.0, 5.0, 0.2)), 0.1, 5.0),
    (PiecewiseConstant((0.1, 0.1 + 0.2), (1.0, 5.0, 0.2)), 0.3, 0.2),  # 0.1 + 0.2 > 0.3 in floats
    (NaturalExponential(rate=math.log(2), every=0.25), 0.5, 0.25),
    (NaturalExponential(rate=math.log(2), every=0.25, staircase=True), 0.49, 0.5),
    (InverseTime(rate=3.0, every=0.5), 0.5, 0.25),
    (InverseTime(rate=3.0, every=0.5, staircase=True), 0.49, 1.0),
    (InverseSquareRoot(warmup=0.04, start=0.0), 0.01, 0.25),
    (InverseSquareRoot(warmup=0.04, start=0.0), 1.0, 0.2),
    (InverseSquareRoot(warmup=0.04), 4.0, 0.1),
    (Polynomial(power=2.0, end=0.2), 0.5, 0.4),
    (Polynomial(cycle=True), 1.0, 0.0),
    (Polynomial(cycle=True), 1.0000000000000002, 0.0),
    (Polynomial(cycle=True), 1.5, 0.25),
    (Polynomial(cycle=True), 2.25, 0.25),
    (CosineRestarts(period=1 / 7, t_mul=2.0, m_mul=0.5), 2 / 7, 0.25),
    (CosineRestarts(period=1 / 7, t_mul=2.0, m_mul=0.5), 3 / 7, 0.25),
    (LinearCosine(beta=0.25), 0.5, 0.5),
    (LinearCosine(num_periods=1.0, alpha=0.5, beta=0.0), 0.25, 0.625),
    (KDecay(k=2.0, power=2.0), 0.5, 0.5625),
    (KDecay(k=1.0, shape="cosine"), 0.5, 0.5),
    (KDecay(k=2.0, shape="cosine"), math.sqrt(0.5), 0.5),
    (Tanh(), 0.0, 0.5 * (1 + math.tanh(6.0))),
    (Tanh(), 2 / 3, 0.5),
    (Tanh(floor=0.5), 1.0, 0.5 + 0.25 * (1 - math.tanh(3.0))),
    (REX(), 0.0, 1.0),
    (REX(), 0.5, 2 / 3),
    (REX(floor=0.1), 0.75, 0.1 + 0.9 * 0.4),
    (WSD(warmup=0.2, decay=0.2, start=0.0), 0.1, 0.5),
    (WSD(warmup=0.2, decay=0.2), 0.5, 1.0),
    (WSD(decay=0.3, shape="1-sqrt"), 0.7, 1.0),
    (WSD(decay=0.3, shape="1-sqrt", floor=0.2), 0.775, 0.6),
    (WSD(decay=0.2, shape="linear"), 0.85, 0.75),
    (WSD(decay=0.2, shape="cosine"), 0.9, 0.5),
    (Warmup(Constant(), length=0.2, start=0.01, shape="exponential"), 0.1, 0.1),
    (Warmup(Constant(0.5), length=0.2, start=0.0), 0.1, 0.25),
]


@pytest.mark.parametrize(("schedule", "progress", "want"), HAND)
def test_values_by_hand(schedule, progress, want):
    assert schedule(progress) == pytest.approx(want, abs=1e-14)


HOLDS = (
    *(Linear(1.0, 0.3), Polynomial(end=0.3), Cosine(0.3), LinearCosine(num_periods=2.0), NoisyLinearCosine()),
    *(KDecay(floor=0.3), Tanh(), REX(0.3), WSD(floor=0.3), OneCycle(), Warmup(Cosine(0.3))),
    *(Sequence((Constant(), Linear(1.0, 0.3))), MultiStep(), PiecewiseConstant()),
)
GOES_ON = (
    *(Step(), Exponential(), NaturalExponential(), InverseTime(), InverseSquareRoot(), CosineRestarts()),
    *(Cyclic(), Polynomial(cycle=True), Warmup(Step()), Sequence((Constant(), Step()))),
)


@pytest.mark.parametrize("schedule", HOLDS, ids=repr)
def test_holds_its_final_value(schedule):
    after = schedule(torch.tensor([1.0, 1.01, 1.3, 2.0, 9.0], dtype=torch.float64))
    assert torch.equal(after, after[:1].expand(5))


@pytest.mark.parametrize("schedule", GOES_ON, ids=repr)
def test_goes_on_after_the_horizon(schedule):
    assert schedule(1.0) != schedule(1.97)


# The contract, over every schedule there is.


def test_the_registry_is_complete():
    public = [getattr(schedules, name) for name in schedules.__all__]
    classes = {item for item in public if isinstance(item, type) and issubclass(item, Schedule)}
    assert classes - {Schedule, Function} == set(SCHEDULES.values())


@pytest.mark.parametrize("schedule", CONTRACT, ids=repr)
class TestContract:
    def test_a_float_gives_what_a_tensor_gives(self, schedule):
        progress = torch.linspace(0.0, 2.0, 41, dtype=torch.float64)
        numbers = [schedule(value) for value in progress.tolist()]
        assert all(type(number) is float for number in numbers)
        # Vectorised and scalar kernels may differ in the last bit.
        np.testing.assert_allclose(schedule(progress).numpy(), numbers, rtol=1e-14, atol=1e-15)
        assert schedule(1) == schedule(1.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(), (0,), (4096,), (64, 3, 2)])
    def test_shape_and_dtype_are_kept(self, schedule, shape, dtype):
        progress = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
        before = progress.clone()
        result = schedule(progress)
        assert (result.shape, result.dtype) == (progress.shape, dtype)
        assert torch.equal(progress, before)

    def test_finite_and_not_negative(self, schedule):
        for dtype in (torch.float32, torch.float64):
            # Tenths too: 3 * 0.2 > 0.6 in floats, and so a triangle may end just below 0.
            progress = torch.cat([torch.linspace(0.0, 2.0, 4097, dtype=dtype), torch.arange(21, dtype=dtype) / 10])
            result = schedule(progress)
            assert torch.isfinite(result).all()
            assert (result >= 0.0).all()

    def test_float32_agrees_with_float64_at_every_step(self, schedule):
        # Jumps included: rounding to float32 moves no jump to another update.
        progress = torch.arange(2 * 640, dtype=torch.float64) / 640
        np.testing.assert_allclose(schedule(progress.float()), schedule(progress), rtol=2e-4, atol=2e-5)

    def test_round_trip_through_json(self, schedule):
        text = json.dumps(schedules.to_config(schedule), allow_nan=False)
        again = schedules.from_config(json.loads(text))
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert again(0.37) == schedule(0.37)

    def test_vmap(self, schedule):
        progress = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        mapped = torch.func.vmap(schedule)(progress)
        np.testing.assert_allclose(mapped, schedule(progress), rtol=1e-14, atol=1e-15)

    def test_frozen(self, schedule):
        with pytest.raises(AttributeError):
            schedule.anything = 1.0

    def test_values_are_never_read_on_the_host(self, schedule):
        # A meta tensor has no values: a sync or a branch on data cannot work with it.
        assert schedule(torch.empty(5, device="meta")).device.type == "meta"


def test_one_graph_under_compile():
    schedule = Sequence((Warmup(CosineRestarts(t_mul=2.0)), OneCycle(), MultiStep()), milestones=(0.3, 0.6))
    compiled = torch.compile(schedule.multiplier, backend="eager", fullgraph=True)
    progress = torch.linspace(0.0, 1.5, 31, dtype=torch.float64)
    assert torch.equal(compiled(progress), schedule(progress))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_parameter_changes_the_schedule(name):
    """No parameter is ignored. Each is moved on its own, from a setting where it matters."""
    matter = {
        "cyclic": {"mode": "exp_range", "down": 0.2},
        "noisy-linear-cosine": {"initial_variance": 30.0, "draws": 100},
        "one-cycle": {"steps": 100},
        "cosine-restarts": {"floor": 0.1},
    }
    moved = {
        "steps": 50,
        "draws": 77,
        "seed": 1,
        "t_mul": 1.5,
        "mode": "triangular2",
        "anneal_strategy": "linear",
        "schedule": Cosine(),
        "schedules": (Cosine(), Step()),
        "milestones": (0.3,),
        "boundaries": (0.2, 0.3),
        "values": (1.0, 0.9, 0.8),
    }
    moved_shape = {"k-decay": "cosine", "wsd": "cosine", "warmup": "exponential"}
    start = schedules.make(name, **matter.get(name, {}))
    progress = torch.linspace(0.0, 1.9, 200, dtype=torch.float64)
    for parameter, value in vars(start).items():
        if isinstance(value, bool):
            new = not value
        elif parameter == "shape":
            new = moved_shape[name]
        elif parameter in moved:
            new = moved[parameter]
        else:
            new = 0.77 * value + 0.05 if value != 0.0 else 0.2
        assert new != value
        other = schedules.make(name, **{**vars(start), parameter: new})
        same = torch.equal(start(progress), other(progress))
        if same and "momentum" in parameter:
            same = torch.equal(start.momentum(progress), other.momentum(progress))
        assert not same, (name, parameter)


# Noise.


def test_noise_is_a_function_of_seed_and_draw():
    schedule = NoisyLinearCosine(draws=100, seed=5)
    progress = torch.arange(100, dtype=torch.float64) / 100
    whole = schedule(progress)
    resumed = torch.stack([schedule(value) for value in progress[60:]])
    np.testing.assert_allclose(whole[60:], resumed, **EXACT)
    assert torch.equal(whole, NoisyLinearCosine(draws=100, seed=5)(progress))
    assert not torch.equal(whole, NoisyLinearCosine(draws=100, seed=6)(progress))
    # The same draw in all of its interval, another in the next.
    noise = NoisyLinearCosine(draws=4, signed=True, num_periods=0.0, beta=0.0)
    line = noise(torch.tensor([0.26, 0.49, 0.51], dtype=torch.float64)) + torch.tensor([0.26, 0.49, 0.51])
    assert line[0].item() == pytest.approx(line[1].item(), abs=1e-6)
    assert abs(line[1] - line[2]) > 1e-3


def test_noise_has_the_stated_variance():
    def noise_at(draw):
        settings = {"num_periods": 0.0, "beta": 0.0, "draws": 100, "signed": True, "initial_variance": 4.0}
        quiet = 1.0 - draw / 100
        return np.array([NoisyLinearCosine(seed=seed, **settings)(draw / 100) - quiet for seed in range(800)])

    for draw in (0, 63):
        noise = noise_at(draw)
        want = 4.0 / (1 + draw) ** 0.55
        assert abs(noise.mean()) < 4.0 * math.sqrt(want / 800)
        assert noise.var() == pytest.approx(want, rel=0.25)


def test_noise_is_cut_at_zero_unless_signed():
    progress = torch.arange(100, dtype=torch.float64) / 100
    cut = NoisyLinearCosine(draws=100)(progress)
    signed = NoisyLinearCosine(draws=100, signed=True)(progress)
    assert signed.min() < 0.0
    assert torch.equal(cut, signed.clamp(min=0.0))


# Properties.

fractions = st.floats(0.0, 1.0)
progresses = st.floats(0.0, 3.0)
quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(fractions, progresses, progresses)
def test_cosine_falls_between_one_and_its_floor(floor, first, second):
    first, second = sorted((first, second))
    high, low = Cosine(floor)(first), Cosine(floor)(second)
    assert floor <= low <= high + 1e-15
    assert high <= 1.0 + 1e-15


@quick
@given(
    st.sampled_from([Linear(), Polynomial(0.5), Cosine(), KDecay(), Tanh(), REX(), WSD(warmup=0.0)]),
    fractions,
)
def test_decays_stay_within_one_and_fall(schedule, progress):
    assert 0.0 <= schedule(min(1.0, progress + 0.01)) <= schedule(progress) <= 1.0


@quick
@given(st.floats(0.01, 0.99), st.floats(1e-3, 2.0), st.sampled_from(["linear", "exponential"]))
def test_warmup_is_continuous_and_monotone(length, start, shape):
    schedule = Warmup(Constant(), length, start, shape)
    assert schedule(0.0) == pytest.approx(start, rel=1e-12)
    assert schedule(length) == pytest.approx(1.0, rel=1e-12)
    assert schedule(length * (1 - 1e-9)) == pytest.approx(1.0, rel=1e-6)
    between = schedule(0.5 * length)
    assert min(start, 1.0) - 1e-12 <= between <= max(start, 1.0) + 1e-12


@quick
@given(st.floats(0.01, 0.99), fractions)
def test_after_warmup_a_schedule_sees_its_own_progress(length, local):
    schedule = Warmup(Cosine(), length)
    assert schedule(length + local * (1.0 - length)) == pytest.approx(Cosine()(local), abs=1e-9)


@quick
@given(st.integers(1, 400), st.integers(1, 4000), st.integers(0, 8000))
def test_no_step_changes_at_a_wrong_update(interval, horizon, step):
    """The exact answer is in whole numbers: the number of jumps by update `step` is step // interval."""
    jumps = step // interval
    every = interval / horizon
    assert Step(every, gamma=0.5)(step / horizon) == 0.5**jumps
    assert InverseTime(1.0, every, staircase=True)(step / horizon) == 1.0 / (1.0 + jumps)
    milestone = MultiStep((interval / horizon,), gamma=0.5)(step / horizon)
    assert milestone == (0.5 if step >= interval else 1.0)


@quick
@given(st.floats(0.01, 1.0), st.floats(1.0, 3.0), progresses)
def test_restarts_end_where_the_next_begin(period, t_mul, progress):
    schedule = CosineRestarts(period, t_mul)
    assert 0.0 <= schedule(progress) <= 1.0
    begins = period * sum(t_mul**i for i in range(3))
    assert schedule(begins) == pytest.approx(1.0, abs=1e-9)
    assert schedule(begins * (1 - 1e-6)) < 1e-3


def test_restarts_are_continuous_in_t_mul():
    progress = torch.linspace(0.0, 0.99, 60, dtype=torch.float64)
    almost = CosineRestarts(0.13, t_mul=1.0 + 1e-9)(progress)
    np.testing.assert_allclose(almost, CosineRestarts(0.13)(progress), atol=1e-6)


def test_one_cycle_without_steps_peaks_where_it_says():
    schedule = OneCycle(pct_start=0.25, three_phase=True)
    assert schedule(0.25) == 1.0
    assert schedule(0.5) == pytest.approx(1 / 25)
    assert schedule(1.0) == pytest.approx(1 / 25e4)
    assert (schedule.momentum(0.0), schedule.momentum(0.25), schedule.momentum(0.75)) == (0.95, 0.85, 0.95)


# A user's function.


def test_function_of_tensors_and_of_numbers():
    assert Function(lambda progress: 1 - progress)(0.25) == 0.75
    assert Function(lambda progress: math.cos(progress) if progress < 0.5 else 0.0)(0.0) == 1.0
    flat = Function(lambda progress: 0.5)(torch.zeros(3, 2))
    assert torch.equal(flat, torch.full((3, 2), 0.5))
    assert Function(lambda progress: torch.tensor(0.5, dtype=torch.float64))(torch.zeros(3)).dtype == torch.float32
    assert Function(lambda progress: progress.double())(torch.zeros(3)).dtype == torch.float32
    assert Warmup(Function(torch.cos), length=0.5, start=0.0)(0.25) == 0.5


def test_a_part_of_a_sequence_sees_its_own_progress_only():
    seen = []

    def note(progress):
        seen.extend([progress.min().item(), progress.max().item()])
        return progress

    progress = torch.linspace(0.0, 1.5, 31, dtype=torch.float64)
    Sequence((Function(note), Function(note)), milestones=(0.5,))(progress)
    assert seen == [0.0, 1.0, 0.0, 2.0]


@pytest.mark.parametrize("function", [math.cos, lambda p: 1.0 if p < 0.5 else 0.0, lambda p: p[:2]])
def test_function_that_cannot_serve_a_batch(function):
    with pytest.raises(ValueError, match=r"^got .*, expected .*; "):
        Function(function)(torch.rand(4))


def test_function_cannot_be_saved():
    for schedule in (Function(torch.cos), Warmup(Function(torch.cos))):
        with pytest.raises(ValueError, match=r"got a Function to save, expected .* numbers only.*; keep the function"):
            schedules.to_config(schedule)


# Names, files and errors.


def test_make():
    assert schedules.make("cosine", floor=0.1) == Cosine(floor=0.1)
    assert schedules.make("warmup", schedule=Step()) == Warmup(Step())
    with pytest.raises(ValueError, match=r"got schedule 'cosin', .*did you mean 'cosine'"):
        schedules.make("cosin")
    with pytest.raises(ValueError, match=r"got schedule 'step' with 'gama', expected .*; use every, gamma"):
        schedules.make("step", gama=0.1)


def test_equal_parameters_make_equal_schedules():
    assert Step(every=1, gamma=np.float64(0.1)) == Step(every=1.0, gamma=0.1)
    assert MultiStep([0.1, 0.2]) == MultiStep((0.1, 0.2))
    assert len({Cosine(), Cosine(0.0), REX(), Cosine(0.1)}) == 3
    assert repr(Step(every=1)) == "Step(every=1.0, gamma=0.1)"


REFUSED = [
    (
        lambda: Step(every=0.0),
        "got Step(every=0.0), expected every to be a finite number > 0; pass 0.3, for example",
    ),
    (lambda: Step(every=math.nan), "finite number > 0"),
    (lambda: Step(every=math.inf), "finite number > 0"),
    (lambda: Step(every=10**400), "finite number > 0"),
    (lambda: Step(every="0.3"), "finite number > 0"),
    (lambda: Step(every=True), "finite number > 0"),
    (lambda: Step(every=torch.tensor(0.3)), "finite number > 0"),
    (lambda: Cosine(floor=1.1), "a finite number >= 0 and <= 1"),
    (lambda: MultiStep(milestones=(0.5, 0.2)), "ascending"),
    (lambda: MultiStep(milestones=0.5), "a list or tuple"),
    (lambda: MultiStep(milestones=[0.5] * 2000), "at most 1000"),
    (lambda: PiecewiseConstant((0.5, 0.5), (1.0, 1.0, 1.0)), "differ"),
    (lambda: PiecewiseConstant((0.5,), (1.0,)), "one more value than boundaries; pass 2"),
    (lambda: Exponential(staircase=1), "True or False"),
    (lambda: KDecay(shape="cos"), "one of 'polynomial', 'cosine'"),
    (lambda: Tanh(lower=3.0, upper=-6.0), "lower < upper; swap"),
    (lambda: WSD(warmup=0.6, decay=0.6), "a sum of at most 1; shorten"),
    (lambda: OneCycle(pct_start=0.5, three_phase=True), "ascend; move pct_start away from 0 and 0.5"),
    (lambda: OneCycle(pct_start=0.3, steps=3), "use more steps"),
    (lambda: OneCycle(steps=2.5), "None or an integer >= 2"),
    (lambda: Cyclic(low=2.0), "low <= high; swap"),
    (lambda: Cyclic(down=0.0), "None or a finite number > 0"),
    (lambda: NoisyLinearCosine(seed=2**63), "64 bits"),
    (lambda: NoisyLinearCosine(draws=0), "an integer >= 1"),
    (lambda: Warmup(lambda p: p), "a schedule (wrap your own function in Function)"),
    (lambda: Warmup(start=0.0, shape="exponential"), "start > 0"),
    (lambda: Sequence((Cosine(), Cosine()), ()), "one more schedule than milestones"),
    (lambda: Sequence((), ()), "one more schedule than milestones"),
    (lambda: Function(0.5), "a function of progress"),
    (lambda: Cosine()(torch.tensor([0, 1])), "steps.double() / horizon"),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_refusals_say_what_came_what_was_expected_and_what_to_do(make, text):
    with pytest.raises(ValueError, match=r"^got (.|\n)*, expected ") as error:
        make()
    assert text in str(error.value)
    assert ";" in str(error.value) or "Function" in str(error.value)


def nested(depth):
    config = {"name": "cosine"}
    for _ in range(depth):
        config = {"name": "warmup", "schedule": config}
    return config


def endless():
    config = {"name": "warmup"}
    config["schedule"] = config
    return config


HOSTILE = [
    (None, "expected a dictionary"),
    ([], "expected a dictionary"),
    ({}, "expected a 'name'"),
    ({"name": ["cosine"]}, "expected a 'name'"),
    ({"name": "x" * 10**6}, "expected a 'name'"),
    ({"name": "cosne"}, "did you mean 'cosine'"),
    ({"name": "function", "fn": "os.system"}, "got schedule 'function'"),
    ({"name": "cosine", "__class__": "x"}, "use floor"),
    ({"name": "cosine", 3: 4}, "use floor"),
    ({"name": "cosine", "floor": "0.1"}, "a finite number"),
    ({"name": "cosine", "floor": None}, "a finite number"),
    ({"name": "cosine", "floor": {"name": "cosine"}}, "a finite number"),
    ({"name": "cosine", "floor": [0.1]}, "a finite number"),
    (json.loads('{"name": "cosine", "floor": NaN}'), "a finite number"),
    (json.loads('{"name": "step", "every": 1e999}'), "a finite number"),
    ({"name": "multi-step", "milestones": {"a": 1}}, "expected a 'name'"),
    ({"name": "multi-step", "milestones": "0.5"}, "a list or tuple"),
    ({"name": "multi-step", "milestones": [[0.5]]}, "finite number"),
    ({"name": "warmup", "schedule": "cosine"}, "a schedule"),
    ({"name": "sequence", "schedules": [{"name": "cosine"}, 3]}, "a schedule"),
    ({"name": "sequence", "schedules": [{"name": "cosine"}] * 10**4}, "a list or tuple"),
    (
        {"name": "sequence", "schedules": [{"name": "sequence", "schedules": [{"name": "rex"}] * 999}] * 999},
        "",
    ),
    (nested(8), "nested more than 8 deep"),
    (nested(900), "nested more than 8 deep"),
    (endless(), "nested more than 8 deep"),
]


@pytest.mark.parametrize(("config", "text"), HOSTILE, ids=[f"{i}-{text}" for i, (_, text) in enumerate(HOSTILE)])
def test_a_strange_file_is_refused(config, text):
    with pytest.raises(ValueError, match=r"^got .*, expected ") as error:
        schedules.from_config(config)
    assert text in str(error.value)
    assert len(str(error.value)) < 700


def test_too_many_schedules_are_refused():
    inner = {
        "name": "sequence",
        "schedules": [{"name": "rex"}] * 40,
        "milestones": [i / 40 for i in range(1, 40)],
    }
    config = {"name": "sequence", "schedules": [inner] * 40, "milestones": [i / 40 for i in range(1, 40)]}
    with pytest.raises(ValueError, match="more than 1000 schedules"):
        schedules.from_config(config)


def test_what_cannot_be_read_is_not_written():
    deepest = schedules.from_config(nested(7))
    assert schedules.from_config(schedules.to_config(deepest)) == deepest
    with pytest.raises(ValueError, match="nested more than 8 deep"):
        schedules.to_config(Warmup(deepest))


def test_a_file_may_leave_parameters_out():
    assert schedules.from_config({"name": "warmup", "schedule": {"name": "rex"}}) == Warmup(REX())


def test_every_schedule_documents_itself():
    for schedule in [*SCHEDULES.values(), Function]:
        for heading in ("Equation:", "Units:", "After progress 1:", "Source:", "Example:", ">>> "):
            assert heading in schedule.__doc__, (schedule, heading)


def test_contract_ids_are_distinct():
    assert all(left != right for left, right in itertools.combinations(CONTRACT, 2))
