"""A small residual network with batch normalisation and dropout: what the batched engine refuses."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs + self.body(inputs))


def residual_net(width: int = 8, classes: int = 10, dropout: float = 0.1) -> nn.Module:
    """Images with one channel -> logits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, dropout),
        nn.AvgPool2d(2),
        Block(width, dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )
