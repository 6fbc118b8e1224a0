"""The learners of few-shot problems, MAML and Meta-SGD, before their meta-training."""

import torch

from metalr.engine.runs import BatchedRuns
from metalr.learned.schedules import ParameterLR
from metalr.tasks.task import Task


def few_shot_learner(
    task: Task, method: str, *, inner_lr: float = 0.01, seed: int = 0, dtype: torch.dtype = torch.float32
) -> ParameterLR:
    """The meta-parameters of MAML or Meta-SGD, as they start.

    Args:
        task: gives the net.
        method: "maml" (initial weights, the LR stays fixed) or "meta-sgd" (initial weights and one LR for each of
            them).
        inner_lr: of the inner step, or where Meta-SGD's LRs start; 0.01 in MAML's paper.
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
    return ParameterLR(runs.state.params[0], inner_lr, per_parameter=learned, learn_lr=learned)
