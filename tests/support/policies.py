"""Policies with random weights: what they see shows in what they do."""

import torch
from torch import nn

from metalr.control.actions import ActionSpec
from metalr.control.controller import Spacing
from metalr.control.lstm import LSTMCell, LSTMPolicyController
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.recurrent import RecurrentPolicyController
from metalr.schedules import Cosine, Schedule
from metalr.signals.observations import NUM_FEATURES


def random_policy(
    action: ActionSpec | None = None,
    seed: int = 0,
    schedule: Schedule | None = None,
    *,
    decisions: int = 5,
    visible: tuple[str, ...] | None = None,
    hidden: int = 12,
    scales: tuple[float, float] = (0.3, 0.3),
    bias: float = 0.0,
    dtype: torch.dtype = torch.float32,
    spacing: Spacing = "even",
) -> PolicyController:
    """A policy of two layers, by default not so large that its tanh is always saturated: it sees every feature.

    Args:
        action: by default anchored with alpha 1.
        seed: of the weights.
        schedule: by default a cosine that ends at a tenth.
        decisions, visible: as in `PolicyController`.
        hidden: width of the hidden layer.
        scales: standard deviations of the weights of the two layers.
        bias: standard deviation of all biases.
        dtype: of all weights.
        spacing: of the decisions.
    """
    action = action or ActionSpec(alpha=1.0)
    sizes = (NUM_FEATURES, hidden, action.levels or 1)
    generator = torch.Generator().manual_seed(seed)
    weights = [
        scale * torch.randn((rows, columns), generator=generator, dtype=dtype)
        for scale, columns, rows in zip(scales, sizes, sizes[1:], strict=False)
    ]
    biases = [
        bias * torch.randn(rows, generator=generator, dtype=dtype) if bias else torch.zeros(rows, dtype=dtype)
        for rows in sizes[1:]
    ]
    network = PolicyNetwork(weights, biases)
    return PolicyController(network, action, schedule or Cosine(floor=0.1), decisions, visible, spacing)


def moderate_policy() -> PolicyController:
    """Random weights so small that no action is clipped: whatever it sees shows in the multiplier."""
    return random_policy(scales=(0.3, 0.2))


def recurrent_policy(
    *,
    decisions: int = 5,
    visible: tuple[str, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    spacing: Spacing = "even",
    head: float = 1.0,
) -> RecurrentPolicyController:
    """A recurrent policy with four numbers of memory.

    Args:
        decisions, visible, dtype, spacing: as in `random_policy`.
        head: standard deviation of the weights that read the memory; at 0.3 no action is clipped.
    """
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "from_input.weight": (12, NUM_FEATURES),
        "from_input.bias": (12,),
        "from_memory.weight": (12, 4),
        "from_memory.bias": (12,),
        "head.weight": (1, 4),
        "head.bias": (1,),
    }
    weights = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    weights |= {name: head * weights[name] for name in ("head.weight", "head.bias")}
    action, schedule = ActionSpec(alpha=1.0), Cosine(floor=0.1)
    return RecurrentPolicyController(weights, action, schedule, decisions, visible, spacing)


def lstm_policy(
    *, levels: int = 0, visible: tuple[str, ...] | None = None, spacing: Spacing = "even"
) -> LSTMPolicyController:
    """Two cells with four numbers of memory each, read by two layers."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.5 * torch.randn(shape, generator=generator)

    cells = [LSTMCell(drawn(16, inputs), drawn(16, 4), drawn(16), drawn(16)) for inputs in (NUM_FEATURES, 4)]
    head = PolicyNetwork([drawn(6, 4), drawn(levels or 1, 6)], [drawn(6), drawn(levels or 1)], num_inputs=4)
    return LSTMPolicyController(
        cells, head, ActionSpec(alpha=1.0, levels=levels), Cosine(floor=0.1), 5, visible, spacing
    )


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Add noise to every parameter: the learned modules start as the base schedule, which hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
