"""Hugging Face's Trainer: the loss through `compute_loss_func` or a forward hook, or no loss at all."""

import pytest
import torch
from torch import nn

from metalr.schedulers.adapters import observe_forward, observing
from metalr.schedulers.learned_lr import LearnedLR
from tests.integrations.installed import library
from tests.support.policies import moderate_policy

transformers = library("transformers")
library("accelerate")  # Trainer needs it

UPDATES = 24
INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
WAYS = ["compute_loss_func", "forward hook", "none"]


class Net(nn.Module):
    """A model with outputs like the library's own, which remembers the batches on which it was trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.batches = []

    def forward(self, x, labels=None):
        if self.training:
            self.batches.append(x)
        logits = self.layers(x)
        loss = None if labels is None else (logits - labels).square().mean()
        return {"loss": loss, "logits": logits}


def target(x):
    return x.sum(-1, keepdim=True).sin()


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return {"x": INPUTS[index], "labels": target(INPUTS[index])}


def mean_square(outputs, labels, num_items_in_batch=None):
    """In training, the sum over the batch divided by the examples of the whole update, as the library expects."""
    errors = (outputs["logits"] - labels).square()
    return errors.mean() if num_items_in_batch is None else errors.sum() / num_items_in_batch


def scheduled(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return optimizer, LearnedLR(optimizer, moderate_policy(), horizon=UPDATES)


def train(folder, way, accumulate=1, updates=UPDATES, resume=None, evaluate=True):
    model = Net()
    optimizer, scheduler = scheduled(model)
    if way == "forward hook":
        observe_forward(model, scheduler)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=updates,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="steps" if updates < UPDATES or resume else "no",
        save_steps=max(updates, 1),
        eval_strategy="steps" if evaluate else "no",
        eval_steps=5,
        logging_steps=100,
        seed=0,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(),
        eval_dataset=Rows(),
        optimizers=(optimizer, scheduler),
        compute_loss_func=observing(mean_square, scheduler) if way == "compute_loss_func" else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    return scheduler, model


def plain(batches, observes, accumulate):
    """The same training in a plain loop; the Trainer clips gradients to a norm of 1 by default."""
    model = Net()
    optimizer, scheduler = scheduled(model)
    for start in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        for x in batches[start : start + accumulate]:
            loss = model(x, target(x))["loss"]
            (loss / accumulate).backward()
            if observes:
                scheduler.observe(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return scheduler


def assert_same_decisions(mine, theirs):
    assert [e["updates"] for e in mine] == [e["updates"] for e in theirs] == [0, 5, 10, 14, 19]
    for a, b in zip(mine, theirs, strict=True):
        assert a["lr_multiplier"] == pytest.approx(b["lr_multiplier"], rel=1e-4)
        for name, values in a["features"].items():
            assert values == pytest.approx(b["features"][name], abs=1e-3), (a["updates"], name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_trainer_is_a_plain_loop(tmp_path, way, accumulate):
    scheduler, model = train(tmp_path, way, accumulate)
    assert len(model.batches) == UPDATES * accumulate
    expected = plain(model.batches, way != "none", accumulate)
    assert_same_decisions(scheduler.history, expected.history)
    assert scheduler.state_dict()["updates"] == UPDATES
    assert {e["features"]["has_loss"][0] for e in scheduler.history} == {0.0 if way == "none" else 1.0}
    assert len({e["lr_multiplier"][0] for e in scheduler.history}) == 5


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_is_not_training(tmp_path, way):
    with_evaluation, _ = train(tmp_path / "a", way)
    without, _ = train(tmp_path / "b", way, evaluate=False)
    assert with_evaluation.history == without.history


@pytest.mark.parametrize("updates", [9, 11])  # the first lies between the last two updates before a decision
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_goes_on(tmp_path, way, updates):
    whole, _ = train(tmp_path / "whole", way)
    train(tmp_path / "half", way, updates=updates)
    checkpoint = tmp_path / "half" / f"checkpoint-{updates}"
    second, _ = train(tmp_path / "half", way, resume=str(checkpoint))
    assert second.history == whole.history
