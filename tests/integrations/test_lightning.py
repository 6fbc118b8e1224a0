"""Lightning: the step interval, `reduce_on_plateau` with a monitor, and checkpoints."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metalr.schedulers.learned_lr import LearnedLR
from tests.integrations.installed import library
from tests.support.policies import moderate_policy

lightning = library("lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .train_dataloader. does not have many workers"),
]

UPDATES = 24
INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BATCHES = list(INPUTS.split(8))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def loss_of(model, inputs):
    return (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()


def scheduled(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return optimizer, LearnedLR(optimizer, moderate_policy(), horizon=UPDATES)


class Module(lightning.LightningModule):
    def __init__(self, observes=True, **config):
        super().__init__()
        self.net, self.observes, self.config = net(), observes, config

    def training_step(self, batch, index):
        loss = loss_of(self.net, batch[0])
        if self.observes:
            self.lr_schedulers().observe(loss)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer, self.scheduler = scheduled(self.net)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler, "interval": "step", **self.config},
        }


class OwnData(Module):
    """A module whose data depends on the update, because Lightning restarts the loader when it resumes a run."""

    def training_step(self, batch, index):
        return super().training_step([BATCHES[self.global_step % len(BATCHES)]], index)


def fit(module, folder, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        **{"max_steps": UPDATES} | options,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(TensorDataset(INPUTS), batch_size=8), ckpt_path=ckpt_path)
    return trainer


def plain(loss_through="observe", accumulate=1):
    """The history of the scheduler of the same training in a plain loop."""
    model = net()
    optimizer, scheduler = scheduled(model)
    batches = BATCHES * (3 * accumulate)
    for t in range(UPDATES):
        optimizer.zero_grad()
        for inputs in batches[t * accumulate : (t + 1) * accumulate]:
            loss = loss_of(model, inputs)
            (loss / accumulate).backward()
            if loss_through == "observe":
                scheduler.observe(loss)
        optimizer.step()
        scheduler.step(*[loss] if loss_through == "step" else [])
    return scheduler.history


def assert_same_history(mine, theirs):
    assert [e["updates"] for e in mine] == [e["updates"] for e in theirs] == [0, 5, 10, 14, 19]
    assert len({e["lr_multiplier"][0] for e in mine}) == 5
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
    assert_same_history(module.scheduler.history, plain("nothing"))


def test_reduce_on_plateau_passes_the_monitored_value(tmp_path):
    module = Module(observes=False, reduce_on_plateau=True, monitor="train_loss")
    fit(module, tmp_path)
    assert_same_history(module.scheduler.history, plain("step"))
    # The first decision comes before the first update, and before a monitored value.
    assert [e["features"]["has_loss"][0] for e in module.scheduler.history] == [0.0, 1.0, 1.0, 1.0, 1.0]


# Update 13 lies between the last two before a decision, where the state holds gradients.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("updates", [12, 13, 14, 16])
def test_a_checkpoint_goes_on_exactly(tmp_path, updates):
    whole, first, second = OwnData(), OwnData(), OwnData()
    fit(whole, tmp_path)
    fit(first, tmp_path, max_steps=updates).save_checkpoint(tmp_path / "part.ckpt")
    fit(second, tmp_path, ckpt_path=tmp_path / "part.ckpt")
    assert len(first.scheduler.history) < len(second.scheduler.history)
    assert second.scheduler.history == whole.scheduler.history
