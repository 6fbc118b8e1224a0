"""The same on a CUDA device: one graph for an interval, nothing in it that waits for the host, the same runs.

pytest -m gpu tests/engine/test_cuda.py
"""

import time
from functools import partial

import pytest
import torch

from metalr.agents.meta_gradients import meta_gradient
from metalr.engine import memory
from metalr.engine.runs import BatchedRuns
from metalr.envs.transition import EnvConfig, Transition
from metalr.learned.schedules import KnotLR
from metalr.tasks.models import MLP
from metalr.trees import leaves
from tests.engine.test_executors import NETWORKS, bits, started, task_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # torch warns of itself when it compiles, in several classes; the engine's own warnings are RuntimeWarnings, so that
    # a fallback fails the test here.
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "UserWarning", "FutureWarning")),
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("ResourceWarning", "ImportWarning")),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SEEDS = torch.arange(6)
on_gpu = partial(started, seeds=SEEDS, device="cuda")


def rates(value: float = 0.01, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.full((len(SEEDS),), value, dtype=dtype, device="cuda")


@pytest.fixture
def no_waiting():
    """A way to forbid all waiting for the device, undone afterwards."""
    yield partial(torch.cuda.set_sync_debug_mode, "error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("groups", ["global", "module"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adamw"])
def test_an_interval_is_one_replay_and_does_not_wait(no_waiting, compile, groups, optimizer):
    runs = on_gpu(task_of(optimizer=optimizer), groups=groups, compile=compile)
    lr = rates()[:, None].expand(-1, runs.layout.num_groups).contiguous()
    runs.unroll(lr, 5)
    (key, found), = runs.executor.captured.items()  # fmt: skip
    replays = []
    counted = found._replace(replay=lambda: (replays.append(1), found.replay()))
    runs.executor.captured[key] = counted
    torch.cuda.synchronize()
    no_waiting()
    for _ in range(3):
        runs.unroll(lr, 5)
    assert len(replays) == 3


@pytest.mark.parametrize("network", NETWORKS)
def test_captured_eager_and_cpu_agree(network):
    task = task_of(network)
    runs = [
        on_gpu(task, compile=True),
        on_gpu(task),
        on_gpu(task, capture=False),
        started(task, SEEDS),
    ]
    for each in runs:
        for _ in range(2):
            last = each.unroll(rates().to(each.device), 6)
    reference = runs[-1]
    for each in runs[:-1]:
        torch.testing.assert_close(each.state.params.cpu(), reference.state.params, rtol=0.0, atol=1e-9)
        assert each.state.step.tolist() == [12] * len(SEEDS)
    assert last.log_loss.isfinite().all()
    assert [each.executor.how for each in runs] == ["one graph, compiled", "one graph", "step by step", "step by step"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("compile", [False, True])
def test_a_single_run_is_captured_too(network, compile):
    one, reference = on_gpu(task_of(network), SEEDS[:1], compile=compile), started(task_of(network), SEEDS[:1])
    for each in (one, reference):
        for _ in range(2):
            each.unroll(rates()[:1].to(each.device), 6)
    torch.testing.assert_close(one.state.params.cpu(), reference.state.params, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_float32_follows_float64(network):
    # Not Adam: it makes a full step of a gradient that is nothing but rounding, as that of a bias before a norm is.
    task = task_of(network, optimizer="momentum")
    single = on_gpu(task, dtype=torch.float32, compile=True)
    double = started(task, SEEDS)
    for each in (single, double):
        each.unroll(rates().to(each.device), 6)
    torch.testing.assert_close(single.state.params.cpu().double(), double.state.params, rtol=0.0, atol=5e-4)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("compile", [False, True])
def test_the_same_seed_gives_the_same_bits(network, compile):
    first, second = (on_gpu(task_of(network), dtype=torch.float32, compile=compile) for _ in range(2))
    for _ in range(2):
        for each in (first, second):
            each.unroll(rates(dtype=torch.float32), 6)
    assert all(bits(first, run) == bits(second, run) for run in range(len(SEEDS)))
    second.init(SEEDS.cuda())
    for _ in range(2):
        second.unroll(rates(dtype=torch.float32), 6)
    assert all(bits(first, run) == bits(second, run) for run in range(len(SEEDS)))


def test_a_diverged_neighbour_changes_no_bit():
    healthy, beside = on_gpu(task_of()), on_gpu(task_of())
    wild = rates()
    wild[1] = 1e200
    for _ in range(2):
        healthy.unroll(rates(), 5)
        beside.unroll(wild, 5)
    assert beside.state.diverged.tolist() == [False, True, False, False, False, False]
    assert all(bits(healthy, run) == bits(beside, run) for run in (0, 2, 3, 4, 5))


def test_a_reset_leaves_every_bit_of_the_others():
    runs, undisturbed = on_gpu(task_of()), on_gpu(task_of())
    which = torch.tensor([False, True, False, False, True, False], device="cuda")
    for each in (runs, undisturbed):
        each.unroll(rates(), 5)
    runs.reset_runs(which, SEEDS.cuda() + 70)
    fresh = on_gpu(task_of(), SEEDS + 70)
    for each in (runs, undisturbed, fresh):
        each.unroll(rates(), 5)
    assert runs.state.step.tolist() == [10, 5, 10, 10, 5, 10]
    assert all(bits(runs, run) == bits(undisturbed, run) for run in (0, 2, 3, 5))
    assert all(bits(runs, run) == bits(fresh, run) for run in (1, 4))


def test_an_earlier_state_is_kept():
    runs = on_gpu(task_of())
    runs.unroll(rates(), 5)
    state = runs.state
    kept = [tensor.clone() for tensor in leaves(state)]
    runs.unroll(rates(), 5)
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), kept, strict=True))


def asks_the_host(state, *_):
    return bool(state.params.sum() > 0.0)


def test_a_compiled_step_that_cannot_be_captured_gives_way(no_waiting):
    runs, reference = on_gpu(task_of()), on_gpu(task_of())
    here = torch.cuda.current_stream()
    runs.executor.advance = lambda *a: (asks_the_host(*a), runs.step(*a))[1]
    with pytest.warns(RuntimeWarning, match="capturing the compiled step failed, the plain step is captured: .*captur"):
        runs.unroll(rates(), 5)
    assert runs.executor.how == "one graph"
    assert torch.cuda.current_stream() == here
    runs.unroll(rates(), 7)  # another length: into the same memory
    for num_steps in (5, 7):
        reference.unroll(rates(), num_steps)
    assert all(bits(runs, run) == bits(reference, run) for run in range(len(SEEDS)))
    torch.cuda.synchronize()
    no_waiting()
    runs.unroll(rates(), 5)


def test_an_interval_that_cannot_be_captured_goes_step_by_step():
    runs, reference = on_gpu(task_of()), on_gpu(task_of(), capture=False)
    work = runs.executor.work
    runs.executor.work = lambda *a: (asks_the_host(*a), work(*a))[1]
    with pytest.warns(RuntimeWarning, match="capturing a CUDA graph failed, training continues step by step: .*captur"):
        runs.unroll(rates(), 5)
    runs.unroll(rates(), 5)
    for _ in range(2):
        reference.unroll(rates(), 5)
    assert runs.executor.how == "step by step"
    assert all(bits(runs, run) == bits(reference, run) for run in range(len(SEEDS)))
    other = on_gpu(task_of("gru"))  # a broken capture leaves the device as it was
    other.unroll(rates(), 5)
    assert other.executor.how == "one graph"


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("network", "optimizer"), [("mlp", "momentum"), ("mlp", "adam"), ("bytes", "adam")])
def test_what_runs_take_is_within_what_was_promised(network, optimizer, compile):
    num_runs = 4096
    model = {"mlp": partial(MLP, [12, 64, 64, 3])}.get(network, NETWORKS[network][0])
    task = task_of(network, model=model, optimizer=optimizer)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runs = on_gpu(task, torch.arange(num_runs), dtype=torch.float32, compile=compile)
    lr = torch.full((num_runs,), 0.01, device="cuda")
    for _ in range(2):
        runs.unroll(lr, 5)
        runs.reset_runs(torch.arange(num_runs, device="cuda") % 2 == 0, torch.arange(num_runs))
    taken = torch.cuda.max_memory_allocated() - before
    assert taken < runs.footprint.total * num_runs + (64 << 20)  # the matrix library's workspace does not grow


def test_a_reset_costs_less_than_an_interval():
    num_runs = 512
    task = task_of(model=partial(MLP, [12, 100, 100, 3]), batch_size=100)
    runs = on_gpu(task, torch.arange(num_runs), dtype=torch.float32, compile=True)
    lr, seeds = torch.full((num_runs,), 0.01, device="cuda"), torch.arange(num_runs, device="cuda")

    def seconds(work) -> float:
        taken = []
        for _ in range(5):
            torch.cuda.synchronize()
            started_at = time.perf_counter()
            work()
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - started_at)
        return sorted(taken)[2]

    runs.unroll(lr, 20)
    runs.init(seeds)
    assert seconds(lambda: runs.init(seeds)) < seconds(lambda: runs.unroll(lr, 20))


def test_too_many_runs_are_refused_before_anything_is_allocated():
    task = task_of()
    most = memory.max_runs(BatchedRuns(task, 1, device="cuda").footprint, torch.device("cuda"))
    before = torch.cuda.memory_allocated()
    with pytest.raises(ValueError, match=r"got num_runs .*, expected at most \d+ on cuda"):
        BatchedRuns(task, 2 * most, device="cuda")
    assert torch.cuda.memory_allocated() - before < 1 << 20


def test_meta_gradients_go_through_the_same_step():
    found = []
    for device in ("cpu", "cuda"):
        runs = BatchedRuns(task_of(horizon=12), 3, dtype=torch.float64, device=device)
        learned = KnotLR(4).to(device)
        found.append(meta_gradient(learned, runs, torch.arange(3, device=device)).vector().cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-12)


def test_several_architectures_in_one_vector_environment():
    tasks = [task_of(name, horizon=40, metric=None) for name in ("mlp", "conv1d", "gru")]
    transition = Transition(tasks, 12, EnvConfig(decisions=4, device="cuda", compile=True))
    transition.reset()
    for _ in range(4):
        outcome = transition.step(torch.zeros(12, 1))
    assert outcome.done.all()
    assert outcome.reward.isfinite().all()
