"""Every scheduler of the package, and the small training that the contract tests drive them with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from metalr.artefacts.controller_file import SHIPPED, load_controller
from metalr.compare.catalog import SCHEDULE_CONTENDERS
from metalr.control.actions import ActionSpec
from metalr.control.catalog import CONTROLLERS
from metalr.control.controller import Controller
from metalr.control.reference import RandomController, ReplayController, ScheduleController
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Cosine
from tests.support.policies import lstm_policy, random_policy, recurrent_policy

HORIZON, DECISIONS = 23, 5
Build = Callable[..., LRScheduler]


def controllers() -> dict[str, Controller]:
    """One or more of each registered kind, and every shipped one; a new kind without an entry here fails the tests."""
    found: dict[str, Controller] = {
        "schedule": ScheduleController(Cosine(floor=0.1), DECISIONS),
        "random": RandomController(ActionSpec(alpha=1.0), Cosine(floor=0.1), DECISIONS),
        "policy": random_policy(),
        "policy-levels": random_policy(ActionSpec(alpha=1.0, levels=7)),
        "policy-drifting": random_policy(ActionSpec("recursive", alpha=1.0)),
        "policy-absolute": random_policy(ActionSpec("absolute", alpha=1.0, reference=0.02)),
        "recurrent": recurrent_policy(),
        "lstm": lstm_policy(),
        "replay": ReplayController((1.0, 2.0, 0.5, 0.1, 0.3), Cosine(floor=0.1)),
    }
    for name, kind in CONTROLLERS.items():
        if name not in found:
            found[name] = kind(schedule=Cosine(floor=0.1), decisions=DECISIONS)
    return found | {f"shipped {path.stem}": load_controller(path) for path in SHIPPED.glob("*.safetensors")}


SCHEDULES = {name: contender.schedule({}) for name, contender in SCHEDULE_CONTENDERS.items()}
CONTROLLERS_UNDER_TEST = controllers()
NAMES = [f"schedule:{name}" for name in SCHEDULES] + [f"learned:{name}" for name in CONTROLLERS_UNDER_TEST]
LEARNED = [name for name in NAMES if name.startswith("learned:")]
OPEN = [name for name in NAMES if name.startswith("schedule:")]


def build(name: str, optimizer: torch.optim.Optimizer, horizon: int = HORIZON, **options: Any) -> LRScheduler:
    """The scheduler of that name."""
    side, short = name.split(":", 1)
    if side == "schedule":
        return ScheduleLR(optimizer, SCHEDULES[short], horizon, **options)
    controller = CONTROLLERS_UNDER_TEST[short]
    return LearnedLR(optimizer, controller, horizon, decisions=min(controller.decisions, horizon // 2), **options)


def base_in_force(scheduler: LRScheduler, lr: float) -> float:
    """What the multiplier multiplies in a group with this LR."""
    return scheduler.controller.base(lr) if isinstance(scheduler, LearnedLR) else lr


class Training:
    """A small network with two parameter groups, the first with a float LR and the second with a tensor LR."""

    def __init__(self, lr: float = 0.05, second: float | torch.Tensor | None = None, seed: int = 0, kind="sgd") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        for p in self.model.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2.0
        self.tensor_lr = torch.tensor(lr / 2.0, dtype=torch.float64) if second is None else second
        groups = [
            {"params": self.model[0].parameters(), "lr": lr},
            {"params": self.model[2].parameters(), "lr": self.tensor_lr},
        ]
        self.optimizer = (
            torch.optim.SGD(groups, lr, momentum=0.9) if kind == "sgd" else torch.optim.Adam(groups, lr, foreach=False)
        )
        self.updates = 0

    def loss(self) -> torch.Tensor:
        """Of the minibatch that belongs to this update; its gradients are left in the parameters."""
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1000 + self.updates), dtype=torch.float64)
        self.optimizer.zero_grad()
        loss = (self.model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()
        loss.backward()
        return loss

    def update(self, scheduler: LRScheduler | None, calls: int = 1, zero_before: bool = False) -> list[float]:
        """One update; the LRs that were in force in it."""
        loss = self.loss()
        if isinstance(scheduler, LearnedLR):
            scheduler.observe(loss)
        used: list[float] = []
        handle = self.optimizer.register_step_post_hook(
            lambda o, *_: used.extend(float(g["lr"]) for g in o.param_groups)
        )
        self.optimizer.step()
        handle.remove()
        self.updates += 1
        if zero_before:
            self.optimizer.zero_grad()
        for _ in range(calls):
            if scheduler is not None:
                scheduler.step()
        return used

    def run(self, scheduler: LRScheduler | None, updates: int = HORIZON, **options: Any) -> list[list[float]]:
        return [self.update(scheduler, **options) for _ in range(updates)]
