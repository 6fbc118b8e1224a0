"""The Gymnasium facade for one run: `gymnasium.make("metalr/LRControl-v0")`."""

from typing import Any

import gymnasium
import numpy as np
import torch

from metalr.envs.lr_control_vector import TaskLike, make_transition
from metalr.envs.spaces import action_space, checked_actions, checked_base_lr, checked_options, observation_space


class LRControlEnv(gymnasium.Env):
    r"""Control of the learning rate of one supervised training run.

    ## Description

    An episode is one supervised training run, from its initial weights to its horizon. An env step trains for a fixed
    number of inner steps at one learning rate, which the action sets; the reward is the fall of the log loss. The base
    learning rate is wrong by a random factor, so the agent must find the right one from its observations.

    ## Action Space

    Box [-1, 1] `(1,)`. Anchored: lr = base_lr · schedule(progress) · exp(alpha · action). Recursive: the multiplier
    in force is multiplied by exp(alpha · action). Absolute: as anchored, with `reference` for base_lr. The multiplier
    stays within [low, high]. With `levels=n` the space is Discrete(n), with levels equally spaced in [-1, 1].

    ## Observation Space

    Box `(28,)`, float32; `soft(x, s)` is x / (s + |x|). g' and g are the gradients of the last two inner steps, u is
    the update between them and L the mean loss of the interval. Before the first update only `update_ratio`, `polyak`
    and `polyak_left` (predicted for that update) and the masks are known; unknown features are 0.

    | name | formula | min | max |
    |---|---|---|---|
    | progress | inner steps done / horizon; 0 if the horizon is unknown | 0 | 1 |
    | log_progress | 1 + log10(progress) / 4, clipped; 0 if the horizon is unknown | 0 | 1 |
    | lr_multiplier | log(LR in force / (base LR * base schedule)) / 7, clipped | -1 | 1 |
    | update_ratio | (log10(\|u\| / \|weights\|) + 3) / 3, clipped | -1 | 1 |
    | polyak | soft(log10(L / \|g'·u\|) - 2, 2) | -1 | 1 |
    | polyak_left | soft(log10(L / \|g'·u\| / inner steps left), 1) | -1 | 1 |
    | overshoot | cosine of g and u | -1 | 1 |
    | overshoot_mean | its running mean, memory 0.7 per decision | -1 | 1 |
    | edge | soft(-g·u / g'·u, 1), the edge ratio 1 - g·u / g'·u in terms of its distance from 1 | -1 | 1 |
    | edge_mean | its running mean, memory 0.7 per decision | -1 | 1 |
    | gradient_cosine | cosine of g' and g | -1 | 1 |
    | signal_to_noise | (log10(c / (1 - c)) + 1) / 2, clipped; c is its running mean | -1 | 1 |
    | gradient_total | soft(log(gradient norm / that of the first interval), 1) | -1 | 1 |
    | gradient_change | soft(log(gradient norm / that of the interval before), 0.3) | -1 | 1 |
    | loss_total | soft(log(L / loss at the start), 1) | -1 | 1 |
    | loss_change | soft(log(L / that of the interval before), 0.1) | -1 | 1 |
    | loss_trend | soft(log(L / its running geometric mean), 0.3), memory 0.8 per decision | -1 | 1 |
    | loss_over_best | soft(log(L / lowest so far), 0.1) | 0 | 1 |
    | loss_slope | soft(slope of log loss / its standard error, 3); 0 for fewer than 3 losses | -1 | 1 |
    | loss_slope_left | soft(slope of log loss · inner steps left, 1) | -1 | 1 |
    | loss_noise | (log10(deviation of log loss from its line) + 1) / 2, clipped; 0 for < 3 losses | -1 | 1 |
    | loss_exploded | 1 if a loss was not finite or L beyond 4 times the loss at the start and noise | 0 | 1 |
    | over_lowest_overshot | soft(log(multiplier / lowest that overshot), 1); -1 before any has | -1 | 1 |
    | over_steepest | soft(log(multiplier / that of the steepest fall of the loss), 1) | -1 | 1 |
    | has_history | 1 once an interval has been seen | 0 | 1 |
    | has_loss | 1 if losses are passed | 0 | 1 |
    | has_horizon | 1 if the horizon is known | 0 | 1 |
    | has_gradient | 1 if the gradients could be measured | 0 | 1 |

    ## Rewards

    By name: `train` (default), `valid`, `paired` and `final`; see `metalr.envs.rewards.REWARDS`. Undiscounted: the
    return is log(initial loss / final loss), or -3 for a diverged run.

    ## Starting State

    Initial weights, data order, data variant and base learning rate follow from the seed. The base learning rate is
    log-uniform over `base_lr_range` times the task's default, unless `reset(options={"base_lr": 0.01})` gives it.

    ## Episode End

    Terminated at the horizon (the budget is part of the task, and progress is observed) or when the run diverges.
    Never truncated.

    ## Arguments

    `task` is the name of a shipped task, "module:function" of your own, or a `metalr.Task`. Further arguments are
    fields of `metalr.envs.transition.EnvConfig` (decisions, reward, schedule, base_lr_range, …), fields of
    `metalr.control.actions.ActionSpec` (mode, alpha, levels, low, high) and, for a shipped task, arguments of its
    builder (horizon, optimizer, width, …). With `render_mode="rgb_array"`, `render` draws the loss and the learning
    rate so far.

        env = gymnasium.make("metalr/LRControl-v0", task="digits-mlp", horizon=200, decisions=20, levels=9)
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 -- Gymnasium's own convention

    def __init__(self, task: TaskLike = "mnist1d-mlp", render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = render_mode
        self.transition = make_transition(task, 1, 0, options)
        spec, groups = self.transition.config.action, self.transition.num_groups
        self.observation_space = observation_space(groups)
        self.action_space = action_space(spec, groups)
        self._history: list[tuple[float, float]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start a run; with a `seed`, restart the sequence of episodes.

        Args:
            seed: of the sequence of episodes.
            options: `{"base_lr": …}` sets the base LR of this episode.
        """
        super().reset(seed=seed)
        given = checked_options(options, ("base_lr",)).get("base_lr")
        base_lr = None if given is None else checked_base_lr(given, 1)
        if seed is not None:
            self.transition.seed(int(seed))
        self._history = []
        return self._array(self.transition.reset(base_lr=base_lr)), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Train for one interval.

        Args:
            action: in [-1, 1], or the index of a level; one for each LR group.

        Returns:
            Observation, reward, terminated, truncated (always False) and info, with `lr` and `loss` of the interval and
            `diverged`.
        """
        config, groups = self.transition.config, self.transition.num_groups
        outcome = self.transition.step(checked_actions(config.action, action, (groups,))[None])
        lr, loss = float(outcome.lr[0, 0]), float(outcome.loss[0])
        self._history.append((lr, loss))
        info = {"lr": lr, "loss": loss, "diverged": bool(outcome.diverged)}
        return self._array(outcome.observation), float(outcome.reward), bool(outcome.done), False, info

    def render(self) -> np.ndarray | None:
        """An RGB image `(height, width, 3)` of loss and learning rate so far; None without a `render_mode`."""
        if self.render_mode != "rgb_array":
            return None
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("rendering needs the package 'matplotlib': pip install matplotlib") from error
        figure = Figure(figsize=(6, 3), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        decisions = range(1, len(self._history) + 1)
        for position, title in ((2, "train loss"), (1, "learning rate")):
            axes = figure.add_subplot(1, 2, 3 - position)
            axes.plot(decisions, [entry[position - 1] for entry in self._history], marker="o")
            axes.set(title=title, xlabel="decision", yscale="log", xlim=(0, self.transition.config.decisions + 1))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _array(self, observation: torch.Tensor) -> np.ndarray:
        array = observation[0].float().cpu().numpy()
        return array[0] if self.transition.num_groups == 1 else array
