"""Nothing in an interval waits for the host, and nothing mixes devices, shown without a CUDA device.

Tensors on torch's "meta" device have shapes and no contents, so that whoever asks for a content gives himself away. A
dispatch mode watches every operation: it names those that would copy between host and device, and where a question is
allowed it answers something, so that a whole decision of the environment can be walked through.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalr.engine.interval import Interval, run_interval
from metalr.engine.runs import BatchedRuns
from metalr.engine.step import RunState
from metalr.envs.transition import EnvConfig, Transition
from tests.engine.test_executors import NETWORKS, task_of

aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)
QUESTIONS = (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal)


class Elsewhere(TorchDispatchMode):
    """Takes the meta device for an accelerator.

    Args:
        answers: whether the host may ask at all; then every mask is true everywhere.
    """

    def __init__(self, answers: bool) -> None:
        super().__init__()
        self.answers = answers
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        away = [tensor for tensor in tensors if tensor.device.type == "meta"]
        here = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        copied = func.overloadpacket in COPIES
        target = kwargs.get("device")
        crossing = copied and bool((away and here) or (target and tensors and target.type != tensors[0].device.type))
        if crossing or (away and func.overloadpacket in QUESTIONS):
            self.waits.append(func.overloadpacket.__name__)
            assert self.answers, f"{func} waits for the device"
            return self._answer(func, args, kwargs, tensors)
        mixed = away and any(tensor.dim() for tensor in here)
        assert not mixed or copied, f"{func} mixes devices: {[(t.device.type, tuple(t.shape)) for t in tensors]}"
        return func(*args, **kwargs)

    @staticmethod
    def _answer(func, args, kwargs, tensors):
        if func.overloadpacket is aten._local_scalar_dense:
            return True
        if func.overloadpacket is aten.nonzero:
            return torch.arange(len(args[0]), device="meta")[:, None]
        if func.overloadpacket is aten._to_copy and kwargs["device"].type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


def started(network: str, num_runs: int, **options) -> BatchedRuns:
    runs = BatchedRuns(task_of(network), num_runs, device="meta", capture=False, **options)
    runs.init(torch.arange(num_runs))
    return runs


def interval(runs: BatchedRuns, advance=None, watched: bool = True) -> RunState:
    """What a graph captures."""
    lr = torch.full((3, runs.num_runs, runs.layout.num_groups), 0.1, device="meta")
    size = runs.task.batch_size
    work = Interval(runs.seeds, runs.variants, lr)
    with torch.no_grad(), Elsewhere(answers=False) if watched else nullcontext():
        batches = runs.data.batches(work.seeds, work.variants, runs.state.step, 3, size)
        return run_interval(advance or runs.step, runs.layout, runs.state, batches, lr)[0]


@pytest.mark.parametrize("groups", ["global", "module"])
@pytest.mark.parametrize("num_runs", [1, 5])
@pytest.mark.parametrize("network", NETWORKS)
def test_an_interval_asks_the_host_nothing(network, num_runs, groups):
    runs = started(network, num_runs, groups=groups)
    assert interval(runs).params.shape == runs.state.params.shape


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "rmsprop", "adagrad", "adam", "adamw"])
def test_no_optimizer_asks_the_host(optimizer):
    runs = BatchedRuns(task_of(optimizer=optimizer), 5, device="meta", capture=False)
    runs.init(torch.arange(5))
    interval(runs)


def test_a_question_and_a_mixture_are_noticed():
    runs = started("mlp", 5)

    def asking(state, batch, lr):
        return runs.step(state, batch, lr * float(state.params.sum()))

    def mixing(state, batch, lr):
        return runs.step(state, batch, lr * torch.ones(5, 1))

    def uploading(state, batch, lr):
        return runs.step(state, batch, lr * torch.ones(5, 1).to("meta"))

    for advance, said in ((asking, "waits"), (mixing, "mixes devices"), (uploading, "waits")):
        with pytest.raises(AssertionError, match=said):
            interval(runs, advance)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_can_be_traced_on_another_device(network):
    """The compiler's front end takes the step there as well, in one piece."""
    runs = started(network, 5)
    step = torch.compile(lambda *a: runs.step(*a), backend="aot_eager", fullgraph=True, dynamic=False)
    interval(runs, step, watched=False)  # the compiler takes no dispatch mode


@pytest.mark.parametrize("reward", ["train", "valid", "paired", "final"])
def test_a_decision_mixes_no_devices_and_waits_only_where_it_must(reward):
    pytest.importorskip("stable_baselines3")
    from metalr.agents.sb3_vec_env import LRControlVecEnv

    tasks = [task_of(name, horizon=8) for name in ("mlp", "gru")]
    config = EnvConfig(decisions=2, device="meta", reward=reward)
    with Elsewhere(answers=True) as watched:
        env = LRControlVecEnv(Transition(tasks, 6, config))
        env.reset()
        env.transition.reset(torch.tensor([True, False] * 3))
        for _ in range(2):
            before = len(watched.waits)
            env.step(np.zeros((6, 1), dtype=np.float32))
    # Of each group the action goes up and one mask is asked for (of a twin too); reward and the like come down at once.
    assert len(watched.waits) - before <= 3 + len(tasks) * (3 if reward == "paired" else 2)
