"""Every kind of controller by name, so that a saved one can be rebuilt from its description."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalr.control.controller import Controller
from metalr.control.lstm import LSTMPolicyController
from metalr.control.policy import PolicyController
from metalr.control.recurrent import RecurrentPolicyController
from metalr.control.reference import RandomController, ReplayController, ScheduleController
from metalr.control.rules import RULES
from metalr.registry import look_up

CONTROLLERS: dict[str, Any] = {
    "schedule": ScheduleController,
    "random": RandomController,
    "policy": PolicyController,
    "recurrent": RecurrentPolicyController,
    "lstm": LSTMPolicyController,
    "replay": ReplayController,
    **RULES,
}


def build_controller(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Controller:
    """Rebuild a controller from the results of `Controller.config` and `Controller.tensors`.

    Raises:
        ValueError: an unknown kind, or a value out of its range.
        KeyError: an entry is missing.
        TypeError: an entry is unknown or of the wrong type.
    """
    return look_up(CONTROLLERS, config["kind"], "controller kind").build(config, tensors)
