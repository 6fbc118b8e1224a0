"""Every Python block of the guides runs as it stands there; every warning and error has a line in them."""

import ast
import functools
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metalr
from tests.integrations.installed import library
from tests.integrations.ranks import on_ranks

ROOT = Path(__file__).parent.parent
TEXTS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
GUIDE = TEXTS["integrations.md"]
# What a section's blocks import, and the warnings of those libraries about themselves.
NEEDS = {
    "Hugging Face Trainer": ("transformers", "accelerate"),
    "accelerate": ("accelerate",),
    "Lightning": ("lightning",),
    "Stable-Baselines3": ("stable_baselines3",),
    "RecurrentPPO": ("sb3_contrib",),
    "CleanRL": ("gymnasium",),
    "What did it do?": ("sklearn", "matplotlib"),
    "Logging": ("tensorboard",),
}
THEIR_WARNINGS = {
    "Lightning": (
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
        "ignore:The .train_dataloader. does not have many workers",
    ),
    "torch.compile": ("ignore::DeprecationWarning:torch",),
}
ON_RANKS = {"DDP", "FSDP2"}
ON_A_GPU = {"CUDA graphs"}
AFTER_ITS_COMMAND = {"rl-baselines3-zoo"}  # in tests/integrations/test_rl_zoo3.py


def sections(text: str) -> list[tuple[str, str]]:
    """Heading and body, in order."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def blocks() -> list:
    found = []
    for name, text in TEXTS.items():
        for heading, body in sections(text):
            if heading in AFTER_ITS_COMMAND:
                continue
            for index, block in enumerate(re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)):
                marks = [pytest.mark.filterwarnings(w) for w in THEIR_WARNINGS.get(heading, ())]
                marks += [pytest.mark.gpu] * (heading in ON_A_GPU)
                found.append(pytest.param(name, heading, block, marks=marks, id=f"{heading} {index}"))
    return found


class HuggingFaceNet(nn.Module):
    """Returns what models of that library return."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        logits = self.layer(x)
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


def a_users_names(heading: str = "") -> dict:
    """What a reader has around the examples: a model, data, an optimizer."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(800, 4), torch.randint(3, (800,)))
    loader = DataLoader(data, batch_size=8)
    model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    names = {
        "metalr": metalr,
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "loss_fn": nn.functional.cross_entropy,
        "loader": loader,
        "num_updates": len(loader),
    }
    return names | (hugging_face_names(data) if heading == "Hugging Face Trainer" else {})


def hugging_face_names(data: TensorDataset) -> dict:
    arguments = library("transformers").TrainingArguments(
        output_dir="runs", max_steps=50, use_cpu=True, report_to=[], disable_tqdm=True, dataloader_pin_memory=False
    )
    return {
        "model": HuggingFaceNet(),
        "args": arguments,
        "dataset": [{"x": x, "labels": y} for x, y in data],
        "my_loss": lambda outputs, labels, num_items_in_batch=None: nn.functional.cross_entropy(
            outputs["logits"], labels
        ),
    }


def execute(rank: int, block: str, heading: str) -> tuple[list[dict], int]:
    """Run a block; the decisions of its scheduler, where it has one that trained, and how many there should be."""
    names = a_users_names(heading)
    exec(compile(block, heading, "exec"), names)
    scheduler = names.get("learned", names.get("scheduler"))
    if scheduler is None:
        return [], 0
    history = scheduler.history
    if scheduler.horizon is None or not hasattr(scheduler, "controller"):
        return history, len(history)
    return history, len(scheduler.controller.decision_steps(scheduler.horizon))


@pytest.mark.parametrize(("name", "heading", "block"), blocks())
def test_a_block_runs(name, heading, block, tmp_path, monkeypatch, capsys):
    for needed in NEEDS.get(heading, ()):
        library(needed)
    monkeypatch.chdir(tmp_path)
    # The block is the same for every backend; this one needs no compiler of C++ and no half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    ranks = on_ranks(execute, block, heading) if heading in ON_RANKS else [execute(0, block, heading)]
    trains = any(call in block for call in (".step()", ".train()", ".fit(")) and "class " not in block
    history, expected = ranks[0]
    assert all(rank == ranks[0] for rank in ranks)
    assert not trains or len(history) == expected > 0
    # Several ranks cannot know each other's losses before the first update.
    assert all(entry["features"]["has_loss"] for entry in history[int(heading in ON_RANKS) :])


def test_links_lead_somewhere():
    headings = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading, _ in sections(GUIDE)}
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    assert links
    missing = [link for link in links if link[0] == "#" and link[1:] not in headings]
    assert not missing
    assert not [link for link in links if link[0] != "#" and not (ROOT / "docs" / link).exists()]


# Warnings and errors

SPEAKERS = (
    *sorted((ROOT / "metalr/schedulers").glob("*.py")),
    ROOT / "metalr/artefacts/controller_file.py",
    ROOT / "metalr/control/loop.py",
    ROOT / "metalr/control/controller.py",
    ROOT / "metalr/control/policy.py",
    ROOT / "metalr/reports/decision_figure.py",
    ROOT / "agents/sb3_lr_callback.py",
)


def messages(path: Path) -> list[str]:
    """What a file raises or warns, with … in the place of what is put in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        call = node.exc if isinstance(node, ast.Raise) else node
        is_warning = isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("warn", "_warn_once")
        if isinstance(call, ast.Call) and (isinstance(node, ast.Raise) or is_warning):
            text = " | ".join(filter(None, map(_text, call.args)))
            found.append(text)
    return [text for text in found if text not in ("", "LearnedLR: ….")]  # the frame around every warning


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ""


def explained() -> list[str]:
    tables = "".join(body for heading, body in sections(GUIDE) if heading in ("Warnings", "Errors"))
    return [quote for row in re.findall(r"^\| (.*) \|$", tables, flags=re.MULTILINE) for quote in quotes(row)]


def quotes(row: str) -> list[str]:
    first, second, _ = row.split(" | ", 2)
    return re.findall("`([^`]+)`", first + " " + (second if "in brackets" in second else ""))


def test_every_warning_and_error_is_explained():
    said = [message for path in SPEAKERS for message in messages(path)]
    assert len(said) > 40
    unexplained = [message for message in said if not any(quote in message for quote in explained())]
    assert not unexplained


def test_what_is_explained_is_said():
    said = [message for path in SPEAKERS for message in messages(path)]
    assert not [quote for quote in explained() if not any(quote in message for message in said)]
