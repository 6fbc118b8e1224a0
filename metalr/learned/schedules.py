"""Learned open loops: modules that map progress to an LR multiplier and become plain schedules.

The outer loop moves their parameters, the inner loop reads them. They accept any leading axes, so that one call serves
every run of a batch and `torch.func` can give each run meta-parameters of its own. No task is visible here; the closed
loops are in `metalr.learned.policies`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalr import schedules
from metalr.learned.module import OpenLoop


def _checked_range(low: float, high: float) -> tuple[float, float]:
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"got bounds [{low}, {high}], expected 0 < low < high: factors of the base LR")
    return math.log(low), math.log(high)


class ConstantLR(OpenLoop):
    """One learned number: multiplier = exp(log_multiplier), the same throughout.

    Args:
        initial: the multiplier to start from.
        low, high: bounds of the multiplier.

    Example:
        >>> round(ConstantLR(0.5)(torch.tensor(0.3)).item(), 6)
        0.5
    """

    def __init__(self, initial: float = 1.0, *, low: float = 1e-6, high: float = 1e6) -> None:
        super().__init__()
        self.bounds = _checked_range(low, high)
        self.log_multiplier = nn.Parameter(torch.tensor(math.log(initial), dtype=torch.float64))

    def forward(self, progress: Tensor) -> Tensor:
        log_multiplier = self.log_multiplier.clamp(*self.bounds)
        return (log_multiplier + torch.zeros_like(progress))[..., None].exp()

    def project(self) -> None:
        self.log_multiplier.data.clamp_(*self.bounds)

    def schedules(self) -> list[schedules.Schedule]:
        return [schedules.Constant(self.log_multiplier.exp().item())]


class KnotLR(OpenLoop):
    """Knots at equally spaced progress, joined by straight lines in log space; any horizon.

    Args:
        num_knots: at least 2.
        initial: the multiplier at every knot, or one for each.
        low, high: bounds of the multiplier; with knots inside them every value between is inside too.

    Equation: see `metalr.schedules.Knots`, which it exports as.

    Example:
        >>> KnotLR(5)(torch.tensor([0.0, 0.4, 1.0])).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        num_knots: int = 20,
        initial: float | Sequence[float] = 1.0,
        *,
        low: float = 1e-6,
        high: float = 1e6,
    ) -> None:
        super().__init__()
        if num_knots < 2:
            raise ValueError(f"got {num_knots} knots, expected at least 2: use ConstantLR for one number")
        self.bounds = _checked_range(low, high)
        values = torch.as_tensor(initial, dtype=torch.float64).expand(num_knots)
        self.log_multipliers = nn.Parameter(values.log().clamp(*self.bounds).clone())

    def forward(self, progress: Tensor) -> Tensor:
        # Clamped here too, not only in project(): an evolution strategy perturbs what has been projected.
        logs = self.log_multipliers.clamp(*self.bounds)
        position = progress.to(logs.dtype).clamp(0.0, 1.0) * (len(logs) - 1)
        left = position.floor().clamp(max=len(logs) - 2)
        part, index = position - left, left.long()
        return ((1.0 - part) * logs[index] + part * logs[index + 1])[..., None].exp()

    def project(self) -> None:
        self.log_multipliers.data.clamp_(*self.bounds)

    def schedules(self) -> list[schedules.Schedule]:
        return [schedules.Knots(tuple(self.log_multipliers.exp().tolist()))]


class StepwiseLR(OpenLoop):
    """One learned LR for each of `num_pieces` equal parts of the run and each group.

    With one part for each inner step and `groups="module"` in the engine these are the per-step per-layer LRs of
    MAML++ (Antoniou et al. 2019, arXiv 1810.09502, section 4) and ALFA; meant for short horizons. With D parts it
    is what D open-loop decisions of an agent can express.

    Args:
        num_pieces: parts of the run.
        num_groups: LRs side by side.
        initial: every multiplier at the start.
        low, high: bounds of the multiplier.
    """

    def __init__(
        self,
        num_pieces: int,
        num_groups: int = 1,
        initial: float = 1.0,
        *,
        low: float = 1e-6,
        high: float = 1e6,
    ) -> None:
        super().__init__()
        if num_pieces < 1 or num_groups < 1:
            raise ValueError(f"got {num_pieces} pieces and {num_groups} groups, expected at least 1 of each")
        self.bounds = _checked_range(low, high)
        values = torch.full((num_pieces, num_groups), math.log(initial), dtype=torch.float64)
        self.log_multipliers = nn.Parameter(values)

    def forward(self, progress: Tensor) -> Tensor:
        # 0.3 · 10 is 2.9999999999999996 in floating point: forgive rounding, as schedules.guarded_floor does.
        index = (progress.double() * len(self.log_multipliers) + 1e-9).floor().long()
        logs = self.log_multipliers.clamp(*self.bounds)
        return logs[index.clamp(0, len(logs) - 1)].exp()

    def project(self) -> None:
        self.log_multipliers.data.clamp_(*self.bounds)

    def schedules(self) -> list[schedules.Schedule]:
        num_pieces = len(self.log_multipliers)
        boundaries = tuple(i / num_pieces for i in range(1, num_pieces))
        columns = self.log_multipliers.exp().unbind(-1)
        return [schedules.PiecewiseConstant(boundaries, tuple(column.tolist())) for column in columns]


class ParameterLR(OpenLoop):
    """One learned LR for every parameter of the net, of either sign, with the initial weights: Meta-SGD.

    With `per_parameter=False` the LR is one fixed or learned number and this is MAML (Finn et al. 2017, arXiv
    1703.03400); with True, Meta-SGD (Li et al. 2017, arXiv 1707.09835). LRs are not in log space: Meta-SGD's may
    turn negative.

    Args:
        initial_params: `(num_params,)`, the weights to start from; they are meta-parameters too.
        initial: LR multiplier of every parameter at the start.
        per_parameter: one LR for each parameter.
        learn_lr: False keeps the LR where it is and learns the weights alone.
    """

    def __init__(
        self, initial_params: Tensor, initial: float, *, per_parameter: bool = True, learn_lr: bool = True
    ) -> None:
        super().__init__()
        self.params = nn.Parameter(initial_params.detach().clone())
        size = len(initial_params) if per_parameter else 1
        self.lr = nn.Parameter(torch.full((size,), initial, dtype=initial_params.dtype), requires_grad=learn_lr)

    def initial_params(self) -> Tensor | None:
        return self.params

    def forward(self, progress: Tensor) -> Tensor:
        return self.lr.expand(*progress.shape, -1)

    def schedules(self) -> list[schedules.Schedule]:
        raise ValueError(
            "got learned LRs for single parameters, expected one for each group: they belong to one net; keep "
            "the module's state_dict() instead"
        )
