"""Lightning: the step interval, `reduce_on_plateau` with a monitor, and checkpoints."""

import pytest
import torch
from schedulers_under_test import random_policy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metalr.learned_scheduler import LearnedLR

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

UPDATES = 24
INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def loss_of(model, inputs):
    return (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()


class Module(lightning.LightningModule):
    def __init__(self, observes=True, **config):
        super().__init__()
        self.net, self.observes, self.config, self.rates = net(), observes, config, []

    def training_step(self, batch, index):
        loss = loss_of(self.net, batch[0])
        if self.observes:
            self.lr_schedulers().observe(loss)
        self.log("train_loss", loss)
        return loss

    def on_before_zero_grad(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        self.scheduler = LearnedLR(optimizer, random_policy(), horizon=UPDATES)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler, "interval": "step", **self.config},
        }


def fit(module, folder, updates=UPDATES, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(INPUTS), batch_size=8), ckpt_path=ckpt_path)
    return trainer


def plain(observes=True, accumulate=1):
    """The same training in a plain loop: its scheduler's history."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = LearnedLR(optimizer, random_policy(), horizon=UPDATES)
    batches = list(INPUTS.split(8)) * (3 * accumulate)
    for t in range(UPDATES):
        optimizer.zero_grad()
        for inputs in batches[t * accumulate : (t + 1) * accumulate]:
            loss = loss_of(model, inputs)
            (loss / accumulate).backward()
            if observes:
                scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
    return scheduler.history


def assert_same_history(mine, theirs):
    assert [e["updates"] for e in mine] == [e["updates"] for e in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert a["lr_multiplier"] == pytest.approx(b["lr_multiplier"], rel=1e-9)
        for name, values in a["features"].items():
            assert values == pytest.approx(b["features"][name], abs=1e-9), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_step_interval_is_a_plain_loop(tmp_path, accumulate):
    # Lightning makes the gradients in a closure, inside `optimizer.step`: the first decision sees them all the same.
    module = Module()
    fit(module, tmp_path, accumulate_grad_batches=accumulate)
    assert_same_history(module.scheduler.history, plain(accumulate=accumulate))
    assert module.scheduler.explain()["features"]["has_loss"] == [1.0]


def test_without_losses(tmp_path):
    module = Module(observes=False)
    fit(module, tmp_path)
    assert_same_history(module.scheduler.history, plain(observes=False))


def test_reduce_on_plateau_passes_the_monitored_value(tmp_path):
    module = Module(observes=False, reduce_on_plateau=True, monitor="train_loss")
    fit(module, tmp_path)
    history, expected = module.scheduler.history, plain()
    assert [e["features"]["has_loss"][0] for e in history] == [0.0, 1.0, 1.0, 1.0, 1.0]
    for name in ("loss_total", "loss_slope"):
        first = history[1]["features"][name][0]
        assert first == pytest.approx(expected[1]["features"][name][0], abs=0.3)


def test_a_checkpoint_goes_on_exactly(tmp_path):
    whole = Module()
    fit(whole, tmp_path)
    first = Module()
    trainer = fit(first, tmp_path, updates=16)  # two epochs: inside one, Lightning does not find its place again
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = Module()
    fit(second, tmp_path, ckpt_path=tmp_path / "half.ckpt")
    assert second.scheduler.history == whole.scheduler.history
