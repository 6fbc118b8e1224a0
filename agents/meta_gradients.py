"""Meta-gradients: the derivative of a meta-loss with respect to learned meta-parameters, through training.

Two backends give the same numbers. `batched` differentiates the engine: many seeds at once, the full unroll, a
recomputation in segments that needs memory for sqrt(K) steps only, or truncated unrolls. `higher` differentiates
a plain `nn.Module` with a `torch.optim` optimizer, one run at a time; see `metalr.agents.higher_gradients`.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalr.agents.unrolls import Carry, Unroll, check_meta_loss
from metalr.engine.runs import BatchedRuns
from metalr.learned.module import Learned
from metalr.trees import leaves, replace_leaves

Route = Literal["full", "segments", "truncated"]
BACKENDS = ("batched", "higher")


@dataclass
class MetaGradient:
    """What one pass through training gave.

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
    meta_loss: str = "mean-train",
    order: int = 2,
    route: Route = "full",
    segment_length: int | None = None,
) -> MetaGradient:
    """The meta-loss and its gradient, averaged over the runs that do not diverge.

    Args:
        learned: an open-loop or closed-loop module of `metalr.learned.schedules`.
        runs: the engine with the task; its runs are started anew.
        seeds: `(num_runs,)` int64.
        base_lr: `(num_runs,)`, or None for the task's.
        backend: "batched" or "higher"; the latter takes the seeds one after the other.
        meta_loss: "mean-train", "final-train" or "final-valid", see `Unroll.meta_loss`.
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
    check_meta_loss(meta_loss)
    if backend == "higher":
        from metalr.agents.higher_gradients import task_meta_gradient

        if route != "full":
            raise ValueError(f"got route {route!r} with backend 'higher', expected 'full': use backend='batched'")
        return task_meta_gradient(learned, runs, seeds, base_lr, meta_loss=meta_loss, order=order)
    if backend != "batched":
        raise ValueError(f"got backend {backend!r}, expected one of {', '.join(BACKENDS)}: use one of these")
    unroll = Unroll(runs, learned, seeds, base_lr, order=order)
    # Fused attention has no second derivative; the mathematical form does.
    with sdpa_kernel([SDPBackend.MATH]):
        borders, dead = _scout(unroll, _stops(unroll, route, segment_length))
        return _GRADIENTS[route](unroll, borders, dead, meta_loss)


def _stops(unroll: Unroll, route: str, segment_length: int | None) -> list[int]:
    """Ends of the segments; a closed loop is only cut where it decides."""
    if route not in _GRADIENTS:
        raise ValueError(f"got route {route!r}, expected one of {', '.join(_GRADIENTS)}: use one of these")
    if route == "full":
        return [unroll.horizon]
    length = segment_length or math.ceil(math.sqrt(unroll.horizon))
    if length < 1:
        raise ValueError(f"got segment_length {segment_length}, expected at least 1 inner step")
    wanted = range(length, unroll.horizon, length)
    if len(unroll.stops) > 1:
        wanted_or_later = {min(s for s in unroll.stops if s >= w) for w in wanted}
        return sorted(wanted_or_later | {unroll.horizon})
    return [*wanted, unroll.horizon]


def _scout(unroll: Unroll, stops: list[int]) -> tuple[list[int], Tensor]:
    """Run once without a graph, to learn which runs diverge."""
    with torch.no_grad():
        carry = unroll.advance(unroll.start(), 0, unroll.horizon)
    return [0, *stops], carry.runs.diverged


def _mean(losses: Tensor, dead: Tensor) -> Tensor:
    return losses.sum() / (~dead).sum().clamp(min=1)


def _finish(unroll: Unroll, losses: Tensor, dead: Tensor, gradient: list[Tensor]) -> MetaGradient:
    losses = losses.detach()
    mean = float("nan") if bool(dead.all()) else _mean(losses, dead).item()
    names = [name for name, _ in _trained(unroll)]
    shown = torch.where(dead, torch.nan, losses)
    return MetaGradient(mean, shown, dead, dict(zip(names, gradient, strict=True)))


def _trained(unroll: Unroll) -> list[tuple[str, Tensor]]:
    named: list[tuple[str, Tensor]] = [(n, p) for n, p in unroll.learned.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("got a module without trainable parameters, expected some: requires_grad is off for all")
    return named


def _gradient(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """`autograd.grad` with zeros for what the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(i) for i in inputs]
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]


def _full(unroll: Unroll, borders: list[int], dead: Tensor, meta_loss: str) -> MetaGradient:
    carry = unroll.advance(unroll.start(dead), 0, unroll.horizon)
    losses = unroll.meta_loss(carry, meta_loss)
    gradient = _gradient(_mean(losses, dead), [p for _, p in _trained(unroll)])
    return _finish(unroll, losses, dead, gradient)


def _open(carry: Carry) -> tuple[Carry, list[Tensor]]:
    """The carry as fresh leaves of a new graph, and those of them that can have a gradient."""
    fresh = [leaf.detach() for leaf in leaves(carry)]
    inputs = [f.requires_grad_() for f in fresh if f.is_floating_point()]
    return replace_leaves(carry, fresh), inputs


def _segments(unroll: Unroll, borders: list[int], dead: Tensor, meta_loss: str) -> MetaGradient:
    """Reverse mode by hand: forward once, keep the borders, then each segment again with its own graph.

    With carry c[k] at border k and adjoint a[k] = d loss / d c[k], segment k gives
    a[k] = (d c[k+1] / d c[k])ᵀ a[k+1], and its share of the gradient (d c[k+1] / d meta)ᵀ a[k+1].
    """
    params = [p for _, p in _trained(unroll)]
    pairs = list(itertools.pairwise(borders))
    with torch.no_grad():
        kept = [unroll.start(dead)]
        for start, stop in pairs:
            kept.append(unroll.advance(kept[-1], start, stop))
    last, inputs = _open(kept.pop())
    losses = unroll.meta_loss(last, meta_loss)
    adjoint = _gradient(_mean(losses, dead), inputs + params)
    total, adjoint = adjoint[len(inputs) :], adjoint[: len(inputs)]
    for start, stop in reversed(pairs):
        carry, ahead = _open(kept.pop()), inputs
        inputs = carry[1]
        begin = carry[0] if start else unroll.start(dead)
        outputs = _like_inputs(unroll.advance(begin, start, stop), last, ahead)
        value = torch.stack([(o * a).sum() for o, a in zip(outputs, adjoint, strict=True) if o.requires_grad]).sum()
        found = _gradient(value, [*(inputs if start else []), *params])
        total = [t + g for t, g in zip(total, found[len(found) - len(params) :], strict=True)]
        # Every leaf has the runs along its first axis. What a dead run remembers may be NaN, and so its adjoint.
        adjoint = [a.masked_fill(_rows(dead, a), 0.0) for a in found[: len(found) - len(params)]]
        last = carry[0]
    return _finish(unroll, losses, dead, total)


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """`(num_runs,)` in a shape that broadcasts against `(num_runs, …)`."""
    return mask.view(-1, *[1] * (like.dim() - 1))


def _like_inputs(carry: Carry, template: Carry, inputs: list[Tensor]) -> list[Tensor]:
    """The leaves of `carry` at the places where `inputs` lie in `template`."""
    wanted = {id(tensor) for tensor in inputs}
    return [leaf for leaf, old in zip(leaves(carry), leaves(template), strict=True) if id(old) in wanted]


def _truncated(unroll: Unroll, borders: list[int], dead: Tensor, meta_loss: str) -> MetaGradient:
    """Cut the graph at every border: each window's own share of the loss is differentiated through it alone."""
    params = [p for _, p in _trained(unroll)]
    carry, total = unroll.start(dead), [torch.zeros_like(p) for p in params]
    for start, stop in itertools.pairwise(borders):
        before = carry.loss_sum.detach()
        carry = unroll.advance(carry, start, stop)
        share = torch.zeros_like(before)
        if meta_loss == "mean-train":
            share = (carry.loss_sum - before) / unroll.horizon
        elif stop == unroll.horizon:
            share = unroll.meta_loss(carry, meta_loss)
        found = _gradient(_mean(torch.where(dead, 0.0, share), dead), params)
        total = [t + g for t, g in zip(total, found, strict=True)]
        carry = replace_leaves(carry, [leaf.detach() for leaf in leaves(carry)])
    with torch.no_grad():
        losses = unroll.meta_loss(carry, meta_loss)
    return _finish(unroll, losses, dead, total)


_GRADIENTS = {"full": _full, "segments": _segments, "truncated": _truncated}
