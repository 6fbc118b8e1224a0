"""Every way to carry out an interval gives the same run: many runs at once, in chunks, alone, compiled, captured."""

import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.func import vmap
from torch.nn import functional

from metalr.engine import batched_losses, compilation, cuda_graphs, memory
from metalr.engine.chunks import chunk_size
from metalr.engine.compilation import compiling_pays
from metalr.engine.cuda_graphs import Captured, GraphExecutor
from metalr.engine.executors import EagerExecutor
from metalr.engine.interval import Interval, run_interval
from metalr.engine.runs import BatchedRuns
from metalr.engine.step import UnmaskedStep
from metalr.tasks import losses
from metalr.tasks.models import MLP, ByteTransformer, ConvNet, GRUClassifier, Point, takes_runs
from metalr.tasks.task import Task
from metalr.trees import leaves

SEEDS = torch.tensor([3, 1, 4, 15, 9])
NETWORKS = {
    "mlp": (partial(MLP, [12, 6, 3], torch.tanh), (12,)),
    "conv1d": (partial(ConvNet, 1, 2, [8, 6], 3, torch.tanh), (2, 15)),
    "conv2d": (partial(ConvNet, 2, 1, [4, 8], 3, functional.silu), (1, 7, 8)),
    "conv2d-colours": (partial(ConvNet, 2, 3, [4, 8], 3, torch.tanh), (3, 8, 9)),
    "gru": (partial(GRUClassifier, 3, 4, 3), (5, 3)),
    "bytes": (partial(ByteTransformer, 8, 2, 2, 12), None),
}


class Tied(nn.Module):
    """The same matrix twice, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, 3)
        self.head.weight.requires_grad_(False)

    def forward(self, inputs):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


def inputs_of(network: str, *leading: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = NETWORKS[network][1]
    if shape is None:
        return torch.randint(256, (*leading, 10), generator=generator)
    return torch.randn(*leading, *shape, generator=generator, dtype=torch.float64)


def task_of(network: str = "mlp", **changes) -> Task:
    inputs = inputs_of(network, 40)
    targets = inputs if network == "bytes" else inputs.flatten(1)[:, :3].argmax(-1)
    loss = losses.token_cross_entropy if network == "bytes" else functional.cross_entropy
    settings = {"optimizer": "adam", "base_lr": 0.01, "horizon": 50, "batch_size": 8, "metric": losses.accuracy}
    model, loss = changes.pop("model", NETWORKS[network][0]), changes.pop("loss", loss)
    return Task(model, (inputs, targets), loss, **{**settings, **changes})


def started(task: Task, seeds=SEEDS, **options) -> BatchedRuns:
    runs = BatchedRuns(task, len(seeds), **{"dtype": torch.float64, **options})
    runs.init(seeds)
    return runs


def bits(runs: BatchedRuns, run: int) -> list[bytes]:
    return [tensor[run].cpu().numpy().tobytes() for tensor in leaves(runs.state)]


def rates(value: float = 0.01, num_runs: int = len(SEEDS)) -> torch.Tensor:
    return torch.full((num_runs,), value, dtype=torch.float64)


# Networks and losses of many runs at once


def test_a_network_that_might_mix_examples_is_left_to_vmap():
    assert takes_runs(Point([1.0]))
    assert not takes_runs(MLP([4, 3, 2], lambda x: x.softmax(0)))
    assert not takes_runs(nn.Linear(3, 2))
    assert not takes_runs(type("Other", (MLP,), {})([4, 3, 2]))


@pytest.mark.parametrize("loss", batched_losses.KNOWN, ids=lambda loss: loss.__name__)
def test_a_known_loss_is_that_of_vmap(loss):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (3, 6), generator=generator)
    if loss in (functional.mse_loss, functional.smooth_l1_loss):
        targets = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    if loss in (losses.squared_distance, losses.noisy_quadratic_loss):
        outputs = outputs[:, 0]
    torch.testing.assert_close(batched_losses.over_runs(loss)(outputs, targets), vmap(loss)(outputs, targets))


def test_cross_entropy_with_targets_left_out_or_as_probabilities():
    outputs = torch.randn(3, 6, 4, dtype=torch.float64)
    ignored = torch.tensor([0, 1, -100, 2, -100, 3]).repeat(3, 1)
    shares = outputs.flip(0).softmax(-1)
    for targets in (ignored, shares):
        expected = torch.stack(
            [functional.cross_entropy(one, target) for one, target in zip(outputs, targets, strict=True)]
        )
        torch.testing.assert_close(batched_losses.over_runs(functional.cross_entropy)(outputs, targets), expected)


# Masks and chunks


def test_without_masks_gives_up_when_a_run_diverges():
    runs = started(task_of())
    batch = next(iter(runs.data.batches(runs.seeds, runs.variants, runs.state.step, 1, 8)))
    params = runs.state.params.clone()
    params[1] = torch.nan
    state, unmasked = runs.state._replace(params=params), UnmaskedStep(runs.step)
    with torch.no_grad():
        found, expected = (step(state, batch, rates()[:, None]) for step in (unmasked, runs.step))
    assert not unmasked.healthy
    assert found[0].diverged.tolist() == [False, True, False, False, False]
    assert [leaf.numpy().tobytes() for leaf in leaves(found)] == [leaf.numpy().tobytes() for leaf in leaves(expected)]


@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
@pytest.mark.parametrize("network", ["mlp", "conv1d"])
def test_chunks_are_the_whole(network, chunk):
    whole, parts = started(task_of(network)), started(task_of(network))
    parts.executor = EagerExecutor(parts.step, parts.data, chunk)
    wild = rates()
    wild[2] = 1e200
    for _ in range(2):
        expected, got = whole.unroll(wild, 6), parts.unroll(wild, 6)
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, equal_nan=True)
    assert parts.state.diverged.tolist() == [False, False, True, False, False]
    torch.testing.assert_close(whole.state.params, parts.state.params, rtol=1e-12, atol=1e-10)


def test_a_diverged_run_changes_no_bit_of_another_chunk_or_its_own():
    healthy, beside = (started(task_of()) for _ in range(2))
    wild = rates()
    wild[1] = 1e200
    for runs in (healthy, beside):
        runs.executor = EagerExecutor(runs.step, runs.data, 2)
    for _ in range(2):
        healthy.unroll(rates(), 6)
        beside.unroll(wild, 6)
    assert beside.state.diverged.tolist() == [False, True, False, False, False]
    assert all(bits(healthy, run) == bits(beside, run) for run in (0, 2, 3, 4))


def test_equal_chunks_divide_the_runs():
    for num_runs in range(1, 40):
        for size in (1, 1 << 10, 1 << 15, 1 << 17, 1 << 30):
            chunk = chunk_size(num_runs, size, equal=True)
            assert num_runs % chunk == 0
            assert chunk <= max(chunk_size(num_runs, size, equal=False), 1)


# Compilation


def test_compiling_on_a_cpu_is_chosen_only_where_it_pays(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", refuse)
    started(task_of(), compile="auto")  # nobody knows how long it goes on
    started(task_of(), compile="auto", planned_steps=400)
    with pytest.warns(
        RuntimeWarning, match=r"torch.compile failed, training continues eagerly: AssertionError: compiled"
    ):
        started(task_of(), compile="auto", planned_steps=10_000_000)
    assert not compiling_pays(0, 4096, 10**6, 10**3)


def test_compile_is_yes_no_or_auto():
    with pytest.raises(ValueError, match=r"got compile 'always', expected True, False or 'auto'"):
        BatchedRuns(task_of(), 2, compile="always")


def test_each_number_of_runs_is_compiled_for_itself(monkeypatch):
    """torch gives up on a piece of code after eight compilations, without a word: executors must not share one."""
    sizes = []

    def backend(graph, inputs):
        sizes.extend(size for tensor in inputs for size in tensor.shape)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for num_runs in (2, 3, 4):
            runs, eager = (started(task_of(), torch.arange(num_runs), compile=each) for each in (True, False))
            for num_steps in (3, 2):
                for each in (runs, eager):
                    each.unroll(rates(num_runs=num_runs), num_steps)
            assert runs.executor.how == "compiled"
            assert all(type(size) is int for size in sizes)  # no variable
            torch.testing.assert_close(runs.state.params, eager.state.params, rtol=0.0, atol=1e-12)


def test_on_cuda_kernels_are_chosen_by_rule(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: asked.append(options))
    step = started(task_of()).step
    for device, by_rule in (("cpu", True), ("cuda", True), ("cuda", False)):
        step.device = torch.device(device)
        compilation.compiled(step, by_rule)
    assert asked == [{}, {"options": {"deterministic": True}}, {}]


def test_the_choice_of_kernels_reaches_the_compiler(monkeypatch):
    asked = []
    monkeypatch.setattr(compilation, "compiled", lambda step, by_rule: asked.append(by_rule) or step)
    for by_rule in (True, False):
        runs = started(task_of(), compile=True, kernels_by_rule=by_rule)
        GraphExecutor(runs.step, runs.data, True, by_rule)
    assert asked == [True, True, False, False]


def test_costly_statistics_are_taken_on_the_last_two_steps_only(monkeypatch):
    runs = started(task_of(optimizer="sgd"))
    counted = []
    group_sum = runs.layout.group_sum
    monkeypatch.setattr(runs.layout, "group_sum", lambda values: counted.append(1) or group_sum(values))
    gradients = []

    def advance(state, batch, lr):
        state, loss, gradient = runs.step(state, batch, lr)
        gradients.append(gradient)
        return state, loss, gradient

    for num_steps in (2, 20):
        counted.clear()
        start, rate = runs.state, torch.full((num_steps, len(SEEDS), 1), 0.01, dtype=torch.float64)
        batches = runs.data.batches(runs.seeds, runs.variants, start.step, num_steps, 8)
        with torch.no_grad():
            end, found = run_interval(advance, runs.layout, start, batches, rate)
        assert len(counted) == 5
        before, last = gradients[-2:]
        cosine = torch.nn.functional.cosine_similarity(before, last, dim=-1)[:, None]
        torch.testing.assert_close(found.gradient_cosine, cosine, rtol=1e-9, atol=0.0)
        weights = (end.params + 0.01 * last).norm(dim=-1, keepdim=True)  # before the last update
        ratio = 0.01 * last.norm(dim=-1, keepdim=True) / weights
        torch.testing.assert_close(found.update_ratio, ratio, rtol=1e-9, atol=0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch warns of itself
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("network", ["mlp", "conv1d"])
@pytest.mark.parametrize("num_runs", [1, 5])
def test_compiled_and_eager_agree(network, dtype, tolerance, num_runs):
    reference = started(task_of(network), SEEDS[:num_runs])
    compiled = started(task_of(network), SEEDS[:num_runs], dtype=dtype, compile=True)
    wild = rates(0.01, num_runs)
    for runs in (reference, compiled):
        runs.unroll(wild, 8)
    assert compiled.executor.preparation_seconds > 0.0
    torch.testing.assert_close(compiled.state.params.double(), reference.state.params, rtol=0.0, atol=tolerance)


# Memory


def test_more_runs_than_fit_are_refused_before_anything_is_allocated(monkeypatch):
    task = task_of()
    size = BatchedRuns(task, 1).footprint
    monkeypatch.setattr(memory, "available_bytes", lambda device: 64 * size.total)
    most = memory.max_runs(size, torch.device("cpu"))
    assert 50 <= most < 64
    BatchedRuns(task, most)
    with pytest.raises(
        ValueError, match=r"got num_runs 100000, expected at most \d+ on cpu: a run needs .* MiB .*; use"
    ):
        BatchedRuns(task, 100_000)


def test_the_footprint_counts_weights_buffers_and_activations():
    small, large = (BatchedRuns(task_of(batch_size=size), 1).footprint for size in (8, 16))
    assert large.activations == pytest.approx(2 * small.activations, rel=0.3)
    assert large.batch == 2 * small.batch == 2 * 8 * (12 * 4 + 8)
    adam, sgd = (BatchedRuns(task_of(optimizer=name), 1).footprint.state for name in ("adam", "sgd"))
    assert adam - sgd == 2 * 4 * task_of().num_params


@pytest.mark.parametrize("network", [*NETWORKS, "vmap"])
def test_the_footprint_of_several_runs_is_that_of_one_for_each(network):
    """A CUDA device measures the way that many runs take through the network together."""
    runs = started(task_of(model=Tied) if network == "vmap" else task_of(network))
    zero = torch.zeros(4, dtype=torch.int64)
    batch = next(iter(runs.data.batches(zero, zero, zero, 1, 8)))
    found = memory.footprint(runs.step, batch, torch.float64)
    assert (found.state, found.batch) == (runs.footprint.state, runs.footprint.batch)
    assert 0.5 * runs.footprint.activations < found.activations < 4.0 * runs.footprint.activations


def test_the_memory_of_this_machine_is_known():
    available = memory.available_bytes(torch.device("cpu"))
    assert available is None or available > 1 << 20
    assert memory.available_bytes(torch.device("meta")) is None


# The graph, with a stand-in for CUDA: what is replayed here is run again


def pretend_to_capture(work, state, interval, pool=None) -> Captured:
    inputs = cuda_graphs.fixed_inputs(state, interval)
    results = work(*inputs)

    def replay() -> None:
        for old, new in zip(leaves(results), leaves(work(*inputs)), strict=True):
            old.copy_(new)

    return Captured(inputs, replay, results)


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "capture", pretend_to_capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


def captured(task: Task, **options) -> BatchedRuns:
    runs = started(task, **options)
    runs.executor = GraphExecutor(runs.step, runs.data, compile=False)
    return runs


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_a_replayed_interval_is_the_interval(pretended, network):
    eager, replayed = started(task_of(network), groups="module"), captured(task_of(network), groups="module")
    generator = torch.Generator().manual_seed(0)
    for num_steps in (4, 3, 4, 4):
        lr = 0.01 * torch.rand(len(SEEDS), eager.layout.num_groups, generator=generator, dtype=torch.float64)
        expected, got = eager.unroll(lr, num_steps), replayed.unroll(lr, num_steps)
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0.0)
    assert all(bits(eager, run) == bits(replayed, run) for run in range(len(SEEDS)))
    assert len(replayed.executor.captured) == 2


def test_a_replay_leaves_earlier_states_and_statistics_alone(pretended):
    runs = captured(task_of())
    first_stats = runs.unroll(rates(), 4)
    first = runs.state
    kept = [tensor.clone() for tensor in (*leaves(first), *first_stats)]
    runs.unroll(rates(0.05), 4)
    for tensor, copy in zip((*leaves(first), *first_stats), kept, strict=True):
        assert torch.equal(tensor, copy)


def test_reset_and_divergence_in_a_replayed_interval(pretended):
    eager, replayed = started(task_of()), captured(task_of())
    wild = rates()
    wild[3] = 1e200
    for runs in (eager, replayed):
        runs.unroll(wild, 4)
        assert runs.state.diverged.tolist() == [False, False, False, True, False]
        runs.reset_runs(runs.state.diverged, SEEDS + 50)
        runs.unroll(rates(), 4)
        assert runs.state.step.tolist() == [8, 8, 8, 4, 8]
    assert all(bits(eager, run) == bits(replayed, run) for run in range(len(SEEDS)))


def test_a_capture_that_fails_warns_once_and_trains_on(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no graph here")

    monkeypatch.setattr(cuda_graphs, "capture", refuse)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    runs, eager = captured(task_of()), started(task_of())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            runs.unroll(rates(), 4)
            eager.unroll(rates(), 4)
    assert [str(w.message) for w in caught] == [
        "capturing a CUDA graph failed, training continues step by step: RuntimeError: no graph here"
    ]
    assert all(bits(eager, run) == bits(runs, run) for run in range(len(SEEDS)))


def test_a_compiled_step_that_cannot_be_captured_gives_way_to_the_plain_one(pretended, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no kernel here")

    monkeypatch.setattr(torch, "compile", lambda step, **_: refuse)
    runs, eager = started(task_of()), started(task_of())
    runs.executor = GraphExecutor(runs.step, runs.data, compile=True)
    with pytest.warns(RuntimeWarning, match=r"capturing the compiled step failed, .*: RuntimeError: no kernel here"):
        runs.unroll(rates(), 4)
    eager.unroll(rates(), 4)
    assert all(bits(eager, run) == bits(runs, run) for run in range(len(SEEDS)))


class PretendedCUDA:
    """Stands in for `torch.cuda`: streams are names, and a capture that broke off is ended by an error of its own."""

    def __init__(self, monkeypatch) -> None:
        self.stream, self.pools = "here", 0
        for name in ("graph", "set_stream", "current_stream", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        monkeypatch.setattr(cuda_graphs, "side_stream", lambda device: SimpleNamespace(wait_stream=lambda other: None))
        self.used: list[int] = []

    def set_stream(self, stream) -> None:
        self.stream = stream.name

    def current_stream(self):
        return SimpleNamespace(name=self.stream, wait_stream=lambda other: None)

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    @contextmanager
    def graph(self, graph, pool, stream):
        self.used.append(pool)
        self.stream = "side"
        try:
            yield
        except Exception:
            raise RuntimeError("capture invalidated") from None  # as torch's own, which leaves the stream switched
        self.stream = "here"


def test_a_broken_capture_names_its_cause_and_leaves_stream_and_memory_behind(monkeypatch):
    cuda = PretendedCUDA(monkeypatch)
    runs, eager = captured(task_of()), started(task_of())

    def asks(state, batch, lr):
        if cuda.stream == "side":
            raise RuntimeError("operation not permitted when stream is capturing")
        return runs.step(state, batch, lr)

    runs.executor.advance = asks
    with pytest.warns(RuntimeWarning, match="the plain step is captured: RuntimeError: operation not permitted"):
        runs.unroll(rates(), 4)
    assert cuda.stream == "here"
    runs.init(SEEDS)
    runs.unroll(rates(), 3)
    assert cuda.used == [1, 2, 2]  # not again into the memory of what broke off; the lengths share theirs
    eager.unroll(rates(), 3)
    assert all(bits(eager, run) == bits(runs, run) for run in range(len(SEEDS)))
    assert runs.executor.how == "one graph"


def test_an_interval_is_a_pure_function_of_the_state():
    runs = started(task_of())
    interval = Interval(runs.seeds, runs.variants, rates()[:, None].expand(4, -1, 1))
    before = [tensor.clone() for tensor in leaves(runs.state)]
    with torch.no_grad():
        first, second = (EagerExecutor(runs.step, runs.data).unroll(runs.state, interval) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(leaves(runs.state)[:-2], before[:-2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves(first[0]), leaves(second[0]), strict=True))
