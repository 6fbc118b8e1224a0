"""Find the LR, train with it, and again: a small form of AutoLRS (Jin et al. 2021, arXiv 2105.10762).

A run is cut into stages. Each begins with short probes: some updates from the present state at an LR that a Gaussian
process proposes, the train loss after them, and the state put back, buffers and all. The rest of the stage is trained
at the LR of the best probe. Probing updates count: probes and training together make the horizon, so that with the
default share half of it goes into finding, as in the paper. Evaluations are not charged, there as here.

Smaller than the paper's: stages of equal length in place of doubling ones, and the loss after a probe itself in place
of its extrapolation to the end of the stage. Both prefer LRs that pay soon, and both are why it loses to a fall that is
planned.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalr.engine.runs import BatchedRuns
from metalr.signals.stats import RunStats

# Train examples behind the loss after a probe.
_EXAMPLES = 1024
# A probe that raises the loss counts as one that raises it by this many e-folds at most: explosions would otherwise
# hide the differences between good LRs.
_WORST = 0.1
# LRs that can be proposed, and the Gaussian process over their logs: its length scale as a share of the range, the
# noise of a standardised loss, and how many standard deviations below the mean a proposal is judged.
_CANDIDATES = 65
_LENGTH, _NOISE, _OPTIMISM = 0.2, 0.1, 1.0


class Part(NamedTuple):
    """A stage: inner steps of each probe (0 for none), and inner steps of training."""

    probe_steps: int
    train_steps: int


class Stage(NamedTuple):
    """A stage that has been trained.

    Attributes:
        step: inner steps charged so far, probes included.
        lr: of the training, `(num_runs,)` float64.
        stats: of the training.
    """

    step: int
    lr: Tensor
    stats: RunStats


@dataclass(frozen=True)
class StagedSearch:
    """The settings of the search.

    Attributes:
        stages: in a run; a run too short for two steps per probe has fewer.
        probes: in each stage.
        share: of the inner steps that goes into probes.
        span: LRs from base LR / span to base LR · span are searched.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> StagedSearch(stages=2, probes=5).parts(200)
        [Part(probe_steps=10, train_steps=50), Part(probe_steps=10, train_steps=50)]
    """

    stages: int = 4
    probes: int = 5
    share: float = 0.5
    span: float = 32.0

    def __post_init__(self) -> None:
        if self.stages < 1 or self.probes < 1 or not 0.0 < self.share < 1.0 or not 1.0 <= self.span < float("inf"):
            raise ValueError(
                f"got {self}, expected at least one stage and one probe, a share between 0 and 1 and a span of at "
                "least 1: try 4, 5, 0.5 and 32"
            )

    def parts(self, horizon: int) -> list[Part]:
        """The stages of a run; their inner steps, each probe's included, add up to the horizon."""
        least = 2 * self.probes + 2
        stages = min(self.stages, max(horizon // least, 1))
        ends = [stage * horizon // stages for stage in range(stages + 1)]
        parts = []
        for start, end in itertools.pairwise(ends):
            length = end - start
            probe_steps = max(int(self.share * length / self.probes), 2)
            if length - self.probes * probe_steps < 2:
                probe_steps = 2 if length >= least else 0
            parts.append(Part(probe_steps, length - self.probes * probe_steps))
        return parts


def train_in_stages(search: StagedSearch, runs: BatchedRuns, base_lr: Tensor) -> Iterator[Stage]:
    """Train every run to its horizon, each with its own probes.

    Args:
        search: the settings.
        runs: the engine, started.
        base_lr: `(num_runs,)` float64, the middle of the LRs that are searched, and the first probe.
    """
    place = torch.full_like(base_lr, 0.5)  # of the LR in the logarithmic range, in [0, 1]
    step = 0
    for part in search.parts(runs.task.horizon):
        if part.probe_steps:
            place = _best_place(search, runs, base_lr, place, part.probe_steps)
        lr = _lr_at(search, base_lr, place)
        stats = runs.unroll(lr, part.train_steps)
        step += search.probes * part.probe_steps + part.train_steps
        yield Stage(step, lr, stats)


def propose(tried: Tensor, scores: Tensor) -> Tensor:
    """Where to probe next: the lowest lower confidence bound of a Gaussian process.

    Args:
        tried: `(num_runs, num_tried)` float64, places in [0, 1].
        scores: `(num_runs, num_tried)` float64, finite; lower is better.

    Returns:
        Places `(num_runs,)`.
    """
    grid = torch.linspace(0.0, 1.0, _CANDIDATES, dtype=tried.dtype, device=tried.device)
    centred = scores - scores.mean(-1, keepdim=True)
    standard = centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
    noise = _NOISE**2 * torch.eye(tried.shape[-1], dtype=tried.dtype, device=tried.device)
    among = _kernel(tried, tried) + noise  # (num_runs, num_tried, num_tried)
    across = _kernel(grid.expand(len(tried), -1), tried)  # (num_runs, candidates, num_tried)
    weights = torch.linalg.solve(among, across.mT)  # (num_runs, num_tried, candidates)
    mean = (weights * standard[..., None]).sum(-2)
    variance = (1.0 - (weights * across.mT).sum(-2)).clamp(min=0.0)
    return grid[(mean - _OPTIMISM * variance.sqrt()).argmin(-1)]


def _best_place(search: StagedSearch, runs: BatchedRuns, base_lr: Tensor, place: Tensor, probe_steps: int) -> Tensor:
    """The place with the lowest loss after a probe; the first probe is at `place`, where the last stage was trained."""
    before, worst = runs.state, _log_loss(runs) + _WORST
    tried, scores = [], []
    for _ in range(search.probes):
        runs.unroll(_lr_at(search, base_lr, place), probe_steps)
        tried.append(place)
        scores.append(torch.minimum(_log_loss(runs), worst))
        runs.state = before
        place = propose(torch.stack(tried, -1), torch.stack(scores, -1))
    best = torch.stack(scores, -1).argmin(-1, keepdim=True)
    return torch.stack(tried, -1).gather(-1, best).squeeze(-1)


def _log_loss(runs: BatchedRuns) -> Tensor:
    return runs.evaluate("train", _EXAMPLES).loss.double().clamp(1e-300, 1e300).log()


def _lr_at(search: StagedSearch, base_lr: Tensor, place: Tensor) -> Tensor:
    return base_lr * search.span ** (2.0 * place - 1.0)


def _kernel(left: Tensor, right: Tensor) -> Tensor:
    return (-0.5 * ((left[..., :, None] - right[..., None, :]) / _LENGTH).square()).exp()
