"""Hugging Face's Trainer: the loss through `compute_loss_func` or a forward hook, and without it."""

import pytest
import torch
from schedulers_under_test import random_policy
from torch import nn

from metalr.adapters import observe_forward, observing
from metalr.learned_scheduler import LearnedLR

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

UPDATES = 24
INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Returns what models of the library return."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        loss = None if labels is None else (logits - labels).square().mean()
        return {"loss": loss, "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return {"x": INPUTS[index], "labels": INPUTS[index].sum(-1, keepdim=True).sin()}


def mean_square(outputs, labels, num_items_in_batch=None):
    return (outputs["logits"] - labels).square().mean()


def train(folder, way, accumulate=1, updates=UPDATES, resume=None, **options):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = LearnedLR(optimizer, random_policy(), horizon=UPDATES)
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
        save_strategy="steps" if updates < UPDATES or resume else "no",
        save_steps=11,
        eval_strategy="steps",
        eval_steps=5,
        logging_steps=100,
        seed=0,
        **options,
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
    return scheduler


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("way", ["compute_loss_func", "forward hook", "none"])
def test_trainer(tmp_path, way, accumulate):
    scheduler = train(tmp_path, way, accumulate)
    history = scheduler.history
    assert scheduler._updates == UPDATES
    assert [e["updates"] for e in history] == [0, 5, 10, 14, 19]
    assert {e["features"]["has_loss"][0] for e in history} == {0.0 if way == "none" else 1.0}
    assert history[0]["features"]["update_ratio"][0] != 0.0  # the first decision saw the gradients
    assert all(-1.0 < e["features"]["gradient_cosine"][0] != 0.0 for e in history[1:])


def test_both_ways_of_passing_the_loss_agree_and_evaluation_is_not_training(tmp_path):
    by_function = train(tmp_path / "a", "compute_loss_func")
    by_hook = train(tmp_path / "b", "forward hook")
    for a, b in zip(by_function.history, by_hook.history, strict=True):
        assert a["lr_multiplier"] == pytest.approx(b["lr_multiplier"], rel=1e-5)
    seen = [e["features"]["loss_total"][0] for e in by_hook.history[1:]]
    assert len(set(seen)) == len(seen)


def test_a_checkpoint_goes_on(tmp_path):
    whole = train(tmp_path / "whole", "compute_loss_func")
    train(tmp_path / "half", "compute_loss_func", updates=11)
    second = train(tmp_path / "half", "compute_loss_func", resume=str(tmp_path / "half" / "checkpoint-11"))
    assert [e["lr_multiplier"] for e in second.history] == [e["lr_multiplier"] for e in whole.history]
