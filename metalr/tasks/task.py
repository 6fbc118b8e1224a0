"""`Task`: one supervised problem, made of a network, data, a loss, an inner optimizer and a budget.

A few lines build one from a user's own module and tensors. Networks that cannot be batched are refused here, with an
alternative: another layer, or the plain path, which takes them as they are. The shipped tasks are in
`metalr.tasks.catalog`.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.data import Dataset, IterableDataset

from metalr import schedules
from metalr.optimizers.classic import OPTIMIZERS, InnerOptimizer
from metalr.optimizers.own import OwnOptimizer, like_torch
from metalr.registry import look_up
from metalr.tasks.data import SPLITS, Batch, Data, DatasetData, LoaderData, TensorData

Loss = Callable[[Tensor, Tensor], Tensor]

# Layers whose running statistics or unseeded randomness would couple the runs of a batch.
_UNBATCHABLE = {
    _BatchNorm: "nn.GroupNorm or nn.LayerNorm",
    _InstanceNorm: "nn.GroupNorm(num_channels, num_channels)",
    _DropoutNd: "no dropout, or weight decay in the inner optimizer",
}
_PLAIN = "pass plain=True to train one run at a time, slower, through the {} as it is"


@dataclass(frozen=True, eq=False)
class Task:
    """One supervised problem with everything that a training run needs.

    Args:
        model: builds the network; called with torch's generator seeded if weights come from a bank. A network itself
            is accepted too: every run starts from its weights then.
        data: a `Data`, a pair of tensors `(inputs, targets)` that serves as every split, a `DataLoader`, or on the
            plain path a `Dataset`.
        loss: `(outputs, targets) -> scalar`, a mean over the batch that stays positive.
        optimizer: the inner optimizer, its name in `metalr.optimizers.classic.OPTIMIZERS`, or a class of `torch.optim`;
            `functools.partial(torch.optim.SGD, momentum=0.9)` for one with arguments. On the plain path, anything that
            is called as `optimizer(params, lr=…)`.
        base_lr: the default learning rate, positive.
        horizon: inner steps (optimizer updates) in a run.
        batch_size: examples in a minibatch.
        metric: `(outputs, targets) -> scalar`, reported beside the loss; None reports the loss alone.
        initial_weights: a state dict that every run starts from (fine-tuning); None draws fresh weights per seed.
        schedule: the base schedule, which a controller's multiplier scales.
        name: shown in records and errors.
        plain: train on the plain path: one run at a time through the network, the optimizer and the loader as they are.
            Slower, by as much as batching gains, and for any of them: batch normalisation, dropout, recurrent layers.

    Raises:
        ValueError: a number is out of range, or network, optimizer or data cannot be batched; the message says what to
            use.

    Example:
        >>> inputs = torch.randn(100, 3)
        >>> task = Task(lambda: torch.nn.Linear(3, 1), (inputs, inputs.sum(1, keepdim=True)),
        ...             torch.nn.functional.mse_loss, optimizer="momentum", base_lr=0.05, horizon=200)
        >>> task.num_params
        4
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        >>> Task(net, (inputs, inputs.sum(1, keepdim=True)), torch.nn.functional.mse_loss,
        ...      optimizer=torch.optim.NAdam, base_lr=0.01, plain=True).optimizer
        OwnOptimizer(NAdam)
    """

    model: Callable[[], nn.Module]
    data: Any  # a Data once constructed
    loss: Loss
    optimizer: Any = "momentum"  # an InnerOptimizer once constructed
    base_lr: float = 0.1
    horizon: int = 400
    batch_size: int = 64
    metric: Callable[[Tensor, Tensor], Tensor] | None = None
    initial_weights: Mapping[str, Tensor] | None = None
    schedule: schedules.Schedule = field(default_factory=schedules.Constant)
    name: str = "custom"
    plain: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module):
            object.__setattr__(self, "model", _CopyOf(copy.deepcopy(self.model)))
            if self.initial_weights is None:
                object.__setattr__(self, "initial_weights", self.model().state_dict())
        object.__setattr__(self, "data", _as_data(self.data))
        object.__setattr__(self, "optimizer", _as_optimizer(self.optimizer, self.plain))
        self._check()

    def _check(self) -> None:
        if not 0.0 < self.base_lr < float("inf"):
            raise ValueError(f"got base_lr {self.base_lr}, expected a positive finite number: pass 0.1, for example")
        for name in ("horizon", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"got {name} {value!r}, expected a whole number of at least 1: "
                    "give horizon in optimizer updates and batch_size in examples"
                )
        module = self.build()
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                "got a network without parameters, expected at least one that is trained: add a layer or unfreeze one"
            )
        if self.initial_weights is not None:
            _check_weights(module, self.initial_weights)
        if self.plain:
            _check_plain(self, module)
            return
        check_batchable(module)
        if isinstance(self.data, DatasetData):
            raise ValueError(f"got a Dataset, expected its examples as two tensors: stack them, or {_plain('data')}")
        if isinstance(self.data, TensorData):
            inputs, targets = (part[:1, :2].expand(2, *part[0, :2].shape) for part in self.data.train)
            dtype = next(module.parameters()).dtype
            check_forward(module, self.loss, (_cast(inputs, dtype), _cast(targets, dtype)))

    def with_(self, **changes: Any) -> "Task":
        """Return a copy with some arguments changed, for example `task.with_(horizon=200)`."""
        if "model" in changes and isinstance(self.model, _CopyOf):
            changes = {"initial_weights": None, **changes}  # those were the weights of the old network
        return replace(self, **changes)

    def build(self) -> nn.Module:
        """Build a fresh module on the CPU without changing torch's global generator."""
        with torch.random.fork_rng(devices=[]):
            return self.model()

    @property
    def num_params(self) -> int:
        """Number of trainable parameters in the network."""
        return sum(p.numel() for p in self.build().parameters() if p.requires_grad)


@dataclass(frozen=True)
class _CopyOf:
    """Builds a network by copying one."""

    module: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)


def _plain(part: str) -> str:
    return _PLAIN.format(part)


def _as_optimizer(optimizer: Any, plain: bool) -> InnerOptimizer:
    """The inner optimizer that was given, named or described by a class of `torch.optim`."""
    if isinstance(optimizer, InnerOptimizer) and (plain or not isinstance(optimizer, OwnOptimizer)):
        return optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"got a {type(optimizer).__name__} of one network, expected what builds one, since every run has its own: "
            f"pass functools.partial(torch.optim.{type(optimizer).__name__}, …) without the parameters"
        )
    if not isinstance(optimizer, OwnOptimizer) and not callable(optimizer):
        return look_up(OPTIMIZERS, optimizer, "optimizer")
    own = optimizer if isinstance(optimizer, OwnOptimizer) else OwnOptimizer(factory=optimizer)
    if plain:
        return own
    try:
        formula = like_torch(own.factory)
    except TypeError as error:
        raise ValueError(
            f"got {own!r}, which cannot be called as optimizer(params, lr=0.1) ({error}), expected a class of "
            "torch.optim, or functools.partial of one with its arguments"
        ) from error
    if formula is None:
        raise ValueError(
            f"got the optimizer {own!r}, for which the batched engine has no formula, expected SGD, RMSprop, Adagrad, "
            f"Adam or AdamW with arguments that it knows: use one of {sorted(OPTIMIZERS)}, or {_plain('optimizer')}"
        )
    return replace(formula, clip_norm=own.clip_norm)


def _check_plain(task: Task, module: nn.Module) -> None:
    """Refuse an optimizer that cannot be built, and loaders whose iterators disturb each other."""
    try:
        made = task.optimizer.to_torch([p for p in module.parameters() if p.requires_grad], task.base_lr)
    except NotImplementedError as error:
        raise ValueError(f"{error}, without plain=True") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(
            f"got a {type(made).__name__} from the optimizer, expected a torch.optim.Optimizer: pass a class of "
            "torch.optim, or a function of (params, lr) that returns one"
        )
    if any(getattr(getattr(task.data, split, None), "persistent_workers", False) for split in SPLITS):
        raise ValueError(
            "got a DataLoader with persistent_workers=True, expected one that can be iterated over several times at "
            "once, by runs and by evaluations: set persistent_workers=False"
        )


def _as_data(data: Data | Batch | Iterable) -> Data:
    if isinstance(data, Data):
        return data
    if isinstance(data, tuple):
        return TensorData.of(data)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DatasetData(data)
    if isinstance(data, Iterable) and not isinstance(data, Tensor) and not _is_list_of_tensors(data):
        return LoaderData(data)
    raise ValueError(
        f"got data of type {type(data).__name__}, expected a tuple (inputs, targets) of tensors, a DataLoader or "
        "another iterable of such tuples, a Dataset, or a metalr Data"
    )


def _is_list_of_tensors(data: Iterable) -> bool:
    return isinstance(data, list) and any(isinstance(part, Tensor) for part in data)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    got = {name: tuple(weights[name].shape) for name in expected if name in weights}
    if got != expected:
        wrong = sorted(name for name in expected if got.get(name) != expected[name])
        raise ValueError(
            f"got initial weights that do not fit {wrong}, expected shapes "
            f"{ {name: expected[name] for name in wrong} }: pass the state dict of the same network"
        )


def check_batchable(module: nn.Module) -> None:
    """Refuse a module whose layers couple the runs of a batch.

    Raises:
        ValueError: the module has running statistics or unseeded dropout; the message names the layer, a replacement
            and the plain path.
    """
    for name, layer in module.named_modules():
        for kind, instead in _UNBATCHABLE.items():
            inert = getattr(layer, "p", 1.0) == 0.0 or not getattr(layer, "track_running_stats", True)
            if isinstance(layer, kind) and (not inert or kind is _BatchNorm):
                raise ValueError(
                    f"got a network with {type(layer).__name__} at {name or 'the top'!r}, expected layers in which "
                    f"no run depends on another or on hidden state: use {instead} instead, or {_plain('network')}"
                )


def check_forward(module: nn.Module, loss: Loss, batch: Batch) -> None:
    """Try the network on two runs of a small batch, `(2, batch, …)`.

    Raises:
        ValueError: the batched forward pass fails or changes a buffer, or the loss is not a scalar.
    """
    trained = {name: torch.stack([p.detach()] * 2) for name, p in module.named_parameters()}
    buffers = {name: b.clone() for name, b in module.named_buffers()}

    def run_loss(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(functional_call(module, weights, (inputs,)), targets)

    try:
        with torch.no_grad():
            shape = vmap(run_loss)(trained, *batch).shape
    except Exception as error:
        raise ValueError(
            f"got a network or loss that cannot be batched ({error}), expected pure functions of weights and inputs: "
            "use nn.GroupNorm for batch statistics, no dropout, no recurrent layers, no in-place changes, and a loss "
            f"that returns a mean, or {_plain('network')}"
        ) from error
    after = dict(module.named_buffers())
    changed = [name for name, old in buffers.items() if after[name] is None or not _same_buffer(old, after[name])]
    if changed:
        raise ValueError(
            f"got a network whose forward pass changes the buffers {changed}, expected one without hidden state: "
            "use nn.GroupNorm instead of running statistics, keep that state outside the network, or "
            f"{_plain('network')}"
        )
    if shape != (2,):
        raise ValueError(f"got a loss of shape {tuple(shape[1:])} for a batch, expected a scalar: take its mean")


def _same_buffer(old: Tensor, new: Tensor) -> bool:
    # A buffer replaced under vmap is a wrapper that cannot even be compared.
    return not is_batchedtensor(new) and old.shape == new.shape and bool((old == new).all())
