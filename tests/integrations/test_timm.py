"""timm's scheduler interface, through the calls of its `train.py`, because timm itself needs torchvision."""

import pytest

from metalr.schedulers.adapters import TimmScheduler
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Cosine
from tests.support.policies import moderate_policy
from tests.support.schedulers_under_test import Training

UPDATES = 24


class TimmLoop:
    """The calls of timm's `train.py`, in its order."""

    def __init__(self, scheduler: TimmScheduler, training: Training) -> None:
        self.scheduler, self.training = scheduler, training

    def run(self, epochs: range, per_epoch: int) -> list[list[float]]:
        if epochs.start > 0:
            self.scheduler.step_update(epochs.start * per_epoch)
        rates = []
        for epoch in epochs:
            for index in range(per_epoch):
                loss = self.training.loss()
                if isinstance(self.scheduler.scheduler, LearnedLR):
                    self.scheduler.scheduler.observe(loss)
                rates.append([float(g["lr"]) for g in self.scheduler.optimizer.param_groups])
                self.training.optimizer.step()
                self.training.updates += 1
                self.scheduler.step_update(num_updates=epoch * per_epoch + index + 1, metric=loss.item())
            self.scheduler.step(epoch + 1, 0.5)
        return rates


def learned(optimizer):
    return LearnedLR(optimizer, moderate_policy(), UPDATES)


def scheduled(optimizer):
    return ScheduleLR(optimizer, Cosine(), UPDATES)


EITHER = pytest.mark.parametrize("build", [learned, scheduled])


@EITHER
def test_timms_loop_is_a_plain_loop(build):
    timm, plain = Training(), Training()
    rates = TimmLoop(TimmScheduler(build(timm.optimizer)), timm).run(range(4), 6)
    expected = plain.run(build(plain.optimizer), UPDATES)
    assert rates[1:] == expected[1:]  # the first is read before the first decision


@EITHER
def test_timms_loop_resumes(build):
    whole = Training()
    expected = TimmLoop(TimmScheduler(build(whole.optimizer)), whole).run(range(4), 6)
    first, second = Training(), Training()
    adapter = TimmScheduler(build(first.optimizer))
    rates = TimmLoop(adapter, first).run(range(2), 6)
    again = TimmScheduler(build(second.optimizer))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    again.load_state_dict(adapter.state_dict())
    second.updates = 12
    assert rates + TimmLoop(again, second).run(range(2, 4), 6) == expected
