"""Every baseline builds at its defaults and at every corner of its space, and serves runs and schedulers alike."""

import itertools

import pytest
import torch

from metalr import schedules
from metalr.compare.contenders import BASELINES, CLASSIC, Baseline, get_baseline, of_schedule, target_baselines
from metalr.control.reference import ScheduleController
from metalr.optimizers.classic import SGD, Adam
from metalr.schedulers.schedule_lr import ScheduleLR

HORIZON = 50


def corners(baseline: Baseline) -> list[dict]:
    """Every combination of the first and last value of each parameter."""
    ends = [(values[0], values[-1]) for values in baseline.space.values()]
    return [dict(zip(baseline.space, combination, strict=True)) for combination in itertools.product(*ends)]


@pytest.mark.parametrize("name", BASELINES)
def test_builds_at_its_defaults_and_at_every_corner(name: str) -> None:
    baseline = BASELINES[name]
    assert baseline.name == name
    assert baseline.about
    for parameters in [{}, *corners(baseline)]:
        controller = baseline.controller(parameters, HORIZON)
        assert controller.decisions == HORIZON // 2
        progress = torch.arange(HORIZON, dtype=torch.float64) / HORIZON
        factor = controller.schedule(progress)
        assert factor.shape == (HORIZON,)
        assert bool((factor.isfinite() & (factor >= 0.0)).all())


@pytest.mark.parametrize("name", [name for name, baseline in BASELINES.items() if baseline.kind == "schedule"])
def test_schedules_serve_a_users_loop(name: str) -> None:
    schedule = BASELINES[name].build()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = ScheduleLR(optimizer, schedule, horizon=HORIZON)
    for step in range(HORIZON):
        assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * schedule(step / HORIZON), abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_every_classic_schedule_is_a_baseline_by_some_name() -> None:
    built = {type(b.build()) for b in BASELINES.values() if b.kind == "schedule"}
    learned = {"knots"}  # what meta-gradients export: nothing that anybody tunes by hand
    assert {schedules.SCHEDULES[name] for name in schedules.SCHEDULES if name not in learned} == built


def test_the_eight_of_the_demo_are_there() -> None:
    assert len(CLASSIC) == 8
    assert all(get_baseline(name).kind == "schedule" for name in CLASSIC)


def test_settings_begin_with_the_defaults_and_never_repeat() -> None:
    baseline = get_baseline("one-cycle")
    settings = baseline.settings(100, seed=3)
    assert settings[0] == baseline.defaults
    assert len(settings) == 12 == len({tuple(sorted(s.items())) for s in settings})
    assert settings[:5] == baseline.settings(5, seed=3)
    assert settings != baseline.settings(100, seed=4)


def test_rules_decide_at_least_every_two_inner_steps() -> None:
    assert get_baseline("greedy").controller({}, 10).decisions == 5
    assert get_baseline("greedy").controller({}, 1000).decisions == 40


def test_optimizers_replace_the_inner_optimizer_and_nothing_else_does() -> None:
    inner = SGD(momentum=0.9)
    changed = get_baseline("hypergradient").optimizer({"beta": 1e-3}, inner)
    assert changed.inner == inner
    assert changed.beta == 1e-3
    assert get_baseline("cosine").optimizer({}, inner) is inner
    assert get_baseline("lookahead").optimizer({}, Adam()).inner == Adam()


def test_targets_keep_the_tasks_clipping() -> None:
    optimizers = [b.optimizer({}, SGD(clip_norm=2.0)) for b in target_baselines()]
    assert all(optimizer.clip_norm == 2.0 for optimizer in optimizers)
    assert len(optimizers) == 4
    assert isinstance(target_baselines()[0].controller({}, 100).schedule, schedules.Cosine)


def test_a_users_own_function_joins() -> None:
    own = of_schedule("own", schedules.Function(lambda progress: 1.0 - progress))
    assert isinstance(own.controller({}, 100), ScheduleController)
    assert own.build()(0.25) == 0.75


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        get_baseline("cosinus")
    with pytest.raises(ValueError, match=r"got parameters \['flor'\].*expected names among \['floor'\]"):
        get_baseline("cosine").build({"flor": 0.1})
    with pytest.raises(ValueError, match="expected one of the listed values"):
        Baseline("odd", "schedule", schedules.Cosine, {"floor": (0.1,)}, {"floor": 0.2})
