"""Meta-gradients: the derivative of a meta-loss with respect to learned meta-parameters, through training.

Two backends give the same numbers. `batched` differentiates the engine: many seeds at once, the full unroll, a
recomputation in segments that needs memory for sqrt(K) steps only, or truncated unrolls. `higher` differentiates
a plain `nn.Module` with a `torch.optim` optimizer, one run at a time; see `metalr.agents.higher_gradients`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalr.agents.meta_losses import MetaLoss
from metalr.agents.unrolls import Carry, Unroll
from metalr.engine.runs import BatchedRuns
from metalr.learned.module import Learned
from metalr.trees import leaves, map_leaves, replace_leaves

Route = Literal["full", "segments", "truncated"]
BACKENDS = ("batched", "higher")


@dataclass
class MetaGradient:
    """A meta-loss and its gradient, from one pass through training.

    Attributes:
        loss: mean meta-loss over the runs that did not diverge; NaN if all did.
        losses: `(num_runs,)`, NaN where diverged.
        diverged: `(num_runs,)` bool.
        gradient: name of the meta-parameter -> derivative of `loss`, of the parameter's shape.
    """

    loss: float
    losses: Tensor
    diverged: Tensor
    gradient: dict[str, Tensor]

    def vector(self) -> Tensor:
        """The gradient as one vector `(num_meta,)`, in the order of `MetaVector`."""
        return torch.cat([part.flatten() for part in self.gradient.values()])


def meta_gradient(
    learned: Learned,
    runs: BatchedRuns,
    seeds: Tensor,
    base_lr: Tensor | None = None,
    *,
    backend: str = "batched",
    meta_loss: str | MetaLoss = MetaLoss.MEAN_TRAIN,
    order: int = 2,
    route: Route = "full",
    segment_length: int | None = None,
) -> MetaGradient:
    """The meta-loss and its gradient, averaged over the runs that do not diverge.

    Args:
        learned: an open-loop or closed-loop module, of `metalr.learned.schedules` or `metalr.learned.policies`.
        runs: the engine with the task; its runs are started anew.
        seeds: `(num_runs,)` int64.
        base_lr: `(num_runs,)`, or None for the task's.
        backend: "batched" or "higher"; the latter takes the seeds one after the other.
        meta_loss: "mean-train", "final-train" or "final-valid", see `MetaLoss`.
        order: 2, or 1 for first-order gradients (the inner gradients count as constants).
        route: "full" keeps the whole graph; "segments" keeps the states at segment borders and recomputes, the
            same gradient; "truncated" cuts the graph at the borders, a biased gradient.
        segment_length: inner steps between borders; sqrt(horizon) by default.

    Raises:
        ValueError: an argument is unknown, or the backend does not support the optimizer or the module.

    Example:
        >>> from metalr.engine.runs import BatchedRuns
        >>> from metalr.learned.schedules import ConstantLR
        >>> from metalr.tasks.catalog import make_task
        >>> runs = BatchedRuns(make_task("quadratic", horizon=1), num_runs=1, dtype=torch.float64)
        >>> result = meta_gradient(ConstantLR(), runs, torch.tensor([0]), meta_loss="final-train")
        >>> round(result.loss, 6)  # from 5, one step of 0.2 · 12 towards -1: (3.6)²
        12.96
    """
    chosen = MetaLoss(meta_loss)
    if not learned.meta_params():
        raise ValueError("got a module without trainable parameters, expected some: requires_grad is off for all")
    if backend == "higher":
        from metalr.agents.higher_gradients import task_meta_gradient

        if route != "full":
            raise ValueError(f"got route {route!r} with backend 'higher', expected 'full': use backend='batched'")
        return task_meta_gradient(learned, runs, seeds, base_lr, meta_loss=chosen, order=order)
    if backend != "batched":
        raise ValueError(f"got backend {backend!r}, expected one of {', '.join(BACKENDS)}: use one of these")
    unroll = Unroll(runs, learned, seeds, base_lr, order=order)
    borders = _borders(unroll, route, segment_length)
    # Fused attention has no second derivative; the mathematical form does.
    with sdpa_kernel([SDPBackend.MATH]):
        return _ROUTES[route](_Pass(unroll, chosen, borders, _scout(unroll)))


def gradient_of(value: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The derivatives of a scalar, zero for what it does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(each) for each in inputs]
    return [found.detach() for found in torch.autograd.grad(value, inputs, materialize_grads=True)]


def _borders(unroll: Unroll, route: str, segment_length: int | None) -> list[int]:
    """Inner steps between which the segments lie, from 0 to the horizon; a closed loop is only cut where it decides."""
    if route not in _ROUTES:
        raise ValueError(f"got route {route!r}, expected one of {', '.join(_ROUTES)}: use one of these")
    if route == "full":
        return [0, unroll.horizon]
    length = math.ceil(math.sqrt(unroll.horizon)) if segment_length is None else segment_length
    if length < 1:
        raise ValueError(f"got segment_length {segment_length}, expected at least 1 inner step")
    wanted = range(length, unroll.horizon, length)
    if len(unroll.stops) > 1:
        wanted_or_later = {min(s for s in unroll.stops if s >= w) for w in wanted}
        return [0, *sorted(wanted_or_later | {unroll.horizon})]
    return [0, *wanted, unroll.horizon]


def _scout(unroll: Unroll) -> Tensor:
    """Run once without a graph, to learn which runs diverge: `(num_runs,)` bool."""
    with torch.no_grad():
        return unroll.advance(unroll.start(), 0, unroll.horizon).runs.diverged


@dataclass(frozen=True)
class _Pass:
    """One differentiation through training: what every route is given.

    Attributes:
        unroll: of the runs.
        meta_loss: what is differentiated.
        borders: inner steps at which the graph may be cut, 0 and the horizon among them.
        dead: `(num_runs,)` bool, runs that are known to diverge.
    """

    unroll: Unroll
    meta_loss: MetaLoss
    borders: list[int]
    dead: Tensor

    @property
    def params(self) -> list[Tensor]:
        """The meta-parameters."""
        return list(self.unroll.learned.meta_params().values())

    def start(self) -> Carry:
        """The runs before the first inner step, without those that diverge."""
        return self.unroll.start(self.dead)

    def losses(self, carry: Carry) -> Tensor:
        """The meta-loss of each run at the horizon, `(num_runs,)`."""
        return self.unroll.meta_loss(carry, self.meta_loss)

    def mean(self, losses: Tensor) -> Tensor:
        """The mean over the runs that do not diverge; the losses of the others must be 0."""
        return losses.sum() / (~self.dead).sum().clamp(min=1)

    def result(self, losses: Tensor, gradient: list[Tensor]) -> MetaGradient:
        """The outcome, with NaN for the runs that diverge."""
        losses = losses.detach()
        mean = float("nan") if bool(self.dead.all()) else self.mean(losses).item()
        names = self.unroll.learned.meta_params()
        shown = torch.where(self.dead, torch.nan, losses)
        return MetaGradient(mean, shown, self.dead, dict(zip(names, gradient, strict=True)))


def _full(whole: _Pass) -> MetaGradient:
    carry = whole.unroll.advance(whole.start(), 0, whole.unroll.horizon)
    losses = whole.losses(carry)
    return whole.result(losses, gradient_of(whole.mean(losses), whole.params))


def _segments(whole: _Pass) -> MetaGradient:
    """Reverse mode by hand: forward once, keep the borders, then each segment again with its own graph.

    With carry c[k] at border k and adjoint a[k] = d loss / d c[k], segment k gives
    a[k] = (d c[k+1] / d c[k])ᵀ a[k+1], and its share of the gradient (d c[k+1] / d meta)ᵀ a[k+1].
    """
    unroll, params = whole.unroll, whole.params
    pairs = list(itertools.pairwise(whole.borders))
    with torch.no_grad():
        kept = [whole.start()]
        for start, stop in pairs:
            kept.append(unroll.advance(kept[-1], start, stop))
    last, inputs = _open(kept.pop())
    losses = whole.losses(last)
    found = gradient_of(whole.mean(losses), inputs + params)
    adjoint, total = found[: len(inputs)], found[len(inputs) :]
    for start, stop in reversed(pairs):
        carry, ahead = _open(kept.pop()), inputs
        inputs = carry[1]
        begin = carry[0] if start else whole.start()
        outputs = _like_inputs(unroll.advance(begin, start, stop), last, ahead)
        value = torch.stack([(o * a).sum() for o, a in zip(outputs, adjoint, strict=True) if o.requires_grad]).sum()
        found = gradient_of(value, [*(inputs if start else []), *params])
        total = [t + g for t, g in zip(total, found[len(found) - len(params) :], strict=True)]
        # Every leaf has the runs along its first axis. What a dead run remembers may be NaN, and so its adjoint.
        adjoint = [a.masked_fill(_rows(whole.dead, a), 0.0) for a in found[: len(found) - len(params)]]
        last = carry[0]
    return whole.result(losses, total)


def _truncated(whole: _Pass) -> MetaGradient:
    """Cut the graph at every border: each window's own share of the loss is differentiated through it alone."""
    unroll, params = whole.unroll, whole.params
    carry, total = whole.start(), [torch.zeros_like(p) for p in params]
    for start, stop in itertools.pairwise(whole.borders):
        before = carry.loss_sum.detach()
        carry = unroll.advance(carry, start, stop)
        share = torch.zeros_like(before)
        if not whole.meta_loss.is_final:
            share = (carry.loss_sum - before) / unroll.horizon
        elif stop == unroll.horizon:
            share = whole.losses(carry)
        found = gradient_of(whole.mean(torch.where(whole.dead, 0.0, share)), params)
        total = [t + g for t, g in zip(total, found, strict=True)]
        carry = map_leaves(Tensor.detach, carry)
    with torch.no_grad():
        losses = whole.losses(carry)
    return whole.result(losses, total)


_ROUTES = {"full": _full, "segments": _segments, "truncated": _truncated}


def _open(carry: Carry) -> tuple[Carry, list[Tensor]]:
    """The carry as fresh leaves of a new graph, and those of them that can have a gradient."""
    fresh = [leaf.detach() for leaf in leaves(carry)]
    inputs = [f.requires_grad_() for f in fresh if f.is_floating_point()]
    return replace_leaves(carry, fresh), inputs


def _like_inputs(carry: Carry, template: Carry, inputs: list[Tensor]) -> list[Tensor]:
    """The leaves of `carry` at the places where `inputs` lie in `template`."""
    wanted = {id(tensor) for tensor in inputs}
    return [leaf for leaf, old in zip(leaves(carry), leaves(template), strict=True) if id(old) in wanted]


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """`(num_runs,)` in a shape that broadcasts against `(num_runs, …)`."""
    return mask.view(-1, *[1] * (like.dim() - 1))
