"""A parameter group that is added during a run, as when layers are unfrozen: resumed as it would have gone on."""

import copy

import pytest
import torch

from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Cosine
from tests.support.policies import random_policy
from tests.support.schedulers_under_test import HORIZON, Training

pytestmark = pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")


class Unfreezing(Training):
    """A training whose second layer can join late."""

    def __init__(self, lr: float | torch.Tensor) -> None:
        super().__init__()
        self.late = {"params": list(self.model[2].parameters()), "lr": copy.deepcopy(lr), "momentum": 0.9}
        first = [{"params": self.model[0].parameters(), "lr": copy.deepcopy(lr), "momentum": 0.9}]
        self.optimizer = torch.optim.SGD(first, lr=0.05)

    def unfreeze(self) -> None:
        self.optimizer.add_param_group(self.late)


def make(kind: str, training: Training):
    if kind == "schedule":
        return ScheduleLR(training.optimizer, Cosine(floor=0.1), HORIZON)
    return LearnedLR(training.optimizer, random_policy(), HORIZON, scope=kind)


@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05, dtype=torch.float64)], ids=["float", "tensor"])
@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("added_before", [True, False])
@pytest.mark.parametrize("kind", ["global", "param_group", "schedule"])
def test_a_run_with_an_added_group_resumes(kind, added_before, optimizer_first, lr):
    for at in (0, 7, 8):  # decisions fall at updates 5, 9, 14 and 18
        for stop in range(at, HORIZON, 5):
            whole = Unfreezing(lr)
            scheduler = make(kind, whole)
            whole.run(scheduler, at)
            whole.unfreeze()
            whole.run(scheduler, stop - at)

            other = Unfreezing(lr)
            other.model.load_state_dict(whole.model.state_dict())
            other.updates = stop
            if added_before:
                other.unfreeze()
            resumed = make(kind, other)
            if not added_before:
                other.unfreeze()
            states = [
                (other.optimizer, copy.deepcopy(whole.optimizer.state_dict())),
                (resumed, copy.deepcopy(scheduler.state_dict())),
            ]
            for thing, state in states if optimizer_first else states[::-1]:
                thing.load_state_dict(state)
            assert other.run(resumed, HORIZON - stop) == whole.run(scheduler, HORIZON - stop), (at, stop)
            if kind != "schedule":
                assert resumed.history == scheduler.history
