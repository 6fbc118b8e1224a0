"""What torch itself offers around a training step: mixed precision, compiled and captured steps, closures; and timm."""

import math

import pytest
import torch
from schedulers_under_test import HORIZON, Training, build, random_policy
from torch import nn

from metalr.adapters import TimmScheduler
from metalr.learned_scheduler import LearnedLR
from metalr.schedulers import ScheduleLR
from metalr.schedules import Cosine

UPDATES = 24


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(model, t):
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(t))
    return (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()


def mixed(kind, fused, overflows, scaled=True):
    """Training under a `GradScaler` that overflows at some attempts; LRs of the updates that were made, history."""
    model = net()
    optimizer = kind(model.parameters(), lr=0.01, fused=fused)
    scheduler = LearnedLR(optimizer, random_policy(), horizon=UPDATES)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7, enabled=scaled)
    rates, made, attempt = [], 0, 0
    while made < UPDATES:
        optimizer.zero_grad()
        loss = loss_of(model, made)
        scaler.scale(loss).backward()
        spoilt = attempt in overflows
        if spoilt:
            model[0].weight.grad[0, 0] = math.inf
        scheduler.observe(loss)
        before = model[0].weight.detach().clone()
        rate = float(optimizer.param_groups[0]["lr"])
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        attempt += 1
        assert torch.equal(before, model[0].weight) == spoilt
        if not spoilt:
            made += 1
            rates.append(rate if made > 1 else None)
    return rates[1:], scheduler.history, scheduler.state_dict()["updates"]


OVERFLOWS = {"none": (), "first": (0, 1), "middle": (7, 8), "before decisions": (3, 4, 5, 10, 15), "last": (23,)}


def assert_same_decisions(history, expected):
    assert [e["updates"] for e in history] == [e["updates"] for e in expected]
    for mine, theirs in zip(history, expected, strict=True):
        for name, values in mine["features"].items():
            assert values == pytest.approx(theirs["features"][name], abs=1e-3), name
        assert mine["lr_multiplier"] == pytest.approx(theirs["lr_multiplier"], rel=1e-3)


# torch's own, of every scheduler, when the very first update overflows.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("when", OVERFLOWS)
def test_a_gradscaler_changes_nothing(kind, fused, when):
    """Skipped updates do not count and gradients are unscaled: the decisions are those of a run without a scaler."""
    rates, history, updates = mixed(kind, fused, OVERFLOWS[when])
    _, expected, _ = mixed(kind, fused, (), scaled=False)
    assert updates == UPDATES
    assert len(rates) == UPDATES - 1
    assert_same_decisions(history, expected)


def compiled(make) -> tuple[int, int, int, list[float]]:
    """Graphs of a compiled optimizer step after its second call and at the end, graph breaks, and the LRs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, lr = net(), torch.tensor(0.01)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, capturable=False, foreach=False)
    scheduler = make(optimizer)
    graphs, seen, settled = [], [], 0

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=backend)
    def step():
        optimizer.step()

    for t in range(UPDATES):
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward()
        if isinstance(scheduler, LearnedLR):
            scheduler.observe(loss)
        step()
        scheduler.step()
        seen.append(float(lr))
        if t == 1:  # the state of AdamW comes about in the first step; by the second all is there
            settled = len(graphs)
    assert optimizer.param_groups[0]["lr"] is lr
    return settled, len(graphs), sum(torch._dynamo.utils.counters["graph_break"].values()), seen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler's
@pytest.mark.parametrize(
    "make",
    [
        lambda o: LearnedLR(o, random_policy(), UPDATES, hooks=False),
        lambda o: ScheduleLR(o, Cosine(), UPDATES),
    ],
    ids=["LearnedLR", "ScheduleLR"],
)
def test_a_compiled_step_with_a_tensor_lr_is_compiled_once(make):
    """Neither a recompilation nor a graph break more than torch's own scheduler has (its wrapper of `step` is one)."""
    *_, theirs, _ = torchs = compiled(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1.0 / (1.0 + t)))
    settled, graphs, breaks, seen = compiled(make)
    assert graphs == settled == torchs[0]
    assert breaks == theirs
    assert len(set(seen)) > UPDATES - 3


def test_a_closure_is_seen_after_it_ran():
    by_hand, in_closure = Training(), Training()
    expected = by_hand.run(build("learned:policy", by_hand.optimizer))
    scheduler = build("learned:policy", in_closure.optimizer)
    rates = []

    def closure():
        loss = in_closure.loss()
        scheduler.observe(loss)
        return loss

    for t in range(HORIZON):
        returned = in_closure.optimizer.step(closure) if t % 2 else in_closure.optimizer.step(closure=closure)
        assert returned.item() > 0.0
        in_closure.updates += 1
        rates.append([float(lr) for lr in scheduler.get_last_lr()])
        scheduler.step()
    assert rates == expected


def test_lbfgs_asks_its_closure_many_times():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    scheduler = LearnedLR(optimizer, random_policy(), horizon=10)
    asked = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        asked.append(loss.item())
        return loss

    for _ in range(10):
        scheduler.observe(optimizer.step(closure))
        scheduler.step()
    assert len(asked) > 20
    assert [e["updates"] for e in scheduler.history] == [0, 2, 4, 6, 8]


class TimmLoop:
    """The calls of timm's `train.py`, in its order."""

    def __init__(self, scheduler: TimmScheduler, training: Training) -> None:
        self.scheduler, self.training = scheduler, training

    def run(self, epochs: range, per_epoch: int) -> list[list[float]]:
        if epochs.start > 0:
            self.scheduler.step_update(0)
        rates = []
        for epoch in epochs:
            for index in range(per_epoch):
                loss = self.training.loss()
                self.scheduler.scheduler.observe(loss)
                rates.append([float(g["lr"]) for g in self.scheduler.optimizer.param_groups])
                self.training.optimizer.step()
                self.training.updates += 1
                self.scheduler.step_update(num_updates=epoch * per_epoch + index + 1, metric=loss.item())
            self.scheduler.step(epoch + 1, 0.5)
        return rates


def test_timms_loop_is_a_plain_loop():
    timm, plain = Training(), Training()
    rates = TimmLoop(TimmScheduler(build("learned:policy", timm.optimizer, 24)), timm).run(range(4), 6)
    expected = plain.run(build("learned:policy", plain.optimizer, 24), 24)
    assert rates[1:] == expected[1:]  # the first is read before the first decision


def test_timms_loop_resumes():
    whole = Training()
    expected = TimmLoop(TimmScheduler(build("learned:policy", whole.optimizer, 24)), whole).run(range(4), 6)
    first, second = Training(), Training()
    adapter = TimmScheduler(build("learned:policy", first.optimizer, 24))
    rates = TimmLoop(adapter, first).run(range(2), 6)
    again = TimmScheduler(build("learned:policy", second.optimizer, 24))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    again.load_state_dict(adapter.state_dict())
    second.updates = 12
    assert rates + TimmLoop(again, second).run(range(2, 4), 6) == expected


@pytest.mark.gpu
def test_captured_training_reads_the_tensor_lr():
    """One CUDA graph of forward, backward and update; the scheduler changes the LR between its replays."""

    def train(captured: bool) -> tuple[list[float], list[int]]:
        model, lr = net().cuda(), torch.tensor(0.01, device="cuda")
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, capturable=True)
        inputs, loss = torch.zeros(8, 4, device="cuda"), torch.zeros((), device="cuda")

        def update():
            optimizer.zero_grad(set_to_none=False)
            now = (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()
            now.backward()
            loss.copy_(now.detach())
            optimizer.step()

        start = {name: value.clone() for name, value in model.state_dict().items()}
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                update()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            update()
        model.load_state_dict(start)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
        scheduler = LearnedLR(optimizer, random_policy(), UPDATES, hooks=False)
        rates = []
        for t in range(UPDATES):
            inputs.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(t)))
            graph.replay() if captured else update()
            scheduler.observe(loss)
            scheduler.step()
            rates.append(lr.item())
        assert optimizer.param_groups[0]["lr"] is lr
        return rates, [e["updates"] for e in scheduler.history]

    replayed, decisions = train(captured=True)
    assert replayed == pytest.approx(train(captured=False)[0], rel=1e-4)
    assert len(set(replayed)) > UPDATES - 3
    assert decisions == [0, 5, 10, 14, 19]
