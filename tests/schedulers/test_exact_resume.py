"""A run killed at random moments ends bit-identical to one that was not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first.nan_to_num(nan=1e30), second.nan_to_num(nan=1e30))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


KILLS = 20


@pytest.mark.parametrize(("controller", "lr_kind"), [("policy", "float"), ("recurrent", "tensor")])
def test_twenty_kills_leave_no_trace(controller, lr_kind, tmp_path):
    folder = tmp_path
    command = [sys.executable, "-m", "tests.support.killed_run", str(folder), controller, lr_kind, str(KILLS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    made = [int(word) for word in result.stdout.split()]
    assert len(made) == KILLS
    assert len(set(made)) > KILLS // 3  # the moments differed
    assert any(count % 7 for count in made)  # and were not those of a checkpoint
    whole, killed = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    rates = whole["rates"]
    assert len(rates) == 600
    assert len(set(rates)) > 40  # the controller did something
    for name in ("model", "optimizer", "scheduler", "rates", "order", "random"):
        assert same(whole[name], killed[name]), name
