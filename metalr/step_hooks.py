"""Hooks around `optimizer.step()` for a scheduler that the optimizer must not keep alive.

Which loop: the user's, through `LearnedLR`. Knows nothing of learning rates.
"""

import weakref
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle


def attach_hooks(scheduler: LRScheduler, before: str, after: str) -> list[RemovableHandle]:
    """Call two methods of a scheduler, given by name, before and after every update of its optimizer.

    The optimizer holds the hooks; a weak reference keeps scheduler and optimizer from keeping each other alive.
    """
    me = weakref.ref(scheduler)
    return [
        scheduler.optimizer.register_step_pre_hook(_PreHook(me, before)),
        scheduler.optimizer.register_step_post_hook(_Hook(me, after)),
    ]


class _Hook:
    """Calls a method of a scheduler that may be gone, around `optimizer.step`."""

    def __init__(self, scheduler: "weakref.ref[LRScheduler]", method: str) -> None:
        self.scheduler = scheduler
        self.method = method

    def __call__(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self._run(optimizer)

    def _run(self, optimizer: Optimizer) -> None:
        scheduler = self.scheduler()
        if scheduler is not None and scheduler.optimizer is optimizer:
            getattr(scheduler, self.method)()


class _PreHook(_Hook):
    """The same before an update: after the closure where there is one, since gradients come about in it."""

    def __call__(  # type: ignore[override]
        self, optimizer: Optimizer, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._run(optimizer)
            return None
        calls = 0

        def observed() -> Any:
            nonlocal calls
            result = closure()
            calls += 1
            if calls == 1:  # LBFGS asks again and again within one update
                self._run(optimizer)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": observed}
        return (args[0], observed, *args[2:]), kwargs
