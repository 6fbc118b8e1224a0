"""Hooks around `optimizer.step()` for a scheduler that the optimizer must not keep alive."""

import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle


def attach_hooks(scheduler: LRScheduler, before: str, after: str) -> list[RemovableHandle]:
    """Call two methods of a scheduler before and after every update of its optimizer.

    Where `step` has a closure, `before` is called after it, since it makes the gradients. The optimizer owns the hooks;
    a weak reference keeps scheduler and optimizer from keeping each other alive.

    Args:
        scheduler: with an `optimizer`.
        before: name of its method to call before an update.
        after: name of its method to call after an update.

    Returns:
        Handles; `handle.remove()` takes the hook off.
    """
    handles: list[RemovableHandle] = []
    target = scheduler.optimizer
    watched = _with_hooks(target)
    reference = weakref.ref(scheduler, lambda _: _remove(handles))
    run_before, run_after = (_runner(reference, target, method) for method in (before, after))

    def before_step(optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            run_before()
            return None
        observed = _then_once(closure, run_before)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": observed}
        return (args[0], observed, *args[2:]), kwargs

    handles += [watched.register_step_pre_hook(before_step), watched.register_step_post_hook(run_after)]
    return handles


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _with_hooks(optimizer: Optimizer) -> Optimizer:
    """The optimizer, or the one inside a wrapper that has no hooks because it never called `super().__init__()`.

    Raises:
        TypeError: there is none.
    """
    if hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return optimizer
    inside = [value for value in vars(optimizer).values() if isinstance(value, Optimizer) and value is not optimizer]
    if len(inside) != 1:
        raise TypeError(
            f"got a {type(optimizer).__name__} that never called super().__init__() of torch.optim.Optimizer and so "
            "has no hooks, expected one that did: pass the optimizer inside it, or hooks=False"
        )
    return _with_hooks(inside[0])


def _runner(reference: "weakref.ref[LRScheduler]", optimizer: Optimizer, method: str) -> Callable[..., None]:
    """A call of a scheduler's method, unless the scheduler is gone or has been given another optimizer."""

    def run(*_: Any) -> None:
        present = reference()
        if present is not None and present.optimizer is optimizer:
            getattr(present, method)()

    return run


def _then_once(closure: Callable[[], Any], action: Callable[[], None]) -> Callable[[], Any]:
    """The closure, with an action after its first call: LBFGS calls it many times within one update."""
    pending = [action]

    def observed() -> Any:
        result = closure()
        if pending:
            pending.pop()()
        return result

    return observed
