"""A compiled optimizer step, and CUDA graphs, with a tensor LR that the scheduler fills in place."""

import contextlib
import warnings

import pytest
import torch

from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Cosine
from tests.integrations.small_net import UPDATES, loss_of, net
from tests.support.policies import moderate_policy


def plain() -> tuple[list[float], LearnedLR]:
    """The LRs and the scheduler of the same training with a float LR, hooks, and nothing compiled or captured."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = LearnedLR(optimizer, moderate_policy(), UPDATES)
    rates = []
    for t in range(UPDATES):
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return rates, scheduler


def compiled(make) -> tuple[int, int, int, list[float]]:
    """The graphs of a compiled optimizer step after its second call and at the end, its graph breaks, and the LRs."""
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
        seen.append(float(lr))
        step()
        scheduler.step()
        if t == 1:  # the state of AdamW comes about in the first step; by the second all is there
            settled = len(graphs)
    assert optimizer.param_groups[0]["lr"] is lr
    return settled, len(graphs), sum(torch._dynamo.utils.counters["graph_break"].values()), seen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler's
@pytest.mark.parametrize(
    "make",
    [
        lambda o: LearnedLR(o, moderate_policy(), UPDATES, hooks=False),
        lambda o: ScheduleLR(o, Cosine(), UPDATES),
    ],
    ids=["LearnedLR", "ScheduleLR"],
)
def test_a_compiled_step_with_a_tensor_lr_is_compiled_once(make):
    """No more recompilations or graph breaks than with torch's own scheduler (whose wrapper of `step` is one break)."""
    *_, theirs, _ = torchs = compiled(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1.0 / (1.0 + t)))
    settled, graphs, breaks, seen = compiled(make)
    assert graphs == settled == torchs[0]
    assert breaks == theirs
    assert len(set(seen)) > UPDATES - 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler's
def test_a_compiled_step_sets_the_lrs_of_a_plain_loop():
    *_, seen = compiled(lambda o: LearnedLR(o, moderate_policy(), UPDATES, hooks=False))
    assert seen == pytest.approx(plain()[0], rel=1e-3)


def recorded(function, device):
    """`function` as a CUDA graph to replay; on a CPU it is called again, with the same order of effects."""
    if device == "cpu":
        return function
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def captured_training(device: str) -> tuple[list[float], list[dict], list[str]]:
    """The LRs, history and warnings with backward and update as two graphs and a scheduler without hooks."""
    model, lr = net().to(device), torch.tensor(0.01, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, capturable=device != "cpu")
    inputs, loss = torch.zeros(8, 4, device=device), torch.zeros((), device=device)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler = LearnedLR(optimizer, moderate_policy(), UPDATES, hooks=False)

        def backward():
            for p in model.parameters():
                p.grad.zero_()
            now = (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()
            now.backward()
            loss.copy_(now.detach())

        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        side = None if device == "cpu" else torch.cuda.Stream()
        if side is not None:
            side.wait_stream(torch.cuda.current_stream())
        with contextlib.nullcontext() if side is None else torch.cuda.stream(side):
            backward()
            optimizer.step()
        if side is not None:
            torch.cuda.current_stream().wait_stream(side)
        replay = recorded(backward, device), recorded(optimizer.step, device)
        model.load_state_dict(start)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
        rates = []
        for t in range(UPDATES):
            inputs.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(t)))
            replay[0]()
            scheduler.observe(loss)
            rates.append(lr.item())
            replay[1]()
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    return rates, scheduler.history, [str(w.message) for w in caught]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_captured_training_is_a_plain_loop(device):
    """CUDA graphs of backward and of the update; the scheduler fills the LR between them and between replays."""
    rates, history, messages = captured_training(device)
    expected, scheduler = plain()
    assert rates == pytest.approx(expected, rel=1e-3)
    assert len(set(rates)) > UPDATES - 3
    assert [e["updates"] for e in history] == [e["updates"] for e in scheduler.history] == [0, 5, 10, 14, 19]
    for mine, theirs in zip(history, scheduler.history, strict=True):
        for name, values in mine["features"].items():
            assert values == pytest.approx(theirs["features"][name], abs=2e-3), name
    assert not messages
