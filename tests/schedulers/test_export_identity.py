"""The product's identity: `LearnedLR` in a plain torch loop sets the same LRs as the engine did.

Same controller, same initial weights, same minibatches; the loop below does not use the engine.
"""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional

from metalr.control import loop
from metalr.control.actions import ActionSpec
from metalr.control.loop import Known
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.reference import RandomController, ScheduleController
from metalr.engine.episodes import Episode, run_episode
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import OPTIMIZERS
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant, Cosine, Linear, OneCycle, Warmup
from metalr.signals.observations import FEATURE_NAMES, NUM_FEATURES
from metalr.tasks.catalog import make_task
from metalr.tasks.models import MLP, ConvNet
from metalr.tasks.task import Task
from tests.support import policies

HORIZON, DECISIONS = 53, 7  # does not divide
SEED = torch.tensor([9])
RATES = {"sgd": 0.2, "momentum": 0.05, "nesterov": 0.05, "rmsprop": 0.005, "adagrad": 0.05, "adam": 0.01, "adamw": 0.01}
ANCHORED, RECURSIVE = ActionSpec(alpha=1.0), ActionSpec(mode="recursive", alpha=0.4)
ABSOLUTE = ActionSpec("absolute", alpha=1.0, reference=0.03)


def task_of(optimizer, horizon: int = HORIZON, model=partial(MLP, [6, 8, 3], torch.tanh)) -> Task:  # noqa: B008
    inputs = torch.randn(90, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = inputs[:, :3].argmax(-1)
    return Task(model, (inputs, labels), functional.cross_entropy, optimizer, horizon=horizon, batch_size=10)


# Strong enough that a wrong feature shows in the LR.
random_policy = partial(policies.random_policy, decisions=DECISIONS, hidden=16, scales=(1.0, 0.25), dtype=torch.float64)


def in_engine(controller, task: Task, base_lr: float, groups="global", **options) -> Episode:
    runs = BatchedRuns(task, 1, dtype=torch.float64, groups=groups)
    return run_episode(controller, runs, SEED, torch.tensor([base_lr], dtype=torch.float64), **options)


def observe_first(scheduler, optimizer, loss, t) -> None:
    scheduler.observe(loss)
    optimizer.step()
    scheduler.step()


def without_loss(scheduler, optimizer, loss, t) -> None:
    optimizer.step()
    scheduler.step()


def loss_to_step(scheduler, optimizer, loss, t) -> None:
    optimizer.step()
    scheduler.step(loss)


def in_plain_loop(
    controller, task: Task, base_lr: float, *, calls=observe_first, groups=None, tensor_lr=False, **options
) -> tuple[torch.Tensor, list[list[float]], torch.nn.Module, LearnedLR]:
    """The LR of every update `(horizon, num_groups)`, the observations at decisions, the network and the scheduler."""
    engine = BatchedRuns(task, 1, dtype=torch.float64)
    engine.init(SEED)
    module = engine.module_of(0)
    named = dict(module.named_parameters())
    params = [{"params": [named[name] for name in group]} for group in groups] if groups else named.values()
    optimizer = task.optimizer.to_torch(params, torch.tensor(base_lr, dtype=torch.float64) if tensor_lr else base_lr)
    given = [group["lr"] for group in optimizer.param_groups]
    scheduler = LearnedLR(optimizer, controller, task.horizon, **options)
    zero = torch.zeros(1, dtype=torch.int64)
    rates, seen = [], []
    for t, (inputs, targets) in enumerate(
        engine.data.batches(engine.seeds, engine.variants, zero, task.horizon, task.batch_size)
    ):
        optimizer.zero_grad()
        loss = task.loss(module(inputs[0]), targets[0])
        loss.backward()
        if task.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), task.optimizer.clip_norm)
        used: list[float] = []
        handle = optimizer.register_step_post_hook(
            lambda o, *_, used=used: used.extend(float(group["lr"]) for group in o.param_groups)
        )
        calls(scheduler, optimizer, loss, t)
        handle.remove()
        rates.append(used)
        features = scheduler.explain()["features"]
        row = [features[name][0] for name in FEATURE_NAMES]
        if not seen or row != seen[-1]:
            seen.append(row)
    if tensor_lr:
        assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, given, strict=True))
    return torch.tensor(rates, dtype=torch.float64), seen, module, scheduler


def assert_same(episode: Episode, rates: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(rates, episode.lr[:, 0], rtol=tolerance, atol=0.0)


def assert_eventful(episode: Episode) -> None:
    """The comparison would prove little if the controller did nothing."""
    multipliers = episode.multipliers[:, 0, 0]
    assert multipliers.std() > 0.01
    assert len(multipliers.unique()) == DECISIONS


@pytest.mark.parametrize("action", [ANCHORED, RECURSIVE, ABSOLUTE], ids=["anchored", "recursive", "absolute"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_loop_sets_the_lrs_of_the_engine(name, action):
    if action.mode == "absolute":
        action = replace(action, reference=1.5 * RATES[name])
    task, controller = task_of(name), random_policy(action)
    episode = in_engine(controller, task, RATES[name])
    rates, seen, _, _ = in_plain_loop(controller, task, RATES[name])
    assert_eventful(episode)
    assert_same(episode, rates)
    torch.testing.assert_close(
        torch.tensor(seen, dtype=torch.float64), episode.observations[:, 0, 0], rtol=0.0, atol=1e-8
    )


def test_an_absolute_action_sets_the_same_lrs_from_any_guess_and_in_every_group():
    task, controller = task_of("momentum"), random_policy(ABSOLUTE)
    episode, other = (in_engine(controller, task, lr) for lr in (0.05, 5e-4))
    assert torch.equal(episode.lr, other.lr)
    assert torch.equal(episode.observations, other.observations)
    assert episode.lr[0].item() == pytest.approx(0.03 * episode.multipliers[0].item())
    assert_same(episode, in_plain_loop(controller, task, 5e-4)[0])
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": model.weight, "lr": 0.3}, {"params": model.bias, "lr": 0.001}])
    scheduler = LearnedLR(optimizer, controller, 20)
    model(torch.ones(4, 2)).square().mean().backward()
    optimizer.step()
    scheduler.step()
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert first == second != 0.3


@pytest.mark.parametrize("factor", [1.0, 10.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_eight_hundred_updates(name, factor):
    """Rounding grows where the base LR is too big: then LRs agree as far as what was observed does."""
    task, controller = task_of(name, horizon=800), random_policy(ANCHORED)
    episode = in_engine(controller, task, factor * RATES[name])
    rates, seen, _, scheduler = in_plain_loop(controller, task, factor * RATES[name])
    assert not bool(episode.diverged.any())
    apart = ((rates - episode.lr[:, 0]).abs() / episode.lr[:, 0]).amax(1)  # (800,)
    assert float(apart[: 800 if factor == 1.0 else 200].max()) < 1e-9
    observed = (torch.tensor(seen, dtype=torch.float64) - episode.observations[:, 0, 0]).abs().amax(1)
    starts = [entry["updates"] for entry in scheduler.history]
    assert len(starts) == len(observed) == DECISIONS
    for start, stop, difference in zip(starts, [*starts[1:], 800], observed.tolist(), strict=True):
        assert float(apart[start:stop].max()) < 1e-9 + 100.0 * difference


@pytest.mark.filterwarnings("ignore:LearnedLR. the LR multiplier has been at its")  # a random policy may stay there
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("horizon", [14, 15, 50, 97])
def test_other_policies_and_horizons(horizon, seed):
    task, controller = task_of("momentum", horizon), random_policy(ANCHORED, seed)
    assert_same(in_engine(controller, task, 0.05), in_plain_loop(controller, task, 0.05)[0])


@pytest.mark.parametrize(
    "schedule",
    [Constant(), Linear(), OneCycle(), Warmup(length=0.15, schedule=Cosine(floor=0.1))],
    ids=lambda schedule: type(schedule).__name__,
)
def test_other_base_schedules(schedule):
    # Two of these do not begin at 1: the first update that is foreseen is the one that would be made.
    task, controller = task_of("momentum"), random_policy(ANCHORED, schedule=schedule)
    assert_same(in_engine(controller, task, 0.05), in_plain_loop(controller, task, 0.05)[0])


def test_levels():
    task, controller = task_of("momentum"), random_policy(replace(ANCHORED, levels=7))
    assert_same(in_engine(controller, task, 0.05), in_plain_loop(controller, task, 0.05)[0])


def test_clipped_gradients():
    task, controller = task_of(replace(OPTIMIZERS["momentum"], clip_norm=0.2)), random_policy(ANCHORED)
    assert_same(in_engine(controller, task, 0.05), in_plain_loop(controller, task, 0.05)[0])


def test_weight_decay():
    task, controller = task_of(replace(OPTIMIZERS["adam"], weight_decay=0.1)), random_policy(ANCHORED)
    assert_same(in_engine(controller, task, 0.01), in_plain_loop(controller, task, 0.01)[0])


def test_a_convolutional_network():
    task = make_task("teacher-student", horizon=HORIZON)
    inputs = torch.randn(60, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = partial(ConvNet, 1, 1, [8, 8], 1)
    task = task.with_(model=model, data=(inputs, inputs.mean(-1)), batch_size=8)
    controller = random_policy(ANCHORED)
    assert_same(in_engine(controller, task, 0.05), in_plain_loop(controller, task, 0.05)[0])


def test_final_weights_agree():
    task, controller = task_of("adam"), random_policy(ANCHORED)
    episode = in_engine(controller, task, 0.01)
    module = in_plain_loop(controller, task, 0.01)[2]
    inputs, targets = task.data.test
    loss = task.loss(module(inputs[0]), targets[0]).item()
    assert episode.final["test"][0].item() == pytest.approx(loss, rel=1e-8)


def test_one_controller_for_every_parameter_group():
    groups = [["layers.0.weight", "layers.0.bias"], ["layers.1.weight", "layers.1.bias"]]
    task, controller = task_of("momentum"), random_policy(ANCHORED)
    episode = in_engine(controller, task, 0.05, groups=groups)
    rates = in_plain_loop(controller, task, 0.05, groups=groups, scope="param_group")[0]
    assert not torch.allclose(episode.lr[..., 0], episode.lr[..., 1])
    assert_same(episode, rates)


def test_one_controller_over_all_parameter_groups():
    groups = [["layers.0.weight", "layers.0.bias"], ["layers.1.weight", "layers.1.bias"]]
    task, controller = task_of("momentum"), random_policy(ANCHORED)
    rates = in_plain_loop(controller, task, 0.05, groups=groups)[0]
    assert_same(in_engine(controller, task, 0.05), rates[:, :1])
    assert torch.equal(rates[:, 0], rates[:, 1])


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_without_losses(name):
    task, controller = task_of(name), random_policy(ANCHORED)
    episode = in_engine(controller, task, RATES[name], known=Known(loss=0.0))
    rates = in_plain_loop(controller, task, RATES[name], calls=without_loss)[0]
    assert_same(episode, rates)
    assert not torch.allclose(episode.lr, in_engine(controller, task, RATES[name]).lr)


def test_losses_passed_to_step_are_missing_at_the_first_decision_only():
    task, controller = task_of("momentum"), random_policy(ANCHORED)
    _, observed, _, _ = in_plain_loop(controller, task, 0.05)
    _, passed, _, _ = in_plain_loop(controller, task, 0.05, calls=loss_to_step)
    has_loss = FEATURE_NAMES.index("has_loss")
    assert [row[has_loss] for row in observed] == [1.0] * DECISIONS
    assert [row[has_loss] for row in passed] == [0.0] + [1.0] * (DECISIONS - 1)

    # A policy that sees nothing of the loss at the start sets the same LRs either way.
    from_start = {"has_loss", "polyak", "polyak_left", "loss_total", "loss_change", "loss_over_best", "over_steepest"}
    visible = tuple(name for name in FEATURE_NAMES if name not in from_start)
    blind = PolicyController(controller.network, ANCHORED, controller.schedule, DECISIONS, visible)
    first = in_plain_loop(blind, task, 0.05)[0]
    assert torch.equal(first, in_plain_loop(blind, task, 0.05, calls=loss_to_step)[0])
    assert_same(in_engine(blind, task, 0.05), first)


SCOPES = {
    "global": {},
    "param_group": {"groups": [["layers.0.weight", "layers.0.bias"], ["layers.1.weight", "layers.1.bias"]]},
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_recurrent_controller_with_early_decisions(name, scope, monkeypatch):
    """The same LRs, the same features, and the same raw statistics behind them."""
    task = task_of(name, horizon=80)
    controller = policies.recurrent_policy(decisions=5, dtype=torch.float64, spacing="doubling", head=0.3)
    measured: list[tuple] = []
    observe, observe_start = loop.observations.observe, loop.observations.observe_start
    monkeypatch.setattr(loop.observations, "observe", lambda s, *rest: measured.append(s) or observe(s, *rest))
    monkeypatch.setattr(
        loop.observations, "observe_start", lambda p, *rest: measured.append(p) or observe_start(p, *rest)
    )
    episode = in_engine(controller, task, RATES[name], **SCOPES[scope])
    in_training, measured[:] = [*measured], []
    rates, seen, _, _ = in_plain_loop(controller, task, RATES[name], scope=scope, **SCOPES[scope])
    # 16 is the spacing of five even decisions; 64 updates are left after it, for four more intervals.
    assert len(measured) == len(in_training) == len(seen) == len([0, 2, 4, 8, 16, 32, 48, 64])
    assert_same(episode, rates)
    assert episode.multipliers[:, 0, 0].unique().numel() == len(seen)
    for mine, theirs in zip(measured, in_training, strict=True):
        for field in mine._fields:
            torch.testing.assert_close(
                getattr(mine, field), getattr(theirs, field), rtol=1e-7, atol=1e-9, msg=lambda m, f=field: f"{f}: {m}"
            )
    if scope == "global":
        shown = torch.tensor(seen, dtype=torch.float64)
        torch.testing.assert_close(shown, episode.observations[:, 0, 0], rtol=0.0, atol=1e-8)


def without_hooks(scheduler, optimizer, loss, t) -> None:
    scheduler.observe(loss)
    optimizer.step()
    scheduler.step()


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_without_hooks(name):
    task, controller = task_of(name), random_policy(ANCHORED)
    rates = in_plain_loop(controller, task, RATES[name], calls=without_hooks, hooks=False)[0]
    assert_same(in_engine(controller, task, RATES[name]), rates)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tensor_lr_stays_the_same_object_and_gets_the_same_values(name):
    task, controller = task_of(name), random_policy(ANCHORED)
    assert_same(
        in_engine(controller, task, RATES[name]), in_plain_loop(controller, task, RATES[name], tensor_lr=True)[0]
    )


def step_called(times_at):
    def calls(scheduler, optimizer, loss, t) -> None:
        scheduler.observe(loss)
        optimizer.step()
        for _ in range(times_at(t)):
            scheduler.step()

    return calls


@pytest.mark.parametrize(
    "times_at",
    [lambda t: t % 3 != 0, lambda t: t % 5 == 0, lambda t: 3, lambda t: [0, 2, 1, 4][t % 4]],
    ids=["two of three", "one of five", "three times", "mixed"],
)
def test_missing_and_repeated_calls_of_step_change_nothing(times_at):
    task, controller = task_of("momentum"), random_policy(ANCHORED)
    rates = in_plain_loop(controller, task, 0.05, calls=step_called(times_at))[0]
    assert_same(in_engine(controller, task, 0.05), rates)


def test_a_step_once_per_epoch_is_explained_once_and_changes_nothing():
    task, controller = task_of("momentum"), random_policy(ANCHORED)
    with pytest.warns(UserWarning, match="once after 20 optimizer updates") as record:
        rates = in_plain_loop(controller, task, 0.05, calls=step_called(lambda t: t % 20 == 19))[0]
    assert len(record) == 1
    assert_same(in_engine(controller, task, 0.05), rates)


def test_a_loss_observed_in_parts_is_its_mean():
    def in_parts(scheduler, optimizer, loss, t) -> None:
        scheduler.observe(0.5 * loss)
        scheduler.observe({"a": loss, "b": 0.5 * loss})
        optimizer.step()
        scheduler.step()

    task, controller = task_of("momentum"), random_policy(ANCHORED)
    assert_same(in_engine(controller, task, 0.05), in_plain_loop(controller, task, 0.05, calls=in_parts)[0])


def test_a_run_resumed_at_any_update_goes_on_exactly():
    task, controller = task_of("adam"), random_policy(ANCHORED)

    def rebuilt_at(stop):
        def calls(scheduler, optimizer, loss, t) -> None:
            observe_first(scheduler, optimizer, loss, t)
            if t == stop:
                other = LearnedLR(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], 0.01), controller, HORIZON)
                other.load_state_dict(scheduler.state_dict())
                scheduler.load_state_dict(other.state_dict())

        return calls

    expected = in_plain_loop(controller, task, 0.01)[0]
    for stop in range(0, HORIZON, 4):
        assert torch.equal(expected, in_plain_loop(controller, task, 0.01, calls=rebuilt_at(stop))[0])


def test_the_schedule_controller_is_the_schedule():
    task = task_of("momentum")
    schedule = Warmup(length=0.2, schedule=Cosine())
    rates = in_plain_loop(ScheduleController(schedule, DECISIONS), task, 0.05)[0]
    expected = torch.tensor([0.05 * schedule(t / HORIZON) for t in range(HORIZON)], dtype=torch.float64)
    torch.testing.assert_close(rates[:, 0], expected, rtol=1e-12, atol=0.0)


def test_the_random_control():
    task, controller = task_of("momentum"), RandomController(action=ANCHORED, schedule=Cosine(), decisions=DECISIONS)
    episode = in_engine(controller, task, 0.05)
    assert_eventful(episode)
    assert_same(episode, in_plain_loop(controller, task, 0.05)[0])


def test_the_breaker_acts_alike():
    # The quadratic grows by 1.1 at every step with lr = 1.05, until the breaker cuts.
    task = make_task("quadratic", horizon=60)
    zero = PolicyNetwork([torch.zeros(1, NUM_FEATURES)], [torch.zeros(1)])
    controller = PolicyController(zero, ActionSpec(), Cosine(floor=0.9), 12)
    episode = in_engine(controller, task, 1.1)
    assert episode.multipliers.min() < 0.31
    assert not episode.diverged.any()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rates = in_plain_loop(controller, task, 1.1)[0]
    assert_same(episode, rates)
    assert len([w for w in caught if "the loss exploded" in str(w.message)]) == 1
