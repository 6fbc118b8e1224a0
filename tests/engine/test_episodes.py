"""Controlled runs: the record of an episode, and a schedule against a table of LRs made by hand."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from metalr.control.actions import ActionSpec
from metalr.control.controller import decision_steps
from metalr.control.loop import Known
from metalr.control.lr import interval_lr
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.reference import ScheduleController
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.schedules import Constant, Cosine, Linear, Warmup
from metalr.signals.observations import FEATURE_NAMES, NUM_FEATURES, feature
from metalr.tasks.catalog import make_task
from metalr.tasks.losses import accuracy
from metalr.tasks.models import MLP
from metalr.tasks.task import Task

SEEDS = torch.tensor([4, 8, 15])
INPUTS = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TASK = Task(
    partial(MLP, [5, 6, 3], torch.tanh),
    (INPUTS, INPUTS[:, :3].argmax(-1)),
    functional.cross_entropy,
    metric=accuracy,
    horizon=23,
    batch_size=8,
)
RATES = torch.tensor([0.1, 0.02, 0.3], dtype=torch.float64)


def runs_of(task: Task = TASK, num_runs: int = 3, **options) -> BatchedRuns:
    return BatchedRuns(task, num_runs, **{"dtype": torch.float64, **options})


def constant_policy(action: float, **spec) -> PolicyController:
    """A policy that always wants the same action."""
    bias = torch.tensor([action], dtype=torch.float64)
    network = PolicyNetwork([torch.zeros(1, NUM_FEATURES, dtype=torch.float64)], [bias])
    return PolicyController(network, ActionSpec(**spec), Constant(), 5)


def test_a_record_has_the_stated_shapes():
    episode = run_episode(ScheduleController(Cosine(), decisions=5), runs_of(groups="module"), SEEDS, RATES)
    assert episode.lr.shape == (23, 3, 2)
    assert episode.log_loss.shape == (5, 3)
    assert episode.observations.shape == (5, 3, 2, NUM_FEATURES)
    assert episode.multipliers.shape == (5, 3, 2)
    assert episode.diverged.tolist() == [False] * 3
    assert list(episode.final) == ["train", "valid", "test"]
    for loss, metric in episode.final.values():
        assert loss.shape == metric.shape == (3,)
        assert loss.dtype == torch.float64


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), Linear(), Warmup(length=0.2, schedule=Cosine())])
def test_a_schedule_equals_a_table_of_lrs_made_by_hand(schedule):
    controlled, by_hand = runs_of(), runs_of()
    episode = run_episode(ScheduleController(schedule, decisions=5), controlled, SEEDS, RATES)
    table = torch.stack([RATES * schedule(t / 23) for t in range(23)])
    torch.testing.assert_close(episode.lr[..., 0], table, rtol=1e-14, atol=0.0)
    by_hand.init(SEEDS)
    by_hand.unroll(table[..., None], 23)
    torch.testing.assert_close(controlled.state.params, by_hand.state.params, rtol=0.0, atol=1e-12)
    assert torch.equal(episode.final["valid"][0], controlled.evaluate("valid").loss)


def test_decisions_do_not_change_an_open_loop_run():
    results = []
    for decisions in (2, 11):
        runs = runs_of()
        run_episode(ScheduleController(Cosine()), runs, SEEDS, RATES, decisions=decisions)
        results.append(runs.state.params)
    assert torch.equal(*results)


def test_the_observation_of_the_start_is_the_prospective_update():
    episode = run_episode(constant_policy(0.0), runs_of(), SEEDS, RATES)
    first = episode.observations[0]
    fresh = runs_of()
    fresh.init(SEEDS)
    probe = fresh.probe(RATES)
    expected = ((probe.update_ratio.log10() + 3.0) / 3.0).clamp(-1.0, 1.0)
    torch.testing.assert_close(feature(first, "update_ratio"), expected, rtol=1e-12, atol=0.0)
    updates = (probe.log_loss[:, None] - probe.log_descent) / math.log(10.0)
    polyak, left = updates - 2.0, updates - math.log10(23.0)
    torch.testing.assert_close(feature(first, "polyak"), polyak / (2.0 + polyak.abs()), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(feature(first, "polyak_left"), left / (1.0 + left.abs()), rtol=1e-12, atol=0.0)
    shown = {name for name in FEATURE_NAMES if feature(first, name).any()}
    assert shown == {"update_ratio", "polyak", "polyak_left", "has_loss", "has_horizon", "has_gradient"}


def test_progress_and_multiplier_are_observed_at_every_decision():
    episode = run_episode(constant_policy(0.2, alpha=1.0), runs_of(), SEEDS, RATES)
    progress = feature(episode.observations, "progress")[:, 0, 0]
    assert progress.tolist() == pytest.approx([step / 23 for step in decision_steps(23, 5)])
    in_force = feature(episode.observations, "lr_multiplier")[:, 0, 0]
    assert in_force.tolist() == pytest.approx([0.0, *[0.2 / 7.0] * 4])
    assert feature(episode.observations, "has_history")[:, 0, 0].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_a_decision_holds_until_the_next_one():
    episode = run_episode(constant_policy(0.3, mode="recursive", alpha=1.0), runs_of(), SEEDS, RATES)
    factors = [math.exp(0.3 * (d + 1)) for d in range(5)]
    assert episode.multipliers[:, 1, 0].tolist() == pytest.approx(factors, rel=1e-12)
    stops = [*decision_steps(23, 5), 23]
    for d, factor in enumerate(factors):
        assert episode.lr[stops[d] : stops[d + 1], 1, 0].tolist() == pytest.approx(
            [0.02 * factor] * (stops[d + 1] - stops[d]), rel=1e-12
        )


def test_the_log_loss_is_of_the_interval():
    episode = run_episode(ScheduleController(Constant(), decisions=5), runs_of(), SEEDS, RATES)
    by_hand = runs_of()
    by_hand.init(SEEDS)
    stops = [*decision_steps(23, 5), 23]
    for d in range(5):
        stats = by_hand.unroll(RATES, stops[d + 1] - stops[d])
        torch.testing.assert_close(episode.log_loss[d], stats.log_loss, rtol=0.0, atol=1e-12)


def test_hidden_losses_are_masked_and_change_no_open_loop_run():
    shown, hidden = (
        run_episode(constant_policy(0.1), runs_of(), SEEDS, RATES, known=Known(loss=flag)) for flag in (1.0, 0.0)
    )
    assert torch.equal(shown.log_loss, hidden.log_loss)
    for name in FEATURE_NAMES:
        if name.startswith(("loss_", "polyak", "over_steepest")) or name == "has_loss":
            assert not feature(hidden.observations, name).any()
        elif name != "over_lowest_overshot":  # a rise of the loss is one of its signs
            assert torch.equal(feature(shown.observations, name), feature(hidden.observations, name))


def test_what_is_known_may_differ_between_runs():
    flags = torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([[1.0], [1.0], [0.0]])
    mixed = run_episode(constant_policy(0.1), runs_of(), SEEDS, RATES, known=Known(*flags))
    for run in range(3):
        known = Known(*(flag[run].item() for flag in flags))
        alike = run_episode(constant_policy(0.1), runs_of(), SEEDS, RATES, known=known)
        assert torch.equal(mixed.observations[:, run], alike.observations[:, run])


def test_early_decisions():
    controller = ScheduleController(Constant(), decisions=5, spacing="doubling")
    episode = run_episode(controller, runs_of(), SEEDS, RATES)
    steps = decision_steps(23, 5, "doubling")
    assert steps == [0, 2, 4, 8, 13, 18]  # 15 of 23 are left after 8: three intervals
    progress = feature(episode.observations, "progress")[:, 0, 0]
    assert progress.tolist() == pytest.approx([step / 23 for step in steps])
    even = run_episode(ScheduleController(Constant(), decisions=5), runs_of(), SEEDS, RATES)
    assert torch.equal(episode.lr, even.lr)
    assert torch.equal(episode.final["test"][0], even.final["test"][0])


def test_an_episode_starts_anew():
    runs = runs_of()
    first = run_episode(constant_policy(0.1), runs, SEEDS, RATES)
    second = run_episode(constant_policy(0.1), runs, SEEDS, RATES)
    for name in ("lr", "log_loss", "observations", "multipliers"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_a_run_does_not_depend_on_its_neighbours():
    together = run_episode(constant_policy(0.1), runs_of(), SEEDS, RATES)
    wild = run_episode(constant_policy(0.1), runs_of(), SEEDS, torch.tensor([0.1, 1e30, 0.3], dtype=torch.float64))
    for run in (0, 2):
        assert torch.equal(together.log_loss[:, run], wild.log_loss[:, run])
        assert torch.equal(together.observations[:, run], wild.observations[:, run])
        assert together.final["test"][0][run] == wild.final["test"][0][run]
    assert wild.diverged.tolist() == [False, True, False]
    assert wild.final["test"][0][1].item() == math.inf


def test_the_breaker_saves_a_quadratic_whose_base_lr_is_too_big():
    # w + 1 grows by 1.1 at every step with lr = 1.05; at 0.3 times that it shrinks by 0.37.
    task = make_task("quadratic", horizon=60)
    runs = runs_of(task, 1)
    base_lr = torch.tensor([1.05], dtype=torch.float64)
    episode = run_episode(constant_policy(0.0), runs, SEEDS[:1], base_lr, decisions=12)
    multipliers = episode.multipliers[:, 0, 0].tolist()
    exploded = feature(episode.observations, "loss_exploded")[:, 0, 0].tolist()
    # Mean log losses of 5 steps differ by 10 log 1.1 = 0.95; log 4 = 1.39 is passed after the third interval.
    assert exploded == [0.0, 0.0, 0.0, 1.0] + [0.0] * 8
    assert multipliers[:7] == pytest.approx([1.0, 1.0, 1.0, 0.3, 0.39, 0.507, 0.6591])
    assert not episode.diverged.any()
    plain = run_episode(ScheduleController(Constant(), decisions=12), runs, SEEDS[:1], base_lr)
    assert plain.diverged.all()


def test_interval_lr_in_numbers():
    lr = interval_lr(
        Linear(), torch.tensor([1.0, 2.0]).double(), torch.tensor([[1.0], [0.5]]), torch.tensor([0, 5]), 2, 10
    )
    expected = torch.tensor([[[1.0], [0.5]], [[0.9], [0.4]]], dtype=torch.float64)
    torch.testing.assert_close(lr, expected, rtol=1e-12, atol=0.0)


def test_a_horizon_that_is_too_short_for_the_decisions():
    with pytest.raises(ValueError, match="got horizon 23 with 40 decisions, expected"):
        run_episode(ScheduleController(Constant()), runs_of(), SEEDS, RATES, decisions=40)
    fewer = run_episode(ScheduleController(Constant()), runs_of(), SEEDS, RATES)
    assert len(fewer.multipliers) == 11  # its own number is 40; this is one for every two of 23 inner steps


@pytest.mark.parametrize("decisions", [0, -1])
def test_a_number_of_decisions_that_is_no_number(decisions):
    with pytest.raises(ValueError, match=f"with {decisions} decisions, expected"):
        run_episode(ScheduleController(Constant(), decisions=5), runs_of(), SEEDS, RATES, decisions=decisions)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_base_lr_that_is_no_lr(value):
    with pytest.raises(ValueError, match=r"got .*, expected .*finite"):
        run_episode(ScheduleController(Constant(), decisions=5), runs_of(), SEEDS, RATES * value)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_base_lrs_of_another_shape(num):
    with pytest.raises(ValueError, match=r"got .*, expected .*3"):
        run_episode(ScheduleController(Constant(), decisions=5), runs_of(), SEEDS, torch.full((num,), 0.1))
