"""Meta-gradients by the library `higher`: through a user's own `nn.Module` and `torch.optim` optimizer.

`higher` has its own copy of every update rule. Where that copy differs from torch's, it is corrected here or
refused with an error; it never gives a wrong gradient in silence.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalr.agents.meta_gradients import MetaGradient, gradient_of
from metalr.agents.meta_losses import MetaLoss
from metalr.engine.layout import ParameterLayout
from metalr.engine.runs import BatchedRuns
from metalr.learned.module import Learned, OpenLoop
from metalr.learned.schedules import ParameterLR
from metalr.tasks.data import Batch

Loss = Callable[[Tensor, Tensor], Tensor]
Clip = Callable[[list[Tensor]], list[Tensor]]
SUPPORTED = (torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop)
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")


def check_supported(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what `higher` cannot differentiate or would silently do otherwise than torch.

    Raises:
        ValueError: the message names the optimizer or module, what is supported and what to use instead.
    """
    kind = type(optimizer)
    if kind not in SUPPORTED:
        raise ValueError(
            f"got optimizer {kind.__name__}, expected one of {', '.join(k.__name__ for k in SUPPORTED)} (SGD also "
            "with momentum and Nesterov): use one of these, or backend='batched', which has AdamW too"
        )
    for group in optimizer.param_groups:
        for flag, instead in (
            ("maximize", "negate the loss"),
            ("decoupled_weight_decay", "backend='batched' with AdamW"),
        ):
            if group.get(flag):
                raise ValueError(f"got {kind.__name__}({flag}=True), expected False, which higher assumes: {instead}")
    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule) or type(layer).__name__ in _WRAPPERS:
            raise ValueError(
                f"got a {type(layer).__name__} at {name or 'the top'!r}, expected plain modules: pass the module "
                "inside it"
            )
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in layer.parameters(recurse=False)):
            raise ValueError(f"got a lazy layer at {name!r} without weights, expected some: run one forward pass first")


def higher_meta_gradient(
    learned: Learned,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batches: Sequence[Batch],
    *,
    base_lr: float,
    meta_loss: str | MetaLoss = MetaLoss.MEAN_TRAIN,
    final_batches: Iterable[Batch] = (),
    order: int = 2,
    clip: Clip | None = None,
) -> MetaGradient:
    """Meta-loss and meta-gradient of one run of the user's own net and optimizer.

    Neither the module nor the optimizer is changed. The LR of inner step t in parameter group g is
    base_lr · learned(t / len(batches))[g]; what the optimizer holds as its LR is not used.

    Args:
        learned: an open-loop module with one LR, or one for each parameter group. `ParameterLR` with one LR
            also learns the initial weights, given in the order of `module.parameters()`.
        module: any module of differentiable layers; attention runs by its mathematical form, since the fused
            kernels have no second derivative, and recurrent layers without cuDNN for the same reason.
        optimizer: SGD (momentum, Nesterov), Adam, Adagrad or RMSprop over the module's parameters.
        loss: `(outputs, targets) -> scalar`.
        batches: one `(inputs, targets)` for each inner step.
        base_lr: positive.
        meta_loss: "mean-train", "final-train" or "final-valid".
        final_batches: what a final meta-loss is the mean over, weighted by the number of examples.
        order: 2, or 1 to take the inner gradients as constants.
        clip: applied to the list of gradients, as the user's loop does.

    Raises:
        ValueError: the optimizer, the module or an argument is not supported.
        ImportError: `higher` is not installed.
    """
    chosen = MetaLoss(meta_loss)
    _check_arguments(learned, order, batches)
    assert isinstance(learned, OpenLoop)
    check_supported(module, optimizer)
    with warnings.catch_warnings(), sdpa_kernel([SDPBackend.MATH]), torch.backends.cudnn.flags(enabled=False):
        # Its RMSprop warns of zero second moments, where it masks a hook; elsewhere the derivative is exact,
        # and tests compare it with finite differences.
        warnings.filterwarnings("ignore", message="Differentiable RMSprop")
        run = _Training(module, optimizer, loss, batches, final_batches, base_lr, clip)
        values, final = _unroll(learned, run, order)
    value = final if chosen.is_final else torch.stack(values).mean()
    params = learned.meta_params()
    diverged = torch.tensor([not bool(value.detach().isfinite())])
    gradient = gradient_of(value.detach() if diverged else value, list(params.values()))
    losses = torch.where(diverged, torch.nan, value.detach()[None])
    return MetaGradient(losses.item(), losses, diverged, dict(zip(params, gradient, strict=True)))


def _check_arguments(learned: Learned, order: int, batches: Sequence[Batch]) -> None:
    if order not in (1, 2):
        raise ValueError(f"got order {order}, expected 1 or 2: 1 omits the second derivatives")
    if not isinstance(learned, OpenLoop) or (isinstance(learned, ParameterLR) and len(learned.lr) > 1):
        raise ValueError(
            f"got a {type(learned).__name__} with backend 'higher', expected an open-loop module whose LRs belong to "
            "parameter groups: use backend='batched' for policies and for LRs of single parameters"
        )
    if not batches:
        raise ValueError("got no batches, expected one for each inner step: their number is the horizon")


@dataclass(frozen=True)
class _Training:
    """A user's own run; the attributes are arguments of `higher_meta_gradient`."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    batches: Sequence[Batch]
    final_batches: Iterable[Batch]
    base_lr: float
    clip: Clip | None


def _unroll(learned: OpenLoop, run: _Training, order: int) -> tuple[list[Tensor], Tensor]:
    """The minibatch losses and the mean loss over the final batches, with their graph."""
    lrs = _lrs(learned, run)
    names = [name for name, _ in run.module.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in run.module.named_buffers()}

    def treat(gradients: list[Tensor]) -> list[Tensor]:
        # track_higher_grads=False would give first order too, but it cuts the path to the LR as well.
        gradients = [g.detach() if order == 1 and g is not None else g for g in gradients]
        return run.clip(gradients) if run.clip is not None else gradients

    def loss_on(net: Any, batch: Batch) -> Tensor:
        # Not net(inputs): higher's patched classes break a forward pass that slices an nn.ModuleList.
        weights = dict(zip(names, net.fast_params, strict=True))
        return run.loss(functional_call(run.module, {**weights, **buffers}, (batch[0],)), batch[1])

    values = []
    with _import_higher().innerloop_ctx(run.module, run.optimizer) as (net, inner):
        _keep_steps_exact(inner)
        row = learned.initial_params()
        if row is not None:
            net.update_params(_split_like(row, run.module.parameters()))
        for step, (batch, lr) in enumerate(zip(run.batches, lrs, strict=True)):
            value = loss_on(net, batch)
            values.append(value)
            override: dict[str, list[Any]] = {"lr": [part.to(value.dtype) for part in lr]}
            if isinstance(run.optimizer, torch.optim.Adam):
                override["eps"] = _adam_eps(run.optimizer, step)
            inner.step(value, override=override, grad_callback=treat)
        final, seen = torch.zeros_like(values[0]), 0
        for batch in run.final_batches:
            final = final + loss_on(net, batch) * len(batch[0])
            seen += len(batch[0])
    return values, final / max(seen, 1)


def _lrs(learned: OpenLoop, run: _Training) -> Tensor:
    """`(horizon, num_groups)` absolute LRs; one group stands for all."""
    progress = torch.arange(len(run.batches), dtype=torch.float64) / len(run.batches)
    lrs = run.base_lr * learned(progress)
    if lrs.shape[1] not in (1, len(run.optimizer.param_groups)):
        raise ValueError(
            f"got {lrs.shape[1]} learned LRs, expected 1 or one for each of {len(run.optimizer.param_groups)} groups"
        )
    return lrs


def _keep_steps_exact(inner: Any) -> None:
    """Make the step counts of higher's optimizer Python numbers.

    torch keeps them as float32 tensors, in which 1 - beta2^step loses half of its digits.
    """
    for group_state in inner.state:
        for state in group_state.values():
            if "step" in state:
                state["step"] = float(state["step"])


def _adam_eps(optimizer: torch.optim.Adam, step: int) -> list[float]:
    """The eps with which higher's Adam is torch's.

    higher adds eps to sqrt(v) before the bias correction, as torch did in 2019; torch now adds it to
    sqrt(v / (1 - beta2^t)). The two agree if higher is given eps · sqrt(1 - beta2^t).
    """
    corrected = []
    for group in optimizer.param_groups:
        done = optimizer.state.get(group["params"][0], {}).get("step", 0)
        count = float(done) + step + 1
        corrected.append(group["eps"] * (1.0 - group["betas"][1] ** count) ** 0.5)
    return corrected


def _split_like(row: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """A row cut into tensors of the shapes of others."""
    shapes = [each.shape for each in like]
    parts = row.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _import_higher() -> Any:
    try:
        import higher
    except ImportError as error:
        raise ImportError("backend 'higher' needs the package 'higher': pip install higher") from error
    return higher


def task_meta_gradient(
    learned: Learned,
    runs: BatchedRuns,
    seeds: Tensor,
    base_lr: Tensor | None,
    *,
    meta_loss: MetaLoss,
    order: int,
) -> MetaGradient:
    """`higher_meta_gradient` for each seed of a task, with the weights and minibatches that the engine would use."""
    task = runs.task
    try:
        task.optimizer.to_torch([nn.Parameter(torch.zeros(1))], 1.0)
    except NotImplementedError as error:
        raise ValueError(f"got a task that torch.optim cannot train ({error}), expected backend='batched'") from error
    runs.init(seeds)
    base = torch.full((runs.num_runs,), task.base_lr, dtype=torch.float64) if base_lr is None else base_lr
    return _average(
        [_gradient_of_run(learned, runs, i, float(base[i]), meta_loss, order) for i in range(runs.num_runs)]
    )


def _gradient_of_run(
    learned: Learned, runs: BatchedRuns, run: int, base_lr: float, meta_loss: MetaLoss, order: int
) -> MetaGradient:
    task, one = runs.task, slice(run, run + 1)
    module = runs.module_of(run)
    batches = runs.data.batches(
        runs.seeds[one], runs.variants[one], runs.state.step[one], task.horizon, task.batch_size
    )
    final: Iterable[Batch] = ()
    if meta_loss.is_final:
        final = runs.data.chunks(meta_loss.split, runs.variants[one], 1 << 62, 4096)
    return higher_meta_gradient(
        learned,
        module,
        task.optimizer.to_torch(_param_groups(module, runs.layout), 1.0),
        task.loss,
        [(x[0], y[0]) for x, y in batches],
        base_lr=base_lr,
        meta_loss=meta_loss,
        final_batches=[(x[0], y[0]) for x, y in final],
        order=order,
        clip=_clip_by(task.optimizer.clip) if task.optimizer.clip_norm is not None else None,
    )


def _param_groups(module: nn.Module, layout: ParameterLayout) -> Any:
    named = dict(module.named_parameters())
    return [{"params": [named[name] for name in group]} for group in layout.groups]


def _clip_by(clip_rows: Callable[[Tensor], Tensor]) -> Clip:
    def clip(gradients: list[Tensor]) -> list[Tensor]:
        row = torch.cat([g.flatten() for g in gradients])
        return _split_like(clip_rows(row[None])[0], gradients)

    return clip


def _average(results: list[MetaGradient]) -> MetaGradient:
    diverged = torch.cat([r.diverged for r in results])
    live = [r for r in results if not bool(r.diverged)]
    count = max(len(live), 1)
    gradient = {
        name: sum((r.gradient[name] for r in live), torch.zeros_like(zero)) / count
        for name, zero in results[0].gradient.items()
    }
    loss = sum(r.loss for r in live) / count if live else float("nan")
    return MetaGradient(loss, torch.cat([r.losses for r in results]), diverged, gradient)
