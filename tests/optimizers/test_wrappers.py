"""Hypergradient descent and Lookahead: parity with the papers' algorithms in plain Python, invariances, errors."""

import math

import pytest
import torch
from torch import Tensor

from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import SGD, Adam, AdamW, ExpectedSGD, InnerOptimizer, RMSprop
from metalr.optimizers.wrappers import Hypergradient, Lookahead
from metalr.tasks.catalog import make_task

CURVATURE = (1.0, 0.3)


def train(optimizer: InnerOptimizer, lr: float, steps: int, start: tuple = (2.0, -1.0)) -> tuple[Tensor, tuple]:
    """Minimise 0.5 · Σ h w² for one run; returns the weights `(1, 2)` and the optimizer state."""
    params = torch.tensor([start], dtype=torch.float64)
    state = optimizer.init(params)
    for step in range(steps):
        gradient = optimizer.clip(params * torch.tensor(CURVATURE, dtype=torch.float64))
        params, state = optimizer.update(
            gradient, state, params, torch.tensor([[lr]], dtype=torch.float64), torch.tensor([[step]])
        )
    return params, state


def sgd_hd(lr: float, beta: float, steps: int) -> tuple[list[float], float]:
    """Algorithm 4 of the paper, in plain Python floats."""
    w, last = [2.0, -1.0], [0.0, 0.0]
    for _ in range(steps):
        g = [h * x for h, x in zip(CURVATURE, w, strict=True)]
        lr += beta * sum(a * b for a, b in zip(g, last, strict=True))
        w = [x - lr * gx for x, gx in zip(w, g, strict=True)]
        last = g
    return w, lr


def adam_hd(lr: float, beta: float, steps: int) -> tuple[list[float], float]:
    """Algorithm 5 of the paper, in plain Python floats."""
    w, m, v, last = [2.0, -1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    for t in range(1, steps + 1):
        g = [h * x for h, x in zip(CURVATURE, w, strict=True)]
        lr += beta * sum(a * b for a, b in zip(g, last, strict=True))
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        pairs = zip(m, v, strict=True)
        last = [(a / (1 - 0.9**t)) / (math.sqrt(b / (1 - 0.999**t)) + 1e-8) for a, b in pairs]
        w = [x - lr * d for x, d in zip(w, last, strict=True)]
    return w, lr


@pytest.mark.parametrize(("inner", "reference"), [(SGD(), sgd_hd), (Adam(), adam_hd)])
def test_follows_the_papers_algorithm(inner: InnerOptimizer, reference) -> None:
    params, state = train(Hypergradient(inner=inner, beta=1e-3), lr=0.05, steps=40)
    weights, lr = reference(0.05, 1e-3, 40)
    assert params[0].tolist() == pytest.approx(weights, abs=1e-12)
    assert state[0].item() == pytest.approx(lr, abs=1e-12)
    assert lr != 0.05


@pytest.mark.parametrize(
    "inner",
    [
        SGD(),
        SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
        RMSprop(),
        Adam(weight_decay=0.1),
        AdamW(),
        Adam(clip_norm=0.1),
    ],
)
def test_beta_zero_is_the_inner_optimizer(inner: InnerOptimizer) -> None:
    assert torch.allclose(train(Hypergradient(inner=inner, beta=0.0), 0.1, 20)[0], train(inner, 0.1, 20)[0], atol=1e-13)


def test_the_first_update_has_the_given_lr() -> None:
    given = train(Hypergradient(inner=SGD(), beta=1.0), lr=0.1, steps=1)[0]
    assert torch.equal(given, train(SGD(), 0.1, 1)[0])


def test_the_slope_is_the_derivative_of_the_loss_by_the_last_lr() -> None:
    def loss_after(second_lr: float) -> float:
        w = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
        h = torch.tensor(CURVATURE, dtype=torch.float64)
        w = w - second_lr * h * w
        return 0.5 * float((h * w.square()).sum())

    _, state = train(Hypergradient(inner=SGD(), beta=1.0), lr=0.1, steps=2)
    slope = (loss_after(0.1 + 1e-6) - loss_after(0.1 - 1e-6)) / 2e-6
    assert state[0].item() - 0.1 == pytest.approx(-slope, rel=1e-6)


def test_repairs_a_small_lr_in_the_engine() -> None:
    task = make_task("quadratic", horizon=60, optimizer=Hypergradient(inner=SGD(), beta=1e-3))
    runs = BatchedRuns(task, 2, dtype=torch.float64)
    runs.init(torch.tensor([0, 1]))
    runs.unroll(torch.full((2, 1), 1e-3, dtype=torch.float64), 60)
    plain = BatchedRuns(task.with_(optimizer="sgd"), 2, dtype=torch.float64)
    plain.init(torch.tensor([0, 1]))
    plain.unroll(torch.full((2, 1), 1e-3, dtype=torch.float64), 60)
    assert float(runs.evaluate("train").loss[0]) < 0.1 * float(plain.evaluate("train").loss[0])
    assert float(runs.state.optimizer[0][0]) > 0.01


def test_a_restarted_run_takes_the_lr_it_is_given_and_its_neighbour_goes_on() -> None:
    task = make_task("quadratic", horizon=60, optimizer=Hypergradient(inner=SGD(), beta=1e-3))
    together, alone = (BatchedRuns(task, 2, dtype=torch.float64) for _ in range(2))
    for runs in (together, alone):
        runs.init(torch.tensor([0, 1]))
        runs.unroll(torch.full((2, 1), 0.01, dtype=torch.float64), 5)
    together.reset_runs(torch.tensor([True, False]), torch.tensor([0, 0]))
    late = torch.tensor([[0.2], [0.0]], dtype=torch.float64)  # the second run must not read its own any more
    together.unroll(late, 2)
    alone.unroll(late, 2)
    assert torch.equal(together.state.params[1], alone.state.params[1])
    first, second = 12.0, 12.0 * (1.0 - 0.2 * 2.0)  # gradients of (w + 1)² from w = 5 at lr 0.2
    assert float(together.state.optimizer[0][0]) == pytest.approx(0.2 + 1e-3 * first * second)


def test_lookahead_by_hand() -> None:
    # SGD at lr 0.5 on curvature 1: 2 -> 1 -> 0.5, then the slow weight moves half way from 2 to 0.5.
    params, state = train(Lookahead(inner=SGD(), k=2, share=0.5), 0.5, 2)
    assert params[0, 0].item() == pytest.approx(1.25)
    assert state[0][0, 0].item() == pytest.approx(1.25)


def test_lookahead_with_share_one_is_the_inner_optimizer() -> None:
    inner = SGD(momentum=0.9)
    assert torch.allclose(train(Lookahead(inner=inner, k=3, share=1.0), 0.1, 20)[0], train(inner, 0.1, 20)[0])


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="got ExpectedSGD inside Hypergradient"):
        Hypergradient(inner=ExpectedSGD())
    with pytest.raises(ValueError, match="got beta -1"):
        Hypergradient(beta=-1.0)
    with pytest.raises(ValueError, match="got k 0"):
        Lookahead(k=0)
    with pytest.raises(NotImplementedError, match=r"no class in torch\.optim"):
        Hypergradient().to_torch([], 0.1)
    runs = BatchedRuns(make_task("teacher-student", optimizer=Hypergradient(), horizon=10), 1, groups="module")
    runs.init(torch.tensor([0]))
    with pytest.raises(ValueError, match="groups='global'"):
        runs.unroll(torch.full((1, 2), 0.1), 2)
