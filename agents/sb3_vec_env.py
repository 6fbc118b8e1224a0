"""The Stable-Baselines3 facade of the environment: one row for each run and LR group."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from metalr.envs.spaces import action_space, observation_space
from metalr.envs.transition import Transition


class LRControlVecEnv(VecEnv):
    """A native `VecEnv`: the batched runs advance together, and finished ones are replaced within the same step.

    With several LR groups, each group is a separate row with the shared reward, so that one policy serves all of them.
    `info["episode"]` has the return `r` and the length `l` of a finished episode, as SB3's `Monitor` reports them.

    Args:
        transition: the core of the environment.

    Attributes:
        diverged_episodes: episodes that have ended in divergence.
        finished_episodes: episodes that have ended.
    """

    def __init__(self, transition: Transition) -> None:
        self.transition = transition
        self.render_mode = None
        rows = transition.num_envs * transition.num_groups
        super().__init__(rows, observation_space(1), action_space(transition.config.action, 1))
        self._returns = np.zeros(rows)
        self._lengths = np.zeros(rows, dtype=np.int64)
        self.diverged_episodes = 0
        self.finished_episodes = 0

    def reset(self) -> np.ndarray:
        """Start new episodes everywhere; returns their observations, `(num_envs, NUM_FEATURES)` float32."""
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return self._rows(self.transition.reset())

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions, `(num_envs, 1)` or level indices, for `step_wait`."""
        self._actions = torch.as_tensor(actions).reshape(self.transition.num_envs, self.transition.num_groups)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take one decision everywhere.

        Returns:
            Observations, rewards, dones and infos, one row for each run and LR group.
        """
        outcome = self.transition.step(self._actions)
        groups = self.transition.num_groups
        observation = self._rows(outcome.observation)
        reward = outcome.reward.float().cpu().numpy().repeat(groups)
        done = outcome.done.cpu().numpy().repeat(groups)
        self._returns += reward
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            for row in done.nonzero()[0]:
                infos[row] = {
                    "terminal_observation": observation[row],
                    "episode": {"r": float(self._returns[row]), "l": int(self._lengths[row]), "t": 0.0},
                    "TimeLimit.truncated": False,
                }
            self.finished_episodes += int(outcome.done.sum())
            self.diverged_episodes += int(outcome.diverged.sum())
            self._returns[done] = 0.0
            self._lengths[done] = 0
            observation = np.where(done[:, None], self._rows(self.transition.reset(outcome.done)), observation)
        return observation, reward, done, infos

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Restart the sequence of episodes from a seed, if there is one."""
        if seed is not None:
            self.transition.seed(seed)
        return [seed] * self.num_envs

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The attribute of this object, once for every row."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Refuse to set an attribute, because the runs share their settings.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"got set_attr({attr_name!r}), expected none: build a new environment instead")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse to call a method, because there are no separate environments.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"got env_method({method_name!r}), expected none: the runs are one batch")

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """False for every row."""
        return [False] * len(list(self._get_indices(indices)))

    def _rows(self, observation: torch.Tensor) -> np.ndarray:
        return observation.flatten(0, 1).float().cpu().numpy()
