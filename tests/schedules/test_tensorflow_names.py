"""`schedules.tensorflow` against TensorFlow's definitions, written here once more in plain Python.

Sources: tensorflow/python/keras/optimizer_v2/legacy_learning_rate_decay.py (version 1) and keras
optimizers/schedules/learning_rate_schedule.py (version 2, and CosineDecay's warmup). TensorFlow itself is not
needed; it computes in float32, so 1e-6 is its own precision. The literal numbers are worked out by hand.
"""

import json
import math

import numpy as np
import pytest
import torch

from metalr import schedules
from metalr.schedules.tensorflow_names import DECAYS, KERAS_CLASSES

LR = 0.1


def exponential_decay(step, initial_learning_rate, decay_steps, decay_rate, staircase=False):
    exponent = step // decay_steps if staircase else step / decay_steps
    return initial_learning_rate * decay_rate**exponent


def natural_exp_decay(step, initial_learning_rate, decay_steps, decay_rate, staircase=False):
    exponent = step // decay_steps if staircase else step / decay_steps
    return initial_learning_rate * math.exp(-decay_rate * exponent)


def inverse_time_decay(step, initial_learning_rate, decay_steps, decay_rate, staircase=False):
    elapsed = step // decay_steps if staircase else step / decay_steps
    return initial_learning_rate / (1.0 + decay_rate * elapsed)


def polynomial_decay(step, initial_learning_rate, decay_steps, end_learning_rate=0.0001, power=1.0, cycle=False):
    if cycle:
        decay_steps = decay_steps * (1 if step == 0 else math.ceil(step / decay_steps))
    else:
        step = min(step, decay_steps)
    left = (1.0 - step / decay_steps) ** power
    return (initial_learning_rate - end_learning_rate) * left + end_learning_rate


def cosine_decay(step, initial_learning_rate, decay_steps, alpha=0.0, warmup_target=None, warmup_steps=0):
    peak = initial_learning_rate
    if warmup_target is not None:
        if step < warmup_steps:
            return initial_learning_rate + (warmup_target - initial_learning_rate) * step / warmup_steps
        step, peak = step - warmup_steps, warmup_target
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(step, decay_steps) / decay_steps))
    return peak * ((1.0 - alpha) * cosine + alpha)


def cosine_decay_restarts(step, initial_learning_rate, first_decay_steps, t_mul=2.0, m_mul=1.0, alpha=0.0):
    # Walks through the periods; TensorFlow uses logarithms, which must give the same result.
    length, peak, left = float(first_decay_steps), 1.0, float(step)
    while left >= length - 1e-9:
        left, length, peak = left - length, length * t_mul, peak * m_mul
    cosine = 0.5 * peak * (1.0 + math.cos(math.pi * left / length))
    return initial_learning_rate * ((1.0 - alpha) * cosine + alpha)


def linear_cosine_decay(step, initial_learning_rate, decay_steps, num_periods=0.5, alpha=0.0, beta=0.001):
    step = min(step, decay_steps)
    linear = (decay_steps - step) / decay_steps
    cosine = 0.5 * (1.0 + math.cos(math.pi * 2.0 * num_periods * step / decay_steps))
    return initial_learning_rate * ((alpha + linear) * cosine + beta)


def noisy_linear_cosine_decay(step, *, initial_variance=0.0, variance_decay=0.55, **arguments):
    assert initial_variance == 0.0, "the noise itself is compared by its distribution"
    return linear_cosine_decay(step, **arguments)


def piecewise_constant(step, boundaries, values):
    return values[sum(step > boundary for boundary in boundaries)]


GIVEN = {"initial_learning_rate": LR, "decay_steps": 50}
CALLS = [
    (exponential_decay, {**GIVEN, "decay_rate": 0.96}),
    (exponential_decay, {**GIVEN, "decay_rate": 0.5, "staircase": True}),
    (exponential_decay, {**GIVEN, "decay_steps": 3, "decay_rate": 0.9, "staircase": True}),
    (natural_exp_decay, {**GIVEN, "decay_rate": 0.5}),
    (natural_exp_decay, {**GIVEN, "decay_rate": 0.5, "staircase": True}),
    (inverse_time_decay, {**GIVEN, "decay_rate": 0.5}),
    (inverse_time_decay, {**GIVEN, "decay_steps": 1.0, "decay_rate": 0.5, "staircase": True}),
    (polynomial_decay, GIVEN),
    (polynomial_decay, {**GIVEN, "end_learning_rate": 0.01, "power": 0.5}),
    (polynomial_decay, {**GIVEN, "end_learning_rate": 0.01, "cycle": True}),
    (polynomial_decay, {**GIVEN, "decay_steps": 7, "end_learning_rate": 0.2, "power": 2.0, "cycle": True}),
    (cosine_decay, GIVEN),
    (cosine_decay, {**GIVEN, "alpha": 0.1}),
    (cosine_decay, {**GIVEN, "alpha": 0.1, "warmup_steps": 20}),
    (cosine_decay, {**GIVEN, "alpha": 0.1, "warmup_target": 0.4, "warmup_steps": 20}),
    (cosine_decay, {**GIVEN, "initial_learning_rate": 0.0, "warmup_target": 0.4, "warmup_steps": 7}),
    (cosine_decay, {**GIVEN, "warmup_target": 0.4}),
    (cosine_decay_restarts, {"initial_learning_rate": LR, "first_decay_steps": 10}),
    (
        cosine_decay_restarts,
        {"initial_learning_rate": LR, "first_decay_steps": 7, "t_mul": 1.0, "m_mul": 0.9},
    ),
    (
        cosine_decay_restarts,
        {"initial_learning_rate": LR, "first_decay_steps": 8, "t_mul": 1.5, "alpha": 0.2},
    ),
    (
        cosine_decay_restarts,
        {"initial_learning_rate": LR, "first_decay_steps": 1, "t_mul": 3.0, "m_mul": 0.5},
    ),
    (linear_cosine_decay, GIVEN),
    (linear_cosine_decay, {**GIVEN, "num_periods": 5, "alpha": 0.1, "beta": 1e-4}),
    (noisy_linear_cosine_decay, {**GIVEN, "initial_variance": 0.0}),
    (
        noisy_linear_cosine_decay,
        {**GIVEN, "initial_variance": 0.0, "num_periods": 2, "alpha": 0.1, "beta": 0.1},
    ),
    (piecewise_constant, {"boundaries": [30, 60, 61], "values": [1.0, 0.5, 0.7, 0.1]}),
    (piecewise_constant, {"boundaries": [99.5], "values": [0.0, 0.5]}),
]


@pytest.mark.parametrize(("definition", "arguments"), CALLS, ids=lambda value: getattr(value, "__name__", None))
def test_every_step_is_tensorflows(definition, arguments):
    lr = schedules.tensorflow(definition.__name__, **arguments)
    want = [definition(step, **arguments) for step in range(201)]
    np.testing.assert_allclose([lr(step) for step in range(201)], want, rtol=0.0, atol=1e-12)
    steps = torch.arange(201)
    np.testing.assert_allclose(lr(steps), want, rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(lr(steps.to(torch.float32)), want, rtol=0.0, atol=1e-6)


KERAS = {
    "ExponentialDecay": {"initial_learning_rate": LR, "decay_steps": 10, "decay_rate": 0.5, "name": "a"},
    "InverseTimeDecay": {"initial_learning_rate": LR, "decay_steps": 10, "decay_rate": 0.5, "staircase": True},
    "PolynomialDecay": {"initial_learning_rate": LR, "decay_steps": 10, "power": 2.0, "cycle": True},
    "CosineDecay": {"initial_learning_rate": 0.0, "decay_steps": 10, "warmup_target": LR, "warmup_steps": 5},
    "CosineDecayRestarts": {"initial_learning_rate": LR, "first_decay_steps": 10, "m_mul": 0.5},
    "PiecewiseConstantDecay": {"boundaries": [5, 12], "values": [0.1, 0.01, 0.001]},
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_classes_are_the_decays_of_their_names(name):
    found = schedules.tensorflow(name, **KERAS[name])
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:]
    old = {"piecewise_constant_decay": "piecewise_constant", "cosine_decay_restarts": "cosine_decay_restarts"}
    definition = globals()[old.get(words, words)]
    given = {key: value for key, value in KERAS[name].items() if key != "name"}
    for step in range(26):
        assert found(step) == pytest.approx(definition(step, **given), rel=1e-9, abs=1e-12)


def test_every_keras_class_is_compared():
    assert set(KERAS) == set(KERAS_CLASSES)
    with pytest.raises(ValueError, match="did you mean 'CosineDecay'"):
        schedules.tensorflow("CosineDecai", initial_learning_rate=0.1, decay_steps=10)


def test_every_decay_is_compared():
    assert {definition.__name__ for definition, _ in CALLS} == set(DECAYS)


# By hand.
LITERALS = [
    ("exponential_decay", {**GIVEN, "decay_rate": 0.25}, 25, 0.05),
    ("exponential_decay", {**GIVEN, "decay_rate": 0.25, "staircase": True}, 99, 0.025),
    ("natural_exp_decay", {**GIVEN, "decay_rate": 1.0}, 50, 0.036787944),
    ("inverse_time_decay", {**GIVEN, "decay_rate": 0.5}, 100, 0.05),
    ("polynomial_decay", {**GIVEN, "end_learning_rate": 0.01}, 25, 0.055),
    ("polynomial_decay", {**GIVEN, "end_learning_rate": 0.01, "cycle": True}, 75, 0.0325),
    ("polynomial_decay", {**GIVEN, "end_learning_rate": 0.01, "cycle": True}, 50, 0.01),
    ("cosine_decay", {**GIVEN, "alpha": 0.1}, 25, 0.055),
    (
        "cosine_decay",
        {**GIVEN, "initial_learning_rate": 0.0, "warmup_target": 0.2, "warmup_steps": 10},
        5,
        0.1,
    ),
    (
        "cosine_decay_restarts",
        {"initial_learning_rate": LR, "first_decay_steps": 10, "m_mul": 0.5},
        20,
        0.025,
    ),
    ("linear_cosine_decay", {**GIVEN, "beta": 0.0}, 25, 0.025),
    ("piecewise_constant", {"boundaries": [0], "values": [1.0, 0.5]}, 0, 1.0),
    ("piecewise_constant", {"boundaries": [10], "values": [1.0, 0.5]}, 10, 1.0),
    ("piecewise_constant", {"boundaries": [10], "values": [1.0, 0.5]}, 11, 0.5),
]


@pytest.mark.parametrize(("name", "arguments", "step", "want"), LITERALS)
def test_numbers_worked_out_by_hand(name, arguments, step, want):
    assert schedules.tensorflow(name, **arguments)(step) == pytest.approx(want, abs=1e-9)


def test_noise_has_tensorflows_distribution():
    # With no cosine and no line left, what remains is noise / (1 + step) ** (0.55 / 2), of either sign.
    given = {**GIVEN, "decay_steps": 64, "num_periods": 0, "beta": 0.0, "initial_learning_rate": 1.0}
    noise = np.array(
        [schedules.tensorflow("noisy_linear_cosine_decay", **given, seed=seed)(63) - 1 / 64 for seed in range(600)]
    )
    assert abs(noise.mean()) < 4.0 * math.sqrt(64**-0.55 / 600)
    assert noise.var() == pytest.approx(64**-0.55, rel=0.25)
    first = schedules.tensorflow("noisy_linear_cosine_decay", **given)
    assert first(7) == schedules.tensorflow("noisy_linear_cosine_decay", **given, seed=0)(7)
    assert first(7) != first(8)
    assert min(first(step) for step in range(64)) < 0.0


def test_kinds():
    lr = schedules.tensorflow("cosine_decay", **GIVEN)
    assert type(lr(3)) is float
    assert lr(torch.arange(6).reshape(2, 3)).shape == (2, 3)
    assert lr(torch.tensor(3)).dtype == torch.float64
    assert lr(torch.tensor(3.0)).dtype == torch.float32


def test_the_translation_is_a_schedule_that_can_be_saved():
    lr = schedules.tensorflow("polynomial_decay", **GIVEN, end_learning_rate=0.01, cycle=True)
    assert isinstance(lr.schedule, schedules.Polynomial)
    assert (lr.schedule.end, lr.schedule.cycle) == (pytest.approx(0.1), True)
    assert (lr.base_lr, lr.horizon) == (0.1, 50.0)
    again = schedules.from_config(json.loads(json.dumps(schedules.to_config(lr.schedule))))
    assert lr.base_lr * again(75 / lr.horizon) == lr(75)


def test_version_1_calls():
    call = {"learning_rate": LR, "decay_steps": 50, "name": "decay"}
    assert schedules.tensorflow("cosine_decay", **call) == schedules.tensorflow("cosine_decay", **GIVEN)


REFUSED = [
    ("cosine_decy", GIVEN, "got TensorFlow decay 'cosine_decy', expected a registered one: did you mean"),
    ("cosine_decay", {**GIVEN, "floor": 0.1}, "with 'floor', expected only its own parameters; use initial_"),
    ("exponential_decay", GIVEN, "without decay_rate, expected .*; pass decay_rate=..."),
    ("cosine_decay", {**GIVEN, "learning_rate": 0.1}, "got both .*, expected one of them; drop one"),
    ("cosine_decay", {**GIVEN, "decay_steps": 0}, "got decay_steps=0, expected a finite number > 0; pass"),
    ("cosine_decay", {**GIVEN, "initial_learning_rate": "0.1"}, "got initial_learning_rate='0.1', expected"),
    ("cosine_decay", {**GIVEN, "alpha": 2.0}, r"got Cosine\(floor=2.0\), expected"),
    (
        "cosine_decay_restarts",
        {"initial_learning_rate": 0.1, "first_decay_steps": 5, "t_mul": 0.5},
        "expected t_mul",
    ),
    (
        "piecewise_constant",
        {"boundaries": [1, 2], "values": [1.0]},
        "expected one more value than boundaries",
    ),
    (
        "piecewise_constant",
        {"boundaries": 3, "values": [1.0]},
        "got boundaries=3 .*, expected two lists; pass",
    ),
    ("polynomial_decay", {**GIVEN, "end_learning_rate": "0"}, "got end_learning_rate='0', expected a finite"),
]


@pytest.mark.parametrize(("name", "arguments", "text"), REFUSED)
def test_refusals(name, arguments, text):
    with pytest.raises(ValueError, match=text):
        schedules.tensorflow(name, **arguments)
