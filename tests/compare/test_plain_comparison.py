"""A comparison on a task of the plain path."""

import json
import math
from functools import partial

import torch
from torch.nn import functional

import metalr
from metalr.compare.comparison import compare
from metalr.compare.settings import Settings
from metalr.reports.lr_range_test import find_lr
from metalr.tasks.task import Task
from tests.support.residual_net import residual_net

IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
CLASSES = (IMAGES.mean((1, 2, 3)) > 0).long()


def own_task() -> Task:
    optimizer = partial(torch.optim.NAdam, momentum_decay=0.01)
    data = (IMAGES, CLASSES)
    settings = {"base_lr": 0.01, "horizon": 40, "batch_size": 16, "name": "own"}
    return Task(partial(residual_net, 2, 2), data, functional.cross_entropy, optimizer, plain=True, **settings)


def test_schedules_optimizers_and_a_controller_are_compared(tmp_path):
    names = ("constant", "wsd", "greedy", "hypergradient", "schedule-free-adamw")
    settings = Settings(
        contenders=names,
        trials=2,
        tuning_seeds=1,
        report_seeds=2,
        factors=(0.1, 1.0),
        wrong_base=("wsd",),
        targets=True,
    )
    run = partial(
        compare, folder=tmp_path, settings=settings, controllers={"general": metalr.load_controller("general")}
    )
    found = run(own_task())
    records = {record.contender for record in found.records}
    # Optimizers that replace or wrap a formula need the batched engine.
    assert {"constant", "wsd", "greedy", "general"} <= records
    assert not {"hypergradient", "schedule-free-adamw"} & records
    assert all(math.isfinite(record.train_loss) for record in found.records if record.phase == "report")
    written = (tmp_path / "records.jsonl").read_text()
    assert run(own_task()).records == found.records  # the folder is recognised
    assert (tmp_path / "records.jsonl").read_text() == written
    described = json.loads((tmp_path / "config.json").read_text())["settings"]["tasks"]["own"]
    assert described["optimizer"] == "OwnOptimizer(NAdam, momentum_decay=0.01)"
    assert described["plain"] is True


def test_the_lr_range_test_takes_the_plain_path():
    curve = find_lr(own_task(), num_points=20, num_seeds=2)
    assert 1e-4 < curve.suggestion < 1.0
