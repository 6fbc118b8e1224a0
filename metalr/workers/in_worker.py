"""Inside a worker: do a unit, and keep what units share."""

import pickle
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Shared values that a worker keeps: units of a task follow each other.
_KEPT = 4


class Outcome(NamedTuple):
    """How a unit ended: its result, or the text of its error; and the seconds of both of its parts."""

    result: Any
    failure: str | None = None
    build: float = 0.0
    work: float = 0.0


_shared: OrderedDict[str, Any] = OrderedDict()


def do(name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> bytes:
    """Do a unit.

    Args:
        name: of what it shares, None for nothing.
        fetch: gets that, if this worker has not kept it.
        call: function and arguments.

    Returns:
        An `Outcome`, as bytes: what engines make of errors and of tensors differs.
    """
    torch.set_num_threads(1)  # two on small kernels collapse as soon as anything else runs beside them
    started = built = time.perf_counter()
    try:
        function, arguments = pickle.loads(call)
        if name is not None and fetch is not None:
            arguments = (_kept(name, fetch), *arguments)
        built = time.perf_counter()
        result = function(*arguments)
        return pickle.dumps(Outcome(result, None, built - started, time.perf_counter() - built))
    except Exception:
        return pickle.dumps(Outcome(None, traceback.format_exc(), built - started, time.perf_counter() - built))


def _kept(name: str, fetch: Callable[[], Any]) -> Any:
    if name not in _shared:
        _shared[name] = fetch()
        while len(_shared) > _KEPT:
            _shared.popitem(last=False)
    _shared.move_to_end(name)
    return _shared[name]
