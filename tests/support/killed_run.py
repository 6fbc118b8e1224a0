"""A training that is killed again and again and continues from its last checkpoint. Run by `test_exact_resume`.

    python -m tests.support.killed_run FOLDER CONTROLLER LR_KIND KILLS

Prints how many updates were done at each kill. FOLDER/whole.pt and FOLDER/killed.pt are the ends of both runs.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from metalr.schedulers.learned_lr import LearnedLR
from tests.support.schedulers_under_test import CONTROLLERS_UNDER_TEST

UPDATES, EVERY, DECISIONS = 600, 7, 40


def train(end: Path, controller: str, lr_kind: str, progress: int | None = None) -> None:
    """Train to the end from the last checkpoint beside `end`, if there is one."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 10)
    labels = inputs[:, :3].argmax(-1)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    lr = torch.tensor(0.01) if lr_kind == "tensor" else 0.01
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, foreach=False, capturable=False)
    scheduler = LearnedLR(optimizer, CONTROLLERS_UNDER_TEST[controller], UPDATES, decisions=DECISIONS)
    checkpoint = end.with_suffix(".checkpoint")
    done, order, rates = 0, torch.randperm(200), []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for thing, name in ((model, "model"), (optimizer, "optimizer"), (scheduler, "scheduler")):
            thing.load_state_dict(state[name])
        done, order, rates = state["done"], state["order"], state["rates"]
        torch.set_rng_state(state["random"])
    for t in range(done, UPDATES):
        if t % 20 == 0:
            order = torch.randperm(200)
        rows = order[t % 20 * 10 : t % 20 * 10 + 10]
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs[rows]), labels[rows])
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        rates.append(float(scheduler.get_last_lr()[0]))
        scheduler.step()
        if (t + 1) % EVERY == 0 or t + 1 == UPDATES:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "done": t + 1,
                "order": order,
                "rates": rates,
                "random": torch.get_rng_state(),
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)  # a kill leaves the old one or the new one
        if progress is not None:
            os.write(progress, b".")
    os.replace(checkpoint, end)


def killed_after(end: Path, controller: str, lr_kind: str, updates: int | None, delay: float) -> int:
    """Updates that a child made until it was killed, `delay` seconds after so many of its updates; None: not at all."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        train(end, controller, lr_kind, write)
        os._exit(0)
    os.close(write)
    made = 0
    while updates is not None and made < updates and (part := os.read(read, updates - made)):
        made += len(part)
    if updates is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    while part := os.read(read, 1 << 16):
        made += len(part)
    os.close(read)
    _, status = os.waitpid(child, 0)
    ended_well = status == 0 if updates is None else os.WTERMSIG(status) == signal.SIGKILL
    if not ended_well:
        raise SystemExit(f"got exit status {status} of a child after {made} updates")
    return made


def main() -> None:
    folder, controller, lr_kind, kills = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    train(folder / "whole.pt", controller, lr_kind)
    moments = random.Random(controller)
    made = [
        killed_after(folder / "killed.pt", controller, lr_kind, moments.randrange(1, 30), moments.uniform(0.0, 0.003))
        for _ in range(kills)
    ]
    killed_after(folder / "killed.pt", controller, lr_kind, None, 0.0)
    print(*made)


if __name__ == "__main__":
    main()
