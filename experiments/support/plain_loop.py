"""A user's own loop with an exported controller and without any RL library.

    python -m experiments.support.plain_loop controller.safetensors

A small network is trained on MNIST-1D from three guesses of the LR, with and without the controller; then the RL
libraries that were imported are named: none. Expected: without the controller only the middle guess trains well; with
it all three end equally low.
"""

import sys

import torch
from torch import nn
from torch.nn import functional

import metalr
from metalr.tasks.datasets import mnist1d

UPDATES = 200


def train(lr: float, controller: str | None) -> float:
    """Train for `UPDATES` updates; the final train loss."""
    torch.manual_seed(0)
    x, y = (part[0] for part in mnist1d().train)
    model = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = metalr.load_scheduler(controller, optimizer, horizon=UPDATES) if controller else None
    for _ in range(UPDATES):
        index = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x[index]), y[index])
        loss.backward()
        if scheduler is not None:
            scheduler.observe(loss)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    with torch.no_grad():
        return functional.cross_entropy(model(x), y).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) != 2:
        sys.exit("got no controller file, expected: python -m experiments.support.plain_loop controller.safetensors")
    print("  guessed LR   final train loss at that LR   with the controller")
    for guess in (0.01, 0.1, 1.0):
        print(f"  {guess:<12} {train(guess, None):<29.3f} {train(guess, sys.argv[1]):.3f}")
    rl = {"gymnasium", "stable_baselines3", "higher"} & set(sys.modules)
    print(f"  RL libraries imported: {', '.join(sorted(rl)) or 'none'}")
