"""The way from every learned module to the controller that it is.

A controller made here is exported, saved and compared exactly as one from PPO or DQN.
"""

from torch import nn

from metalr import schedules
from metalr.control.controller import Controller
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.recurrent import RecurrentPolicyController
from metalr.control.reference import ScheduleController
from metalr.learned.module import Learned, OpenLoop
from metalr.learned.policies import ClosedLoop, GRUPolicy, MLPPolicy


def controller_of(learned: Learned, *, schedule: schedules.Schedule | None = None, decisions: int = 40) -> Controller:
    """The controller that a learned module is, ready to be saved, evaluated or put into `LearnedLR`.

    Args:
        learned: an open-loop module with one LR, `MLPPolicy` or `GRUPolicy`.
        schedule: base schedule of a closed-loop policy; constant by default. An open-loop module is one itself.
        decisions: in the card of an open-loop controller, which does not use them.

    Raises:
        ValueError: the module is of another kind, or has several LRs.

    Example:
        >>> from metalr.learned.schedules import ConstantLR
        >>> controller_of(ConstantLR(1.0)).schedule
        Constant(value=1.0)
    """
    if isinstance(learned, OpenLoop):
        if schedule is not None:
            raise ValueError(
                f"got base schedule {schedule} for an open-loop {type(learned).__name__}, expected none: it is "
                "the schedule itself"
            )
        return ScheduleController(learned.schedule(), decisions)
    base = schedule or schedules.Constant()
    if isinstance(learned, MLPPolicy):
        layers = [layer for layer in learned.layers if isinstance(layer, nn.Linear)]
        network = PolicyNetwork([layer.weight for layer in layers], [layer.bias for layer in layers])
        return PolicyController(network, learned.action, base, learned.decisions)
    if isinstance(learned, GRUPolicy):
        named = {name: p.detach() for name, p in learned.named_parameters()}
        return RecurrentPolicyController(named, learned.action, base, learned.decisions)
    raise ValueError(
        f"got a {type(learned).__name__}, expected an open-loop module, MLPPolicy or GRUPolicy: "
        f"{'wrap its policy in a Controller of your own' if isinstance(learned, ClosedLoop) else 'use those'}"
    )
