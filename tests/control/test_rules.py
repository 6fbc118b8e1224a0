"""Reactive rules against torch's own class and hand-made cases; bounds; the same LRs in engine and plain loop."""

import json
import math

import pytest
import torch
from torch import Tensor

from metalr.control import loop
from metalr.control.catalog import build_controller
from metalr.control.loop import Known
from metalr.control.rules import (
    RULES,
    GradientNormRule,
    GreedyLR,
    LossDecay,
    ReactiveRule,
    ReduceOnPlateau,
    UpDownRule,
    unsoft,
)
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Linear
from metalr.signals.observations import NUM_FEATURES, soft
from metalr.signals.stats import Prospect, RunStats
from metalr.tasks.catalog import make_task


def stats(loss: float, norm: float = 1.0, runs: int = 1, exploded: float = 0.0) -> RunStats:
    """The statistics of an interval with this mean loss and gradient norm."""
    one = torch.ones(runs, dtype=torch.float64)
    log_loss = one * (math.log(loss) if math.isfinite(loss) else math.nan)
    column = one[:, None]
    of_loss = log_loss, one * 0.0, one * 0.1, one * 10.0, one * exploded
    return RunStats(*of_loss, column * norm, column * 0.0, column * 1e-3, column * -5.0, column * 0.0, column * 1.0)


def multipliers(rule: ReactiveRule, intervals: list[RunStats], start: float = math.nan, **known: float) -> list[float]:
    """The multiplier at the start, where the loss is `start` (NaN if no loss is passed there), and after intervals."""
    like = torch.ones(1, 1, dtype=torch.float64)
    prospect = Prospect(1e-3 * like, -5.0 * like, start * like[:, 0])
    prospect = prospect._replace(log_loss=prospect.log_loss.log())
    horizon = 10.0 * (len(intervals) + 1)
    state = loop.start(rule, loop.init(rule.init(like), like), prospect, horizon, Known(**known))
    found = [state.multiplier.item()]
    for index, interval in enumerate(intervals):
        state = loop.decide(rule, state, interval, 10.0 * (index + 1), horizon, Known(**known))
        found.append(state.multiplier.item())
    return found


def after(rule: ReactiveRule, losses: list[float], start: float = math.nan) -> list[float]:
    """The multiplier after each interval with these mean losses."""
    return multipliers(rule, [stats(loss) for loss in losses], start)[1:]


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_unsoft_undoes_soft(scale: float) -> None:
    value = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64)
    assert torch.allclose(unsoft(soft(value, scale), scale), value, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_contract(name: str) -> None:
    rule = RULES[name](decisions=6)
    rebuilt = build_controller(json.loads(json.dumps(rule.config())), rule.tensors())
    assert rebuilt == rule
    assert rule.with_schedule(Linear()).schedule == Linear()
    torch.manual_seed(0)
    observation = torch.rand(5, 2, NUM_FEATURES, dtype=torch.float64) * 2.0 - 1.0
    state = rule.init(observation[..., 0])
    before = [value.clone() for value in state]
    multiplier, new = rule(observation, state)
    assert multiplier.shape == (5, 2)
    assert bool(((multiplier >= rule.low) & (multiplier <= rule.high)).all())
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
    alone, _ = rule(observation[2:3], rule.init(observation[2:3, ..., 0]))
    assert torch.equal(alone[0], multiplier[2])
    assert [v.shape for v in new] == [v.shape for v in state]


@pytest.mark.parametrize("name", RULES)
def test_nothing_moves_before_the_first_interval_or_without_a_signal(name: str) -> None:
    rule = RULES[name]()
    assert multipliers(rule, [])[0] == 1.0
    if not isinstance(rule, GradientNormRule):
        assert multipliers(rule, [stats(1.0), stats(2.0), stats(0.5)], loss=0.0) == [1.0] * 4


@pytest.mark.parametrize(("patience", "cooldown", "threshold"), [(0, 0, 1e-4), (2, 0, 1e-4), (1, 2, 0.1), (3, 1, 0.01)])
def test_reduce_on_plateau_is_torchs(patience: int, cooldown: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(patience)
    losses = (2.0 * torch.rand(60, generator=generator, dtype=torch.float64).cumsum(0).reciprocal() + 0.5).tolist()
    losses = [loss + 0.3 * (index % 7) for index, loss in enumerate(losses)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, cooldown=cooldown, threshold=threshold, min_lr=1e-3, eps=0.0
    )
    expected = []
    for loss in losses:
        theirs.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    ours = ReduceOnPlateau(factor=0.5, patience=patience, cooldown=cooldown, threshold=threshold, low=1e-3)
    assert after(ours, losses) == pytest.approx(expected, rel=1e-12)
    assert expected[-1] < 1.0


def test_loss_decay_follows_a_power_of_the_loss() -> None:
    assert after(LossDecay(power=2.0), [4.0, 2.0, 8.0]) == pytest.approx([1.0, 0.25, 1.0])
    assert after(LossDecay(power=2.0), [4.0, 2.0, 8.0], start=8.0) == pytest.approx([0.25, 0.0625, 1.0])


def test_gradient_norm_rule_by_hand() -> None:
    rule = GradientNormRule(up=1.1, down=0.5, tolerance=0.05)
    norms = [1.0, 1.0, 2.0, 1.0]
    found = multipliers(rule, [stats(1.0, norm) for norm in norms], loss=0.0)
    assert found[1:] == pytest.approx([1.0, 1.0, 0.5, 0.55])


def test_greedy_by_hand() -> None:
    up = 1.0 / 0.8
    assert after(GreedyLR(factor=0.8), [4.0, 3.0, 2.0, 2.5, 1.9]) == pytest.approx([1.0, up, up**2, up, up**2])
    patient = after(GreedyLR(factor=0.8, patience=1), [4.0, 3.0, 2.0, 2.5, 2.5, 1.9])
    assert patient == pytest.approx([1.0, 1.0, up, up, 1.0, 1.0])


def test_up_down_by_hand() -> None:
    found = after(UpDownRule(up=1.5, down=0.5), [4.0, 3.0, 3.5, 3.4])
    assert found == pytest.approx([1.0, 1.5, 0.75, 1.125])


@pytest.mark.parametrize("rule", [GreedyLR(factor=0.5), UpDownRule(up=2.0, down=0.5), ReduceOnPlateau(patience=1)])
@pytest.mark.parametrize("start", [1.0, 3.0, 9.0])
def test_the_first_interval_is_the_reference_whatever_the_loss_at_the_start(rule: ReactiveRule, start: float) -> None:
    losses = [3.0, 2.5, 2.6, 2.7, 2.4]
    assert after(rule, losses, start) == pytest.approx(after(rule, losses))
    assert len(set(after(rule, losses))) > 1


def test_an_explosion_never_counts_as_an_improvement() -> None:
    intervals = [stats(2.0), stats(1.0), stats(math.nan, exploded=1.0)]
    assert multipliers(GreedyLR(factor=0.5), intervals)[1:] == pytest.approx([1.0, 2.0, 1.0])
    assert multipliers(UpDownRule(up=2.0, down=0.5), intervals)[1:] == pytest.approx([1.0, 2.0, 1.0])


def test_multipliers_stay_within_their_bounds() -> None:
    rule = GreedyLR(factor=0.1, high=5.0, low=0.2)
    found = after(rule, [2.0**-k for k in range(6)] + [100.0] * 6)
    assert max(found) == 5.0
    assert min(found) == pytest.approx(0.2)


def plain_loop(rule: ReactiveRule, runs: BatchedRuns, run: int, lr: float, horizon: int) -> Tensor:
    """The LRs of the same run in a plain torch loop."""
    module = runs.module_of(run)
    optimizer = runs.task.optimizer.to_torch(module.parameters(), lr)
    scheduler = LearnedLR(optimizer, rule, horizon)
    zero = torch.zeros(runs.num_runs, dtype=torch.int64)
    batches = runs.data.batches(runs.seeds, runs.variants, zero, horizon, runs.task.batch_size)
    found = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = runs.task.loss(module(inputs[run]), targets[run])
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        found.append(scheduler.get_last_lr()[0])
        scheduler.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", RULES)
def test_engine_and_plain_loop_set_the_same_lrs(name: str) -> None:
    task = make_task("teacher-student", width=8, horizon=40, batch_size=16)
    runs = BatchedRuns(task, 2, dtype=torch.float64)
    seeds = torch.tensor([3, 4])
    eager = {"patience": 0, "threshold": 0.5} if name == "reduce-on-plateau" else {}
    rule = RULES[name](decisions=10, **eager)
    episode = run_episode(rule, runs, seeds, torch.full((2,), 0.05), splits=())
    runs.init(seeds)
    found = plain_loop(rule, runs, 1, 0.05, 40)
    assert torch.allclose(found, episode.lr[:, 1, 0], rtol=1e-6)
    assert len(set(found.tolist())) > 1


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="0 < low <= 1 <= high"):
        GreedyLR(low=2.0)
    with pytest.raises(ValueError, match=r"got factor '0\.5' for GreedyLR, expected a finite number"):
        build_controller({**GreedyLR().config(), "factor": "0.5"}, {})
