"""Tasks by module and function."""

import sys

import pytest

from metalr.tasks.catalog import make_task, named_task

SOURCE = """
import torch
from metalr import Task

def make():
    inputs = torch.linspace(-1.0, 1.0, 50)[:, None]
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return Task(net, (inputs, inputs.sin()), torch.nn.functional.mse_loss, torch.optim.NAdam,
                base_lr=0.01, horizon=30, batch_size=10, plain=True)

named = make().with_(name="sine")

def not_a_task():
    return 7
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A folder with `sine_task.py`, which is the working one."""
    (tmp_path / "sine_task.py").write_text(SOURCE)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("sine_task", None)


@pytest.mark.usefixtures("own_module")
def test_a_function_in_the_working_folder_makes_the_task():
    task = make_task("sine_task:make", base_lr=0.5)
    assert (task.name, task.base_lr, task.horizon) == ("sine_task:make", 0.5, 30)
    assert make_task("sine_task:named").name == "sine"
    assert named_task("sine_task:make", None, 400, optimizer=None).horizon == 30
    assert named_task("sine_task:make", 60, 400, optimizer="adam").horizon == 60


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sin_task:make", "whose module 'sin_task' is not found, expected module:function: run metalr in the folder"),
        ("sine_task.py:make", r"whose module 'sine_task\.py' is not found, expected module:function"),
        (":make", "whose module '' is not found"),
        ("sine_task:mak", "but the module sine_task has no 'mak', expected a function that returns a metalr.Task"),
        ("sine_task:", "but the module sine_task has no ''"),
        ("sine_task:not_a_task", "got a int from 'sine_task:not_a_task', expected a metalr.Task: return Task"),
    ],
)
def test_what_makes_no_task_is_refused(reference, message):
    path = list(sys.path)
    with pytest.raises(ValueError, match=message):
        make_task(reference)
    assert sys.path == path


@pytest.mark.usefixtures("own_module")
def test_a_package_that_the_module_needs_is_named_itself():
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        make_task("needs_more:make")
