"""What the meter measures when updates fail, training stops between two updates, or some gradients are sparse."""

import copy
import io
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.meter import OptimizerMeter
from metalr.signals.stats import RunStats
from tests.support.policies import moderate_policy, random_policy, recurrent_policy

KINDS = {
    "plain": lambda params: SGD(params, lr=0.05),
    "momentum": lambda params: SGD(params, lr=0.05, momentum=0.9),
    "tensor_lr": lambda params: SGD(params, lr=torch.tensor(0.05, dtype=torch.float64), momentum=0.9),
    "nesterov": lambda params: SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda params: Adam(params, lr=0.05),
}
GRADIENT_STATS = RunStats._fields[5:]


class Net:
    """A small net with two parameter groups under an optimizer."""

    def __init__(self, kind: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = ((3, 4), (3,), (2, 3))
        self.params = [
            nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / 2.0) for shape in shapes
        ]
        self.optimizer = KINDS[kind]([{"params": self.params[:2]}, {"params": self.params[2:]}])
        self.updates = 0

    def backward(self) -> torch.Tensor:
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(self.updates), dtype=torch.float64)
        self.optimizer.zero_grad()
        first, bias, second = self.params
        outputs = torch.tanh(inputs @ first.T + bias) @ second.T
        loss = (outputs - inputs[:, :2].sin()).square().mean()
        loss.backward()
        return loss.detach()

    def update(self, scheduler: LearnedLR | None = None) -> list[float]:
        loss = self.backward()
        if scheduler is not None:
            scheduler.observe(loss)
        self.optimizer.step()
        self.updates += 1
        if scheduler is not None:
            scheduler.step()
        return [float(group["lr"]) for group in self.optimizer.param_groups]


def measured(meter: OptimizerMeter) -> dict[str, list[float]]:
    values = meter.statistics(meter.on_device())
    return {name: value.flatten().tolist() for name, value in zip(GRADIENT_STATS, values, strict=True)}


def up_to_the_last(kind: str, scope: str = "global") -> tuple[Net, OptimizerMeter]:
    """A net whose second-to-last update of an interval has been made, with the gradients of the last one."""
    net = Net(kind)
    meter = OptimizerMeter(net.optimizer, scope)
    net.update()
    net.backward()
    meter.before_second_last()
    net.optimizer.step()
    net.updates += 1
    net.backward()
    return net, meter


# Measured again


@pytest.mark.parametrize("scope", ["global", "param_group"])
@pytest.mark.parametrize("kind", KINDS)
def test_to_measure_the_last_update_again_gives_the_same(kind, scope):
    _, meter = up_to_the_last(kind, scope)
    meter.before_last()
    once = measured(meter)
    for _ in range(3):
        meter.before_last()
    assert measured(meter) == once
    assert all(math.isfinite(value) for values in once.values() for value in values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_the_last_call_count(kind):
    net, meter = up_to_the_last(kind)
    complete = [p.grad.clone() for p in net.params]
    for p in net.params:
        p.grad = p.grad.flip(0) / 3.0
    meter.before_last()
    partial = measured(meter)
    for p, gradient in zip(net.params, complete, strict=True):
        p.grad = gradient
    meter.before_last()
    _, other = up_to_the_last(kind)
    other.before_last()
    assert measured(meter) == measured(other)
    assert partial["overshoot"] != measured(other)["overshoot"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_to_last_update_measured_again(kind):
    net = Net(kind)
    meter = OptimizerMeter(net.optimizer, "global")
    net.update()
    net.backward()
    for p in net.params:
        p.grad.mul_(-2.0)  # of an attempt that fails
    meter.before_second_last()
    net.backward()
    meter.before_second_last()
    net.optimizer.step()
    net.updates += 1
    net.backward()
    meter.before_last()
    _, other = up_to_the_last(kind)
    other.before_last()
    assert measured(meter) == measured(other)


def test_gradients_that_vanish_between_the_two_updates_leave_nothing_to_compare():
    net, meter = up_to_the_last("adam")
    net.params[1].grad = None
    meter.before_last()
    assert meter.on_device() is None
    assert all(math.isnan(value) for values in measured(meter).values() for value in values)


# Checkpoints between the last two updates


@pytest.mark.parametrize("moment", ["between", "measured"])
@pytest.mark.parametrize("scope", ["global", "param_group"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_meter_saved_between_the_last_two_updates(kind, scope, moment):
    net, meter = up_to_the_last(kind, scope)
    if moment == "measured":
        meter.before_last()
    file = io.BytesIO()
    torch.save(meter.state(), file)
    file.seek(0)
    meter.before_last()  # what was saved must not share memory with what goes on
    expected = measured(meter)
    other = OptimizerMeter(net.optimizer, scope)
    other.load_state(torch.load(file, weights_only=True))
    other.before_last()
    assert measured(other) == expected


@pytest.mark.parametrize("scope", ["global", "param_group"])
@pytest.mark.parametrize("policy", [partial(random_policy, scales=(0.3, 0.2)), recurrent_policy], ids=["mlp", "gru"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_at_any_update_is_the_same_to_the_bit(kind, policy, scope):
    """Decisions fall at updates 0, 2, 4, 8, 12, …: stops before the last update of an interval are among these."""
    controller, horizon = policy(spacing="doubling"), 23
    whole = Net(kind)
    scheduler = LearnedLR(whole.optimizer, controller, horizon, scope=scope)
    expected = [whole.update(scheduler) for _ in range(horizon)]
    held = set()
    for stop in range(1, 17):
        first = Net(kind)
        scheduler = LearnedLR(first.optimizer, controller, horizon, scope=scope)
        rates = [first.update(scheduler) for _ in range(stop)]
        file = io.BytesIO()
        torch.save([scheduler.state_dict(), first.optimizer.state_dict()], file)
        held.add(scheduler.state_dict()["meter"]["held"] is not None)
        file.seek(0)
        saved, optimizer_state = torch.load(file, weights_only=True)
        second = Net(kind)
        second.updates = stop
        for p, old in zip(second.params, copy.deepcopy(first.params), strict=True):
            p.data = old.data
        second.optimizer.load_state_dict(optimizer_state)
        again = LearnedLR(second.optimizer, controller, horizon, scope=scope)
        again.load_state_dict(saved)
        rates += [second.update(again) for _ in range(horizon - stop)]
        assert rates == expected, stop
    assert held == {True, False}
    assert len({tuple(row) for row in expected}) == horizon


# Sparse gradients


class Words(nn.Module):
    """An embedding with sparse gradients under a dense layer."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(20, 4, sparse=sparse, dtype=torch.float64)
        self.layer = nn.Linear(4, 2, dtype=torch.float64)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(self.embedding(tokens).mean(1))


def read(sparse: bool, scope: str, kind: str, groups) -> tuple[list[dict], list[list[float]]]:
    """The history and LRs of a training with an embedding, whose gradients may be sparse."""
    net = Words(sparse)
    optimizer = KINDS[kind](groups(net))
    scheduler = LearnedLR(optimizer, moderate_policy(), 24, scope=scope)
    rates = []
    for t in range(24):
        tokens = torch.randint(0, 20, (8, 3), generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        loss = (net(tokens) - tokens[:, :2].double() / 10.0).square().mean()
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return scheduler.history, rates


def split(net: Words) -> list[dict]:
    return [{"params": net.embedding.parameters()}, {"params": net.layer.parameters()}]


@pytest.mark.parametrize("groups", [split, lambda net: [{"params": net.parameters()}]], ids=["split", "together"])
def test_beside_sparse_gradients_the_dense_ones_are_measured(groups):
    history, _ = read(True, "global", "plain", groups)
    assert len(history) == 5
    for entry in history:
        assert entry["features"]["has_gradient"] == [1.0]
    shown = {name for name, value in history[-1]["features"].items() if value != [0.0]}
    assert {"update_ratio", "polyak", "overshoot", "edge", "gradient_cosine", "gradient_change"} <= shown


def test_the_statistics_beside_sparse_gradients_are_those_of_the_dense_parameters():
    net = Words(sparse=True)
    optimizer = SGD(net.parameters(), lr=0.1)
    meter = OptimizerMeter(optimizer, "global")
    dense = [net.layer.weight, net.layer.bias]
    ratio, descent = None, None
    gradients, weights = [], []
    for t, before in enumerate((meter.before_second_last, meter.before_last)):
        optimizer.zero_grad()
        tokens = torch.randint(0, 20, (8, 3), generator=torch.Generator().manual_seed(t))
        net(tokens).square().mean().backward()
        assert net.embedding.weight.grad.is_sparse
        gradients.append(torch.cat([p.grad.flatten().clone() for p in dense]))
        weights.append(torch.cat([p.detach().flatten().clone() for p in dense]))
        if t == 0:
            ratio, descent = (value.item() for value in meter.prospect([0.1]))
        before()
        optimizer.step()
    g, h = gradients
    assert ratio == pytest.approx(0.1 * g.norm().item() / weights[0].norm().item(), rel=1e-6)
    assert descent == pytest.approx(math.log(0.1 * g.norm().item() ** 2), rel=1e-6)
    update = -0.1 * g
    expected = {
        "gradient_norm": math.sqrt((g @ g + h @ h).item() / 2.0),
        "gradient_cosine": (g @ h / (g.norm() * h.norm())).item(),
        "update_ratio": (update.norm() / weights[1].norm()).item(),
        "log_descent": math.log(0.1 * (g @ g).item()),
        "overshoot": -(g @ h / (g.norm() * h.norm())).item(),
        "edge_ratio": 1.0 - (g @ h / (g @ g)).item(),
    }
    got = measured(meter)
    assert {name: got[name][0] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_a_group_of_sparse_gradients_alone_is_not_measured_and_the_others_are():
    sparse, dense = (read(flag, "param_group", "plain", split) for flag in (True, False))
    for mine, theirs in zip(sparse[0], dense[0], strict=True):
        features, full = mine["features"], theirs["features"]
        assert features["has_gradient"] == [0.0, 1.0]
        assert full["has_gradient"] == [1.0, 1.0]
        assert features["gradient_cosine"][0] == features["update_ratio"][0] == 0.0
        assert features["has_loss"] == [1.0, 1.0]
    # At the start the layer is seen alike; later the embedding has had other LRs.
    start = {name: (sparse[0][0]["features"][name][1], dense[0][0]["features"][name][1]) for name in full}
    assert all(mine == pytest.approx(theirs, rel=1e-12) for mine, theirs in start.values())
