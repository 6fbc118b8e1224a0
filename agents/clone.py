"""Cloning the oracle: a recurrent policy learns from oracle curves which LR every moment of a run calls for.

The curve of a task says what each LR costs. A policy is trained to choose, at every decision and from the observations
so far, the multiplier of least regret on that curve. It is then rolled out from wrong base LRs, and trained again on
what it met itself, with the same curve as the target (DAgger: Ross et al. 2011, arXiv 1011.0686). Nothing is greedy:
the curve is of final losses.

`metalr.agents.clone_runs` makes the runs, `metalr.agents.clone_folder` keeps everything in files.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metalr.agents.clone_runs import CloneConfig, Episodes
from metalr.compare.oracle import regret_at
from metalr.control.recurrent import RecurrentPolicyController
from metalr.signals.observations import NUM_FEATURES, visibility

log = logging.getLogger("metalr")


class ClonePolicy(nn.Module):
    """A gated recurrent unit with a linear read-out, trained in float32 over whole episodes.

    Args:
        hidden_size: width of the memory.
        seed: of the initial weights; the read-out starts at zero, so that the untrained policy changes nothing.
    """

    cell: nn.GRU
    head: nn.Linear

    def __init__(self, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.GRU(NUM_FEATURES, hidden_size)
            self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, observations: Tensor) -> Tensor:
        """`(decisions, num_runs, NUM_FEATURES)` -> actions `(decisions, num_runs)`."""
        memory, _ = self.cell(observations)
        return self.head(memory)[..., 0]

    def controller(self, config: CloneConfig, decisions: int = 40) -> RecurrentPolicyController:
        """The policy as a controller."""
        weights = {
            "from_input.weight": "cell.weight_ih_l0",
            "from_input.bias": "cell.bias_ih_l0",
            "from_memory.weight": "cell.weight_hh_l0",
            "from_memory.bias": "cell.bias_hh_l0",
            "head.weight": "head.weight",
            "head.bias": "head.bias",
        }
        return RecurrentPolicyController(
            {name: self.state_dict()[own] for name, own in weights.items()},
            config.action,
            config.schedule,
            decisions,
            config.visible,
            config.spacing,
        )


def averaged(policies: Sequence[ClonePolicy]) -> ClonePolicy:
    """The policy whose action is the mean of several policies' actions, all of one hidden size.

    Their memories lie side by side in one recurrent unit, whose weights are zero between members.

    Example:
        >>> from metalr.agents.clone import ClonePolicy
        >>> averaged([ClonePolicy(4), ClonePolicy(4, seed=1)]).head.in_features
        8
    """
    weights: dict[str, Tensor] = {}
    for name in policies[0].state_dict():
        parts = [policy.state_dict()[name] for policy in policies]
        if name == "head.weight":
            weights[name] = torch.cat(parts, 1) / len(parts)
        elif name == "head.bias":
            weights[name] = torch.stack(parts).mean(0)
        else:
            join = (lambda gates: torch.block_diag(*gates)) if name.startswith("cell.weight_hh") else torch.cat
            by_gate = zip(*(part.chunk(3) for part in parts), strict=True)
            weights[name] = torch.cat([join(gates) for gates in by_gate])
    policy = ClonePolicy(len(policies) * policies[0].head.in_features)
    policy.load_state_dict(weights)
    return policy


class Batch(NamedTuple):
    """Episodes of several tasks, padded to the longest; see `Episodes`.

    Attributes:
        weight: of each decision, 0 where padded, `(decisions, num_runs)`; an episode's weights sum to 1.
    """

    observations: Tensor
    log_multiplier: Tensor
    log_base_lr: Tensor
    regrets: Tensor
    first_log_lr: Tensor
    grid_spacing: Tensor
    weight: Tensor


def imitation_loss(actions: Tensor, batch: Batch, config: CloneConfig) -> Tensor:
    """Mean regret of the LRs that actions choose, plus a small price for changing the LR.

    Args:
        actions: `(decisions, num_runs)`.
        batch: the episodes.
        config: settings.
    """
    spec = config.action
    # Beyond its ends an action has no effect, but its gradient leads back.
    inside = actions.clamp(-1.0, 1.0)
    step = spec.alpha * (inside + 0.1 * (actions - inside))
    anchor = batch.log_multiplier if spec.mode == "recursive" else torch.zeros_like(batch.log_multiplier)
    chosen = anchor + step
    chosen = chosen + (chosen.clamp(math.log(spec.low), math.log(spec.high)) - chosen).detach()
    log_base_lr = batch.log_base_lr if spec.reference is None else math.log(spec.reference)
    log_lr = (log_base_lr + chosen).T  # (num_runs, decisions)
    regret = regret_at(batch.regrets, batch.first_log_lr[:, None], batch.grid_spacing[:, None], log_lr).T
    change = (chosen - batch.log_multiplier).square()
    # The first choice is free: there is nothing yet to be smooth with.
    change = torch.cat([torch.zeros_like(change[:1]), change[1:]])
    return ((regret + config.smoothness * change) * batch.weight).sum() / batch.weight.sum()


class EpisodeStore:
    """All episodes of a training in memory, from which batches are drawn.

    Args:
        pieces: of single tasks and rounds.
    """

    def __init__(self, pieces: Sequence[Episodes]) -> None:
        self.pieces = pieces
        # Weighted by task: every piece counts the same, whatever its number of runs.
        self.order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].observations))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of episodes of similar length: a random window of the pieces, ordered by their decisions."""
        width = min(max(count // 16, 1), len(self.order))
        start = int(torch.randint(len(self.order) - width + 1, (), generator=generator))
        chosen = [self.pieces[i] for i in self.order[start : start + width]]
        return _padded([_some_runs(piece, max(count // width, 1), generator) for piece in chosen])


def _some_runs(piece: Episodes, count: int, generator: torch.Generator) -> Episodes:
    rows = torch.randint(len(piece.log_base_lr), (count,), generator=generator)
    return Episodes(
        piece.observations[:, rows],
        piece.log_multiplier[:, rows],
        piece.log_base_lr[rows],
        piece.regrets[rows],
        piece.first_log_lr.expand(count),
        piece.grid_spacing.expand(count),
        piece.log_loss[rows],
        piece.diverged[rows],
    )


def _padded(pieces: Sequence[Episodes]) -> Batch:
    longest = max(len(piece.observations) for piece in pieces)

    def pad(tensor: Tensor) -> Tensor:
        tensor = tensor.float()
        return torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])

    weights = [torch.full_like(piece.log_multiplier, 1.0 / len(piece.log_multiplier)) for piece in pieces]
    return Batch(
        torch.cat([pad(piece.observations) for piece in pieces], 1),
        torch.cat([pad(piece.log_multiplier) for piece in pieces], 1),
        torch.cat([piece.log_base_lr for piece in pieces]),
        torch.cat([piece.regrets for piece in pieces]),
        torch.cat([piece.first_log_lr for piece in pieces]),
        torch.cat([piece.grid_spacing for piece in pieces]),
        torch.cat([pad(weight) for weight in weights], 1),
    )


def fit(
    policy: ClonePolicy,
    store: EpisodeStore,
    config: CloneConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train the policy on stored episodes, with noise on their observations.

    Args:
        policy: trained in place.
        store: of the episodes.
        config: settings.
        seed: of the batches.
        progress: called after every update with updates done and updates in all.

    Returns:
        The loss of every update.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.peak_lr, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_lr, config.steps, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.ones(NUM_FEATURES) if config.visible is None else visibility(config.visible, torch.ones(()))
    curve = []
    for step in range(config.steps):
        batch = store.draw(config.batch, generator)
        noise = config.noise * torch.randn(batch.observations.shape, generator=generator)
        loss = imitation_loss(policy(seen * (batch.observations + noise)), batch, config)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        curve.append(loss.item())
        if progress is not None:
            progress(step + 1, config.steps)
        if (step + 1) % 200 == 0:
            log.info("update %d of %d: loss %.4f", step + 1, config.steps, sum(curve[-200:]) / 200)
    return curve
