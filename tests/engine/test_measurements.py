"""What the engine measures of gradients and updates: against plain loops by hand, and free of the unit of the loss."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from metalr.control.reference import ReplayController, ScheduleController
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import OPTIMIZERS
from metalr.schedules import Cosine
from metalr.signals.observations import FEATURE_NAMES, FEATURES, feature
from metalr.tasks.catalog import make_task
from metalr.tasks.models import MLP
from metalr.tasks.task import Task
from tests.support.policies import recurrent_policy

SEEDS = torch.tensor([11, 5])
RATES = {"sgd": 0.2, "momentum": 0.05, "nesterov": 0.05, "rmsprop": 0.005, "adagrad": 0.05, "adam": 0.01, "adamw": 0.01}
GROUPS = [["layers.0.weight", "layers.0.bias"], ["layers.1.weight", "layers.1.bias"]]
INPUTS = torch.randn(80, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scaled_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor, unit: float) -> torch.Tensor:
    return unit * functional.cross_entropy(outputs, targets)


def task_of(optimizer, horizon: int = 24, unit: float = 1.0, **changes) -> Task:
    data, loss = (INPUTS, INPUTS[:, :3].argmax(-1)), partial(scaled_cross_entropy, unit=unit)
    return Task(partial(MLP, [6, 7, 3], torch.tanh), data, loss, optimizer, horizon=horizon, batch_size=8, **changes)


def plain_loop(task: Task, seed: torch.Tensor, lr: float, num_steps: int, groups) -> list[dict[str, torch.Tensor]]:
    """Weights, gradient and loss of each group before every update of a loop of the user's own."""
    engine = BatchedRuns(task, 1, dtype=torch.float64)
    engine.init(seed.view(1))
    module = engine.module_of(0)
    named = dict(module.named_parameters())
    optimizer = task.optimizer.to_torch(named.values(), lr)
    zero = torch.zeros(1, dtype=torch.int64)
    seen = []
    for inputs, targets in engine.data.batches(engine.seeds, engine.variants, zero, num_steps, task.batch_size):
        optimizer.zero_grad()
        loss = task.loss(module(inputs[0]), targets[0])
        loss.backward()
        weights = [torch.cat([named[name].detach().flatten() for name in group]) for group in groups]
        gradients = [torch.cat([named[name].grad.flatten() for name in group]) for group in groups]
        seen.append({"weights": weights, "gradients": gradients, "loss": loss.detach()})
        optimizer.step()
    return seen


@pytest.mark.parametrize("num_steps", [2, 7])
@pytest.mark.parametrize("groups", ["global", GROUPS], ids=["global", "groups"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_statistics_of_an_update_are_those_of_a_plain_loop(name, groups, num_steps):
    task, lr = task_of(name), RATES[name]
    runs = BatchedRuns(task, 2, dtype=torch.float64, groups=groups)
    runs.init(SEEDS)
    runs.unroll(torch.full((2,), lr, dtype=torch.float64), 5)
    measured = runs.unroll(torch.full((2,), lr, dtype=torch.float64), num_steps)
    names = [[*GROUPS[0], *GROUPS[1]]] if groups == "global" else GROUPS
    for run in range(2):
        before, after = plain_loop(task, SEEDS[run], lr, 5 + num_steps, names)[-2:]
        for index in range(len(names)):
            g, h = before["gradients"][index], after["gradients"][index]
            weights = after["weights"][index]
            update = weights - before["weights"][index]
            expected = {
                "gradient_norm": math.sqrt((g.norm().item() ** 2 + h.norm().item() ** 2) / 2.0),
                "gradient_cosine": functional.cosine_similarity(g, h, 0).item(),
                "update_ratio": (update.norm() / weights.norm()).item(),
                "log_descent": math.log(abs((g @ update).item())),
                "overshoot": functional.cosine_similarity(h, update, 0).item(),
                "edge_ratio": 1.0 - ((h @ update) / (g @ update)).item(),
            }
            got = {key: getattr(measured, key)[run, index].item() for key in expected}
            assert got == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("groups", ["global", GROUPS], ids=["global", "groups"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_prospect_is_that_of_a_plain_loop(name, groups):
    task, lr = task_of(name), RATES[name]
    runs = BatchedRuns(task, 2, dtype=torch.float64, groups=groups)
    runs.init(SEEDS)
    probe = runs.probe(torch.full((2,), lr, dtype=torch.float64))
    names = [[*GROUPS[0], *GROUPS[1]]] if groups == "global" else GROUPS
    for run in range(2):
        before, after = plain_loop(task, SEEDS[run], lr, 2, names)
        assert probe.log_loss[run].item() == pytest.approx(before["loss"].log().item(), rel=1e-12)
        for index in range(len(names)):
            weights = before["weights"][index]
            update = after["weights"][index] - weights
            descent = math.log(abs((before["gradients"][index] @ update).item()))
            assert probe.update_ratio[run, index].item() == pytest.approx((update.norm() / weights.norm()).item())
            assert probe.log_descent[run, index].item() == pytest.approx(descent, rel=1e-9)


# The unit of the loss


@pytest.mark.parametrize("unit", [1e-4, 8.0, 1e5])
@pytest.mark.parametrize("spacing", ["even", "doubling"])
@pytest.mark.parametrize("kind", ["replay", "recurrent"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_a_loss_in_another_unit_is_observed_alike(name, kind, spacing, unit):
    """With a loss of c times the size, descent at LR / c makes the same updates, and no feature may differ."""
    controller = ReplayController((1.0, 2.0, 0.5, 3.0, 1.0, 0.7), Cosine(), spacing)
    if kind == "recurrent":
        controller = recurrent_policy(decisions=6, dtype=torch.float64, spacing=spacing)
    base_lr = RATES[name] * torch.tensor([0.3, 3.0], dtype=torch.float64)
    plain, scaled = (
        run_episode(controller, BatchedRuns(task_of(name, 60, c), 2, dtype=torch.float64), SEEDS, base_lr / c)
        for c in (1.0, unit)
    )
    torch.testing.assert_close(scaled.lr * unit, plain.lr, rtol=1e-6, atol=0.0)
    for feature_name in FEATURE_NAMES:
        first, second = (feature(episode.observations, feature_name) for episode in (plain, scaled))
        torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-10, msg=lambda m, n=feature_name: f"{n}: {m}")
    varied = [name for name in FEATURE_NAMES if feature(plain.observations, name).unique().numel() > 2]
    assert {"polyak", "polyak_left", "overshoot", "edge", "update_ratio", "loss_trend", "loss_slope_left"} <= set(
        varied
    )
    assert "over_steepest" in varied or kind == "recurrent"


# Runs that end


def test_a_run_that_diverges_is_observed_within_bounds():
    controller = ScheduleController(Cosine(), 12, "doubling")
    runs = BatchedRuns(task_of("momentum", 60), 2)
    episode = run_episode(controller, runs, SEEDS, torch.tensor([0.05, 1e30], dtype=torch.float64))
    assert episode.diverged.tolist() == [False, True]
    for index, declared in enumerate(FEATURES):
        values = episode.observations[..., index]
        assert bool(((values >= declared.low) & (values <= declared.high)).all()), declared.name
    assert feature(episode.observations, "loss_exploded")[1:, 1].all()
    assert not feature(episode.observations, "loss_exploded")[:, 0].any()


def test_descent_beyond_the_minimum_of_a_quadratic_has_overshot():
    # Loss (w + 1)² from w = 5 at LR 0.7: w + 1 is multiplied by 1 - 2 · 0.7 = -0.4 at each step.
    task = make_task("quadratic", horizon=8)
    runs = BatchedRuns(task, 1, dtype=torch.float64)
    controller = ScheduleController(Cosine(floor=1.0), 4)  # constant, two steps to a decision
    episode = run_episode(controller, runs, SEEDS[:1], torch.tensor([0.7], dtype=torch.float64))
    shown = {name: feature(episode.observations, name)[:, 0, 0].tolist() for name in FEATURE_NAMES}
    assert shown["overshoot"] == pytest.approx([0.0, 1.0, 1.0, 1.0])
    # The edge ratio is 1.4: soft(0.4, 1).
    assert shown["edge"] == pytest.approx([0.0, 0.4 / 1.4, 0.4 / 1.4, 0.4 / 1.4])
    assert shown["over_lowest_overshot"] == pytest.approx([0.0, 0.0, 0.0, 0.0])
    # The first update promises 12 · 8.4 of a loss of 36; the mean log loss of an interval is a step's later.
    at_start = math.log10(36.0 / 100.8)
    assert shown["polyak"][0] == pytest.approx((at_start - 2.0) / (4.0 - at_start))
    interval = math.log10(36.0 * 0.4 / 100.8)  # geometric mean of 36 and 36 · 0.16
    assert shown["polyak"][1] == pytest.approx((interval - 2.0) / (4.0 - interval))
    assert shown["polyak_left"][1] == pytest.approx((interval - math.log10(6.0)) / (1.0 + math.log10(6.0) - interval))
