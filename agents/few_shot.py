"""The learners of few-shot problems, MAML and Meta-SGD, before their meta-training."""

import torch

from metalr.engine.runs import BatchedRuns
from metalr.learned.schedules import ParameterLR
from metalr.tasks.task import Task


def few_shot_learner(task: Task, method: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> ParameterLR:
    """The meta-parameters of MAML or Meta-SGD, as they start.

    Args:
        task: gives the net.
        method: "maml" (initial weights, LR fixed at 0.01 as in its paper) or "meta-sgd" (initial weights and one LR
            for each of them, from 0.01).
        seed: of the initial weights.
        dtype: of all meta-parameters.

    Raises:
        ValueError: the method is unknown.
    """
    if method not in ("maml", "meta-sgd"):
        raise ValueError(f"got method {method!r}, expected 'maml' or 'meta-sgd': use one of these")
    runs = BatchedRuns(task, 1, dtype=dtype)
    runs.init(torch.tensor([seed]))
    learned = method == "meta-sgd"
    return ParameterLR(runs.state.params[0], 0.01, per_parameter=learned, learn_lr=learned)
