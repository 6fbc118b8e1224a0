"""A block of training that leaves no trace in the model, the optimizer and the random numbers of a user."""

import contextlib
import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Undo = Callable[[], Any]


@contextlib.contextmanager
def untouched(modules: Iterable[nn.Module], optimizer: Optimizer, loader: Any) -> Iterator[None]:
    """Restore everything to the bit at the end of a block, also after an exception or Ctrl-C.

    Restored are parameters, buffers, gradients and modes of the modules; state, LRs and other options of the optimizer;
    the random numbers of Python, NumPy, torch and the loader. Tensors keep their identity. On entry there are no
    gradients.

    Args:
        modules: that the block trains or calls.
        optimizer: that it trains with.
        loader: from which it reads.
    """
    undo = [
        *(_keep_module(part) for module in modules for part in module.modules()),
        _keep_gradients([*(p for m in modules for p in m.parameters()), *_params(optimizer)]),
        _keep_optimizer(optimizer),
        *_keep_random_numbers(loader),
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for restore in undo:
                restore()


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _keep_module(module: nn.Module) -> Undo:
    """Its own parameters, buffers and mode, not those of its parts."""
    training = module.training
    kept = [
        (holder, name, tensor, None if tensor is None else tensor.detach().clone())
        for holder in (module._parameters, module._buffers)
        for name, tensor in holder.items()
    ]

    def restore() -> None:
        module.training = training
        for holder, name, tensor, value in kept:
            holder[name] = tensor  # type: ignore[assignment]
            if tensor is not None and value is not None:
                tensor.copy_(value)

    return restore


def _keep_gradients(params: Iterable[Tensor]) -> Undo:
    kept = {p: p.grad for p in params}
    for p in kept:
        p.grad = None

    def restore() -> None:
        for p, gradient in kept.items():
            p.grad = gradient

    return restore


def _keep_optimizer(optimizer: Optimizer) -> Undo:
    """The block works on a copy of the state."""
    state = optimizer.state
    same = {id(p): p for p in _params(optimizer)}
    optimizer.state = defaultdict(dict, {p: copy.deepcopy(of_p, dict(same)) for p, of_p in state.items()})
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    tensors = [(value, value.clone()) for group in groups for value in group.values() if isinstance(value, Tensor)]
    was_called = getattr(optimizer, "_opt_called", None)  # by which schedulers tell a new optimizer

    def restore() -> None:
        optimizer.state = state
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            for key in set(group) - set(kept) - {"params"}:
                del group[key]
            group.update(kept)
        for tensor, value in tensors:
            tensor.copy_(value)
        if was_called is not None:
            optimizer._opt_called = was_called  # type: ignore[attr-defined]

    return restore


def _keep_random_numbers(loader: Any) -> Iterator[Undo]:
    yield partial(random.setstate, random.getstate())
    yield partial(np.random.set_state, np.random.get_state())  # noqa: NPY002 -- a user's code may draw from it
    yield partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    for holder in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            yield partial(generator.set_state, generator.get_state())
