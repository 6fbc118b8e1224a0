"""The Gymnasium facade for many runs: `gymnasium.make_vec("metalr/LRControl-v0", num_envs=64)`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from metalr.control.actions import ActionSpec
from metalr.envs.spaces import action_space, checked_actions, checked_base_lr, checked_options, observation_space
from metalr.envs.transition import EnvConfig, Transition
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task

TaskLike = str | Task | Sequence[Task]


def make_transition(task: TaskLike, num_envs: int, seed: int, options: dict[str, Any]) -> Transition:
    """The core behind every facade.

    Args:
        task: the name of a shipped task, "module:function" of your own, a `Task`, or several tasks that share the
            environments equally.
        num_envs: total number of environments.
        seed: of the episodes.
        options: fields of `EnvConfig` and of `ActionSpec` (mode, alpha, levels, low, high); any others go to the
            builder of a shipped task (horizon, width, optimizer, …).

    Raises:
        ValueError: a name is unknown or a number out of its range.
        TypeError: an option is unknown.
    """
    action_options = {key: options[key] for key in ActionSpec.__dataclass_fields__ if key in options}
    config_options = {key: options[key] for key in EnvConfig.__dataclass_fields__ if key in options}
    task_options = {k: v for k, v in options.items() if k not in action_options and k not in config_options}
    if action_options:
        config_options["action"] = ActionSpec(**action_options)
    if isinstance(task, str):
        tasks = [_shipped(task, task_options)]
    elif task_options:
        raise TypeError(
            f"got options {sorted(task_options)}, expected fields of EnvConfig or ActionSpec: set them on the task"
        )
    else:
        tasks = [task] if isinstance(task, Task) else list(task)
    return Transition(tasks, num_envs, EnvConfig(**config_options), seed)


def _shipped(name: str, options: dict[str, Any]) -> Task:
    try:
        return make_task(name, **options)
    except TypeError as error:
        own = [name for kind in (EnvConfig, ActionSpec) for name in kind.__dataclass_fields__ if name != "action"]
        raise TypeError(
            f"got arguments {sorted(options)} for the task {name!r} ({error}), expected its own (horizon, optimizer, "
            f"base_lr, …) or the environment's: task, {', '.join(own)}"
        ) from error


class LRControlVectorEnv(VectorEnv):
    """Many training runs that advance together; `metalr.envs.lr_control.LRControlEnv` describes one of them.

    Observations are `(num_envs, NUM_FEATURES)` float32, actions `(num_envs, 1)` in [-1, 1] (or level indices
    `(num_envs,)`). `infos` has the `lr` and `loss` of the interval, `(num_envs,)`.

    What becomes of an episode that ends depends on Gymnasium's `autoreset_mode`:

    - `SAME_STEP` (default): replaced within the same step; its last observation is in `infos["final_obs"]`.
    - `NEXT_STEP`: replaced at the next step, which ignores its action and gives no reward. Some of Gymnasium's vector
      wrappers, such as `NormalizeObservation`, accept nothing else.
    - `DISABLED`: left as it is until `reset(options={"reset_mask": …})`.

    Args:
        num_envs: number of runs.
        task: as for `make_transition`.
        autoreset_mode: as above, by name or value.
        options: as for `make_transition`.

    Raises:
        ValueError: a name is unknown or a number out of its range.
        TypeError: an option is unknown.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: TaskLike = "mnist1d-mlp",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **options: Any,
    ) -> None:
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode}
        self._ended = np.zeros(num_envs, dtype=bool)  # at the last step, and not yet replaced
        self.render_mode = None
        self.num_envs = num_envs
        self.transition = make_transition(task, num_envs, 0, options)
        spec, groups = self.transition.config.action, self.transition.num_groups
        self.single_observation_space = observation_space(groups)
        self.single_action_space = action_space(spec, groups)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start new episodes; with a `seed`, restart the sequence of episodes.

        Args:
            seed: of the sequence of episodes.
            options: `{"reset_mask": …}`, `(num_envs,)` bool, starts new episodes there only; `{"base_lr": …}` sets
                their base LR, one number or one for each environment.
        """
        options = checked_options(options, ("reset_mask", "base_lr"))
        given, mask = options.get("base_lr"), np.asarray(options.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(
                f"got a reset_mask of {mask.dtype} and shape {mask.shape}, expected ({self.num_envs},) bool with at "
                "least one environment"
            )
        if seed is not None:
            self.transition.seed(int(seed))
        base_lr = None if given is None else checked_base_lr(given, self.num_envs)
        self._ended = self._ended & ~mask  # not in place: the array was given away
        return self._array(self.transition.reset(torch.as_tensor(mask), base_lr)), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one decision in every environment.

        Args:
            actions: `(num_envs, num_groups)` in [-1, 1], or level indices.

        Returns:
            Observations, rewards, terminated, truncated (always False) and infos, each with leading axis num_envs.
        """
        shape = (self.num_envs, self.transition.num_groups)
        outcome = self.transition.step(checked_actions(self.transition.config.action, actions, shape))
        done, reward = outcome.done.cpu().numpy(), outcome.reward.double().cpu().numpy()
        observation = self._array(outcome.observation)
        infos: dict[str, Any] = {"lr": outcome.lr[:, 0].cpu().numpy(), "loss": outcome.loss.cpu().numpy()}
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            if self.autoreset_mode == AutoresetMode.NEXT_STEP and self._ended.any():
                observation = self._array(self.transition.reset(torch.as_tensor(self._ended)))
                done, reward = done & ~self._ended, np.where(self._ended, 0.0, reward)
            self._ended = done
        elif done.any():
            infos["final_obs"] = np.array(
                [obs if d else None for obs, d in zip(observation, done, strict=True)], dtype=object
            )
            infos["_final_obs"] = done
            observation = self._array(self.transition.reset(outcome.done))
        return observation, reward, done, np.zeros_like(done), infos

    def _array(self, observation: torch.Tensor) -> np.ndarray:
        array = observation.float().cpu().numpy()
        return array[:, 0] if self.transition.num_groups == 1 else array
