"""Polishing a cloned policy on its own outcomes, by policy gradients from antithetic pairs of whole runs.

A curve of constant LRs cannot say what a *changing* LR is worth. Here two runs with the same seed, base LR and data
order differ in nothing but noise on their actions, +e in one and -e in the other. They are trained to the horizon, and
half the difference of their log final losses, A, weighs the noise:

    gradient = mean over runs of A · sum over decisions of e · d action / d weights / sigma²

which is REINFORCE (Williams 1992, section 4) with the mirrored run as its baseline, as in antithetic evolution
strategies (Salimans et al. 2017, arXiv 1703.03864), but in the space of actions, which is a hundred times smaller than
that of weights. The regret on the oracle curves stays in the loss and keeps the policy from drifting.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalr import seeding
from metalr.agents.clone import ClonePolicy, EpisodeStore, imitation_loss
from metalr.agents.clone_folder import CloneFolder, save_tensors
from metalr.agents.clone_runs import Episodes, roll_out, spread_guesses
from metalr.control import actions
from metalr.control.controller import Controller
from metalr.control.recurrent import RecurrentPolicyController, RecurrentState
from metalr.schedules import Schedule

log = logging.getLogger("metalr")


@dataclass(frozen=True)
class PolishConfig:
    """The settings of the polishing.

    Attributes:
        updates: of the policy.
        tasks_per_update: drawn anew for each.
        pairs: of runs of each task.
        sigma: standard deviation of the noise on the log multiplier at one decision.
        lr: of Adam.
        largest_advantage: half a difference of log losses counts at most this much.
        imitation: weight of the regret on the oracle curves.
        seed: of everything that is drawn.
    """

    updates: int = 40
    tasks_per_update: int = 48
    pairs: int = 24
    sigma: float = 0.15
    lr: float = 1e-3
    largest_advantage: float = 0.5
    imitation: float = 0.5
    seed: int = 0


class NoisyState(NamedTuple):
    """The state of a policy with noise, and the number of decisions that it has taken."""

    policy: RecurrentState
    taken: Tensor


class NoisyController(Controller):
    """A recurrent policy whose actions carry given noise.

    Args:
        policy: to disturb.
        noise: `(decisions, num_runs)`, added to the actions.
    """

    def __init__(self, policy: RecurrentPolicyController, noise: Tensor) -> None:
        self.policy, self.noise = policy, noise
        self.schedule, self.decisions, self.spacing = policy.schedule, policy.decisions, policy.spacing

    def init(self, like: Tensor) -> NoisyState:
        return NoisyState(self.policy.init(like), torch.zeros(len(like), dtype=torch.int64))

    def __call__(self, observation: Tensor, state: NoisyState) -> tuple[Tensor, NoisyState]:
        action, memory = self.policy.decide(observation, state.policy.memory)
        noise = self.noise[int(state.taken[0])].to(action)[:, None]
        multiplier, act = actions.act(self.policy.action, action + noise, observation, state.policy.action)
        return multiplier, NoisyState(RecurrentState(memory, act), state.taken + 1)

    def config(self) -> dict[str, Any]:
        raise NotImplementedError("a policy with noise is not saved: save the policy")

    def with_schedule(self, schedule: Schedule) -> "NoisyController":
        return NoisyController(self.policy.with_schedule(schedule), self.noise)


class Pairs(NamedTuple):
    """Antithetic runs of one task: the first half of the runs has the noise, the second half its negative.

    Attributes:
        episodes: of all runs.
        noise: on the actions, `(decisions, num_runs)`.
        advantage: of each run over its mirror image, `(num_runs,)`.
    """

    episodes: Episodes
    noise: Tensor
    advantage: Tensor


def run_pairs(folder: CloneFolder, policy: ClonePolicy, index: int, key: int, config: PolishConfig) -> Pairs:
    """Run the antithetic pairs of one task."""
    clone = folder.config
    planned = folder.plan(index)
    curve, _ = folder.oracle(index)
    pair = torch.arange(config.pairs)
    stream = seeding.stream(config.seed, "noise")
    log_guess = spread_guesses(seeding.uniform(stream, index, key, pair, 0), clone).repeat(2)
    seeds = torch.tensor(clone.grid.seeds)[(pair + index + key) % len(clone.grid.seeds)].repeat(2)
    controller = policy.controller(clone, planned.decisions).with_schedule(planned.schedule)
    count = len(controller.decision_steps(planned.task.horizon))
    noise = seeding.normal(stream, index, key, pair, torch.arange(count)[:, None] + 1).float()
    noise = torch.cat([noise, -noise], 1) * (config.sigma / clone.action.alpha)
    episodes = roll_out(NoisyController(controller, noise), planned, curve, log_guess, seeds, clone)
    plus, minus = episodes.log_loss.chunk(2)
    advantage = (0.5 * (minus - plus)).clamp(-config.largest_advantage, config.largest_advantage)
    return Pairs(episodes, noise, torch.cat([advantage, -advantage]))


def outcome_loss(policy: ClonePolicy, pairs: Pairs, sigma: float) -> Tensor:
    """The loss whose gradient is that of the mean log final loss.

    Args:
        policy: in training.
        pairs: runs under the same policy with noise.
        sigma: standard deviation of the noise on the actions.
    """
    chosen = policy(pairs.episodes.observations.float())
    score = (pairs.noise * chosen).sum(0) / sigma**2
    return -(pairs.advantage * score).mean()


def polish(
    folder: CloneFolder, policy: ClonePolicy, indices: list[int], store: EpisodeStore, path: Path, config: PolishConfig
) -> ClonePolicy:
    """Polish a policy; a call that was cut off continues after its last update.

    Args:
        folder: of the cloning.
        policy: to start from.
        indices: of the tasks.
        store: episodes for the imitation.
        path: folder of the updates.
        config: settings.
    """
    optimizer = torch.optim.Adam(policy.parameters(), config.lr, betas=(0.8, 0.99))
    for update in range(config.updates):
        state = path / f"update-{update}.pt"
        if (path / f"update-{update + 1}.pt").exists():
            continue
        if state.exists():
            saved = torch.load(state, weights_only=True)
            policy.load_state_dict(saved["policy"])
            optimizer.load_state_dict(saved["optimizer"])
        generator = torch.Generator().manual_seed(config.seed * 100_003 + update)
        drawn = torch.randperm(len(indices), generator=generator)[: config.tasks_per_update].tolist()
        pairs = [run_pairs(folder, policy, indices[i], update, config) for i in drawn]
        optimizer.zero_grad()
        sigma = config.sigma / folder.config.action.alpha
        outcome = torch.stack([outcome_loss(policy, pair, sigma) for pair in pairs]).mean()
        batch = store.draw(folder.config.batch, generator)
        imitation = imitation_loss(policy(batch.observations), batch, folder.config)
        (outcome + config.imitation * imitation).backward()
        norm = nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        curve_regret = torch.cat([_regret_of_outcome(folder, indices[i], p) for i, p in zip(drawn, pairs, strict=True)])
        log.info(
            "polish %d: log regret %.4f (median %.4f), imitation %.4f, gradient %.3f",
            update,
            curve_regret.mean().item(),
            curve_regret.median().item(),
            imitation.item(),
            norm.item(),
        )
        content = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}
        save_tensors(path / f"update-{update + 1}.pt", content)
        state.unlink(missing_ok=True)
    return policy


def _regret_of_outcome(folder: CloneFolder, index: int, pairs: Pairs) -> Tensor:
    """Log final loss over that of the best constant LR, averaged over seeds, of each run."""
    curve, _ = folder.oracle(index)
    return pairs.episodes.log_loss - curve.log_loss[curve.best_index].mean().float()
