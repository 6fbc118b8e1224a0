"""Every contender builds at its defaults and at every corner of its space, and serves runs and schedulers alike."""

import itertools

import pytest
import torch

from metalr import schedules
from metalr.compare.catalog import (
    CLASSIC,
    CONTENDERS,
    EXTERNAL_CONTENDERS,
    SCHEDULE_CONTENDERS,
    get_contender,
    target_contenders,
)
from metalr.compare.contenders import Ablation, Contender, FixedContender, LearnedContender, of_schedule
from metalr.control.reference import ScheduleController
from metalr.optimizers.classic import SGD, Adam, InnerOptimizer
from metalr.optimizers.wrappers import CycledMomentum
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task

HORIZON = 50


def trained_by(optimizer: InnerOptimizer, **changes) -> Task:
    return make_task("quadratic", optimizer=optimizer, horizon=HORIZON, **changes)


def corners(contender: Contender) -> list[dict]:
    """Every combination of the first and last value of each parameter."""
    ends = [(dimension.at(0.0), dimension.at(1.0 - 1e-12)) for dimension in contender.space.values()]
    return [dict(zip(contender.space, combination, strict=True)) for combination in itertools.product(*ends)]


@pytest.mark.parametrize("name", CONTENDERS)
def test_builds_at_its_defaults_and_at_every_corner(name: str) -> None:
    contender = CONTENDERS[name]
    assert contender.name == name
    assert contender.about
    for parameters in [{}, *corners(contender)]:
        controller = contender.controller(parameters, HORIZON)
        assert controller.decisions == HORIZON // 2
        progress = torch.arange(HORIZON, dtype=torch.float64) / HORIZON
        factor = controller.schedule(progress)
        assert factor.shape == (HORIZON,)
        assert bool((factor.isfinite() & (factor >= 0.0)).all())


@pytest.mark.parametrize("name", SCHEDULE_CONTENDERS)
def test_schedules_serve_a_users_loop(name: str) -> None:
    schedule = SCHEDULE_CONTENDERS[name].schedule({})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = ScheduleLR(optimizer, schedule, horizon=HORIZON)
    for step in range(HORIZON):
        assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * schedule(step / HORIZON), abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_every_classic_schedule_is_a_contender_by_some_name() -> None:
    built = {type(contender.schedule({})) for contender in SCHEDULE_CONTENDERS.values()}
    learned = {"knots"}  # what meta-gradients export: nothing that anybody tunes by hand
    assert {schedules.SCHEDULES[name] for name in schedules.SCHEDULES if name not in learned} == built


def test_the_eight_of_the_demo_are_there() -> None:
    assert len(CLASSIC) == 8
    assert set(CLASSIC) <= set(SCHEDULE_CONTENDERS)


def test_a_fixed_contender_ignores_the_tasks_lr() -> None:
    fixed = FixedContender(name="mine", schedule=schedules.Linear(), lrs={"quadratic": 0.25})
    assert fixed.base_lr(make_task("quadratic", base_lr=7.0)) == 0.25
    assert fixed.ignores_guess
    assert fixed.fits(make_task("quadratic"))
    assert not fixed.fits(make_task("teacher-student"))
    assert fixed.describe()["lrs"] == {"quadratic": 0.25}
    assert fixed.describe()["schedule"]["schedule"]["name"] == "linear"


def test_rules_decide_at_least_every_two_inner_steps() -> None:
    assert get_contender("greedy").controller({}, 10).decisions == 5
    assert get_contender("greedy").controller({}, 1000).decisions == 40


def test_optimizers_replace_the_inner_optimizer_and_nothing_else_does() -> None:
    inner = SGD(momentum=0.9)
    changed = get_contender("hypergradient").optimizer({"beta": 1e-3}, trained_by(inner))
    assert changed.inner == inner
    assert changed.beta == 1e-3
    assert get_contender("cosine").optimizer({}, trained_by(inner)) is inner
    assert get_contender("lookahead").optimizer({}, trained_by(Adam())).inner == Adam()


@pytest.mark.parametrize("name", ["one-cycle", "cyclic", "cyclic-2"])
def test_schedules_that_move_the_momentum_do_so_where_there_is_one(name: str) -> None:
    contender = get_contender(name)
    cycled = contender.optimizer({}, trained_by(SGD(momentum=0.9, clip_norm=1.0)))
    assert isinstance(cycled, CycledMomentum)
    assert (cycled.schedule, cycled.horizon) == (contender.schedule({}), HORIZON)
    assert isinstance(contender.optimizer({}, trained_by(Adam())), CycledMomentum)
    assert contender.optimizer({}, trained_by(SGD())) == SGD()
    assert contender.optimizer({}, trained_by(Adam(), plain=True)) == Adam()
    assert contender.describe()["cycle_momentum"]
    keys = [contender.batch_key({}, make_task("quadratic", optimizer=kind)) for kind in ("momentum", "momentum", "sgd")]
    assert keys[0] == keys[1]
    assert get_contender("cosine").batch_key({}, make_task("quadratic", optimizer="sgd")) == keys[2] != keys[0]


def test_targets_keep_the_tasks_clipping() -> None:
    optimizers = [c.optimizer({}, trained_by(SGD(clip_norm=2.0))) for c in target_contenders()]
    assert all(optimizer.clip_norm == 2.0 for optimizer in optimizers)
    assert len(optimizers) == 4
    assert isinstance(target_contenders()[0].controller({}, 100).schedule, schedules.Cosine)


def test_external_optimizers_fit_where_their_inner_optimizer_is_the_tasks() -> None:
    fitting = {
        name: {c.name for c in EXTERNAL_CONTENDERS.values() if c.fits(make_task("quadratic", optimizer=name))}
        for name in ("sgd", "momentum", "adam", "adamw", "rmsprop")
    }
    assert fitting["momentum"] == {"schedule-free-sgd", "d-adaptation-sgd", "dog", "mechanic-sgd", "momo"}
    assert fitting["sgd"] == fitting["momentum"]
    assert fitting["adamw"] == {*("schedule-free-adamw", "prodigy", "d-adaptation-adam", "mechanic-adamw", "momo-adam")}
    assert fitting["adam"] == fitting["adamw"]
    assert fitting["rmsprop"] == set()


def test_optimizers_do_not_fit_a_task_that_follows_second_moments() -> None:
    noisy, usual = make_task("noisy-quadratic"), make_task("quadratic")
    every = [*CONTENDERS.values(), *EXTERNAL_CONTENDERS.values(), *target_contenders()]
    assert all(contender.fits(usual) for contender in (*CONTENDERS.values(), *target_contenders()))
    assert {c.name for c in every if not c.fits(noisy)} == {
        *("hypergradient", "lookahead", "target: nesterov", "target: rmsprop", "target: adam", "target: adamw"),
        *EXTERNAL_CONTENDERS,
    }


def test_the_lr_range_lies_around_the_tasks_lr_or_the_contenders_own() -> None:
    task = make_task("quadratic")
    assert get_contender("cosine").base_lr(task) == task.base_lr
    assert get_contender("prodigy").base_lr(task) == 1.0
    assert {c.base_lr(task) for c in target_contenders()} == {0.1, 3e-3}


def test_controllers_keep_their_decisions_and_are_described_by_their_tensors() -> None:
    given = ScheduleController(schedules.Cosine(), decisions=7)
    learned, ablation = LearnedContender(name="a", learned=given), Ablation(name="b", variant=given)
    assert learned.controller({}, 1000) is ablation.controller({}, 1000) is given
    assert learned.describe() == ablation.describe()
    assert set(learned.describe()) == {*given.config(), "sha256"}


def test_runs_of_two_external_optimizers_share_no_batch() -> None:
    task = make_task("quadratic")
    keys = [get_contender(name).batch_key({}, task) for name in ("cosine", "wsd", *EXTERNAL_CONTENDERS)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 1 + len(EXTERNAL_CONTENDERS)


def test_a_users_own_function_joins() -> None:
    own = of_schedule("own", schedules.Function(lambda progress: 1.0 - progress))
    assert isinstance(own.controller({}, 100), ScheduleController)
    assert own.schedule({})(0.25) == 0.75


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        get_contender("cosinus")
    with pytest.raises(ValueError, match=r"got parameters \['flor'\].*expected names among \['floor'\]"):
        get_contender("cosine").controller({"flor": 0.1}, HORIZON)
