"""Evolution strategies over meta-parameters: persistent (PES), ES-Single and antithetic, batched in the engine.

No derivative goes through training, so a chaotic or very long run does no harm, and memory does not grow with the
horizon. The perturbations lie along `num_runs`: one device pass serves all of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalr import seeding
from metalr.agents.estimates import Estimate
from metalr.agents.meta_losses import MetaLoss
from metalr.agents.unrolls import Carry, Unroll
from metalr.engine.runs import BatchedRuns
from metalr.learned.module import Learned, MetaVector, OpenLoop
from metalr.schedules import Schedule
from metalr.tasks.families import draw_base_lr
from metalr.tasks.task import Task
from metalr.trees import leaves, replace_leaves


class PES:
    """Persistent evolution strategies (Vicol, Metz and Sohl-Dickstein 2021, arXiv 2112.13835, algorithm 2).

    Each of `num_pairs` antithetic pairs of runs goes through training in windows. In a window, pair i trains with
    the meta-parameters theta + eps and theta - eps, eps ~ N(0, sigma²), drawn anew for each window. With xi the sum
    of a run's own eps since its start and L its share of the meta-loss in the window, the estimate

        g = 1 / (2 · num_pairs · sigma²) · sum over runs of xi · L

    is unbiased for the smoothed meta-loss of whole runs, although theta is updated after every window. One window
    per run (`unroll_length=None`) is the plain antithetic evolution strategy. A final meta-loss falls to the last
    window as a whole. (Its change over each window would be a share too, known earlier; but near an optimum the
    effects of one LR on different windows are large and cancel, so those shares made the estimate much noisier.)
    The two runs of a pair share seed, weights and data order.

    Args:
        learned: the module whose meta-parameters are perturbed; initial weights are not among them.
        task: what is trained.
        num_pairs: pairs of runs.
        sigma: standard deviation of a perturbation.
        final_sigma: what sigma falls to, geometrically, at the last outer step; None keeps it.
        perturb: "window" draws eps anew for each window, which is PES. "run" keeps one eps for a whole run, and then
            xi is that eps: ES-Single (Vicol, Kolter and Swersky 2023, arXiv 2304.11153), also unbiased and with less
            noise, since the shares of later windows are not blurred by new perturbations.
        unroll_length: inner steps in a window, moved to the next decision of a closed loop; None for the whole run.
        windows_per_estimate: windows that one estimate is the sum over; by default one, and for a final meta-loss
            all windows of a run.
        meta_loss: "mean-train", "final-train" or "final-valid".
        log: estimate the gradient of log(final loss) in place of the loss: scale-free, for families of tasks.
        base_lr_range: factors of the task's base LR, drawn log-uniformly for every pair and run.
        schedule: base schedule of a closed loop.
        seed: of everything.
        dtype, device: of the engine.

    A diverged run counts with `PENALTY` times its first loss from there on: finite, and worse than no training.

    Raises:
        ValueError: a number is out of range, or `log` is asked for with a mean meta-loss.
    """

    PENALTY = 2.0

    def __init__(
        self,
        learned: Learned,
        task: Task,
        *,
        num_pairs: int = 16,
        sigma: float = 0.05,
        final_sigma: float | None = None,
        perturb: str = "window",
        unroll_length: int | None = None,
        windows_per_estimate: int | None = None,
        meta_loss: str | MetaLoss = MetaLoss.MEAN_TRAIN,
        log: bool = False,
        base_lr_range: tuple[float, float] = (1.0, 1.0),
        schedule: Schedule | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.meta_loss = MetaLoss(meta_loss)
        _check_numbers(num_pairs, sigma, unroll_length, windows_per_estimate)
        if perturb not in ("window", "run"):
            raise ValueError(f"got perturb {perturb!r}, expected 'window' (PES) or 'run' (ES-Single)")
        if log and not self.meta_loss.is_final:
            raise ValueError("got log=True with 'mean-train', expected a final meta-loss: logs of means do not add up")
        if learned.initial_params() is not None:
            raise ValueError("got learned initial weights, expected LRs or a policy: use meta-gradients for weights")
        self.learned, self.meta = learned, MetaVector(learned)
        self.runs = BatchedRuns(task, 2 * num_pairs, dtype=dtype, device=device)
        self.num_pairs, self.sigma, self.log, self.perturb = num_pairs, sigma, log, perturb
        self.final_sigma = sigma if final_sigma is None else final_sigma
        self.unroll_length = unroll_length or task.horizon
        whole_run = -(-task.horizon // self.unroll_length) if self.meta_loss.is_final else 1
        self.windows_per_estimate = windows_per_estimate or whole_run
        self.base_lr_range, self.schedule, self.seed = base_lr_range, schedule, seed
        self.windows = 0  # made so far, over all runs
        self.episode = 0
        self.position = 0  # inner steps done in the present runs
        self.carry: Carry | None = None
        self.xi = torch.zeros(2 * num_pairs, len(self.meta), dtype=torch.float64)

    def estimate(self, outer_step: int, progress: float = 0.0) -> Estimate:
        """A window of every run (or several, see `windows_per_estimate`), and the gradient estimate from it.

        Args:
            outer_step: ignored; the windows are counted here, since in `Turns` not every outer step makes some.
            progress: outer steps done over all, in [0, 1]; it sets sigma.
        """
        estimates = [self._window(progress) for _ in range(self.windows_per_estimate)]
        whole = [e for e in estimates if e.completed]
        last = whole[-1] if whole else estimates[-1]
        vector = torch.stack([e.vector for e in estimates]).sum(0)
        return Estimate(last.loss, vector, last.task, last.diverged, last.completed)

    def _window(self, progress: float) -> Estimate:
        sigma = self.sigma * (self.final_sigma / self.sigma) ** progress
        position = self.position if self.carry is not None else 0
        unit = self._perturbations(position)
        noise = sigma * unit
        unroll = self._unroll(self.meta.read() + noise)
        with torch.no_grad():
            if self.carry is None:
                self.carry, self.position = unroll.start(), 0
                self.xi = torch.zeros_like(self.xi)
            stop = self._stop(unroll)
            before = self.carry.loss_sum
            self.carry = unroll.advance(self.carry, self.position, stop)
            share = self._share(unroll, before, stop)
        if self.perturb == "window":
            self.xi = self.xi + unit
        else:
            self.xi = torch.where(self._active(position), unit, self.xi)
        # Each pair's mean is taken off: by antithesis it adds nothing but noise of rounding.
        plus, minus = share.split(self.num_pairs)
        signed = torch.cat([plus - minus, minus - plus]) * 0.5
        # xi of the two runs of a pair are opposite, so this sum is the estimator's. xi is kept in units of sigma,
        # so that a falling sigma does not shrink the share of the windows before.
        vector = (self.xi * signed[:, None]).mean(0) / sigma
        diverged = self.carry.runs.diverged.double().mean().item()
        completed = stop == unroll.horizon
        loss = self._whole(unroll) if completed else float("nan")
        self.windows += 1
        self.position = stop
        if completed:
            self.carry, self.episode = None, self.episode + 1
        return Estimate(loss, vector, self.runs.task.name, diverged, completed)

    def state(self) -> dict[str, Any]:
        """Everything that the next estimate depends on, beside the meta-parameters."""
        carry = None if self.carry is None else [leaf.clone() for leaf in leaves(self.carry)]
        numbers = {"windows": self.windows, "episode": self.episode, "position": self.position}
        return {**numbers, "carry": carry, "xi": self.xi.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.windows, self.episode = int(state["windows"]), int(state["episode"])
        self.position = int(state["position"])
        self.xi = state["xi"].clone()
        self.carry = None
        if state["carry"] is not None:
            with torch.no_grad():
                template = self._unroll(self.meta.read().expand(2 * self.num_pairs, -1)).start()
            self.carry = replace_leaves(template, [leaf.to(self.runs.device) for leaf in state["carry"]])

    def _perturbations(self, start: int) -> Tensor:
        """`(num_runs, num_meta)`: eps / sigma of every pair, then its negative.

        Two reductions of variance that leave the mean as it is. Meta-parameters of an open loop that do not act
        in this window are not perturbed in it. And the eps of each `num_meta` pairs are orthogonal to each other
        (Choromanski et al. 2018, arXiv 1804.02395, section 3.1): with as many pairs as meta-parameters the estimate is
        a full set of central differences.
        """
        key = seeding.stream(self.seed, "noise")
        active = self._active(start)
        of_run = self.perturb == "run"
        which = torch.arange(len(self.meta)) if of_run else active.nonzero().squeeze(-1)
        counter, size = (self.episode if of_run else self.windows), len(which)
        blocks = []
        for block in range(-(-self.num_pairs // size)):
            row, column = torch.arange(size)[:, None], torch.arange(size)
            basis, triangle = torch.linalg.qr(seeding.normal(key, counter, block, row, column))
            # The factorisation prefers one sign; without this the mean of eps is not zero, and PES is biased.
            basis = basis * triangle.diagonal().sign()
            blocks.append(basis.T * size**0.5)
        eps = torch.zeros(self.num_pairs, len(self.meta), dtype=torch.float64)
        eps[:, which] = torch.cat(blocks)[: self.num_pairs]
        eps = eps * active
        return torch.cat([eps, -eps])

    def _active(self, start: int) -> Tensor:
        """`(num_meta,)` bool: meta-parameters that the LRs of the window from `start` depend on."""
        if not isinstance(self.learned, OpenLoop):
            return torch.ones(len(self.meta), dtype=torch.bool)
        horizon = self.runs.task.horizon
        stop = min(start + self.unroll_length, horizon)
        lrs = self.learned(torch.arange(start, stop, dtype=torch.float64) / horizon)
        found = torch.autograd.grad(lrs.sum(), list(self.meta.params.values()), materialize_grads=True)
        return torch.cat([g.flatten() for g in found]) != 0.0

    def _unroll(self, thetas: Tensor) -> Unroll:
        key = seeding.stream(self.seed, "outer")
        seeds = seeding.hash_integers(key, self.episode, torch.arange(self.num_pairs)).repeat(2)
        base_lr = draw_base_lr(self.runs.task, seeds, self.base_lr_range)
        call = self.meta.per_run(thetas.to(self.runs.device))
        return Unroll(self.runs, self.learned, seeds, base_lr, call=call, schedule=self.schedule)

    def _stop(self, unroll: Unroll) -> int:
        wanted = min(self.position + self.unroll_length, unroll.horizon)
        if len(unroll.stops) > 1:
            return min(s for s in unroll.stops if s >= wanted)
        return wanted

    def _share(self, unroll: Unroll, loss_sum_before: Tensor, stop: int) -> Tensor:
        """`(num_runs,)` float64, what the window adds to the meta-loss of each run."""
        assert self.carry is not None
        state = self.carry.runs
        penalty = self.PENALTY * state.initial_loss
        share = (self.carry.loss_sum - loss_sum_before) / unroll.horizon
        if not self.meta_loss.is_final:
            lost = penalty * ((stop - self.position) / unroll.horizon)
            return torch.where(state.diverged, lost, share).double()
        if stop < unroll.horizon:
            return torch.zeros_like(share, dtype=torch.float64)
        value = unroll.split_loss(self.carry, self.meta_loss.split)
        value = torch.where(state.diverged | ~value.isfinite(), penalty, value).double()
        return value.log() if self.log else value

    def _whole(self, unroll: Unroll) -> float:
        """The meta-loss of the runs that end here: their mean, without those that diverged."""
        assert self.carry is not None
        live = ~self.carry.runs.diverged
        values = unroll.meta_loss(self.carry, self.meta_loss)[live]
        return values.mean().item() if len(values) else float("nan")


def _check_numbers(num_pairs: int, sigma: float, unroll_length: int | None, windows_per_estimate: int | None) -> None:
    windows = [number for number in (unroll_length, windows_per_estimate) if number is not None]
    if num_pairs < 1 or not sigma > 0.0 or min(windows, default=1) < 1:
        raise ValueError(
            f"got num_pairs {num_pairs}, sigma {sigma}, unroll_length {unroll_length}, windows_per_estimate "
            f"{windows_per_estimate}, expected at least 1 pair, sigma > 0 and 1 window of at least 1 inner step or more"
        )


class Turns:
    """Several estimators in turn, one for each task of a family; together they are one estimator."""

    def __init__(self, estimators: Sequence[PES]) -> None:
        if not estimators:
            raise ValueError("got no estimators, expected at least one: one for each task")
        self.estimators = list(estimators)

    def estimate(self, outer_step: int, progress: float = 0.0) -> Estimate:
        """That of the estimator whose turn it is."""
        return self.estimators[outer_step % len(self.estimators)].estimate(outer_step, progress)

    def state(self) -> dict[str, Any]:
        """The state of every estimator."""
        return {"turns": [estimator.state() for estimator in self.estimators]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for estimator, saved in zip(self.estimators, state["turns"], strict=True):
            estimator.load_state(saved)
