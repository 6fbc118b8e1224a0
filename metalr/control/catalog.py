"""Every kind of controller by name, so that a saved one is rebuilt from its description."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalr.control.controller import Controller
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
    "replay": ReplayController,
    **RULES,
}


def build_controller(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Controller:
    """Rebuild a controller from `config()` and `tensors()`.

    Raises:
        ValueError, KeyError, TypeError: the description is not one that `config()` makes.
    """
    return look_up(CONTROLLERS, config["kind"], "controller kind").build(config, tensors)
