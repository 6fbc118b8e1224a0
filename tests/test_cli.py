"""The command line: help that reads, errors without a traceback, and a small run from train to compare."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metalr
from metalr.artefacts.controller_file import SHIPPED, load_card, load_controller, save_controller
from metalr.cli.compare import _different_names
from metalr.cli.main import main
from tests.support.policies import random_policy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*distutils Version classes are deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

SMALL = ["--task", "teacher-student", "--horizon", "20", "--decisions", "5", "--num-envs", "8", "--episodes", "16"]


@pytest.fixture
def own(tmp_path) -> Path:
    """The file of a controller that nobody trained."""
    return save_controller(tmp_path / "own.safetensors", random_policy(decisions=20))


def call(*arguments: str) -> None:
    main(list(arguments))


@pytest.mark.parametrize("command", ["train", "export", "compare", "explain", "tune", "find-lr", "list"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        call(command, "--help")
    assert stop.value.code == 0
    assert f"usage: metalr {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [None, "train", "export", "compare", "explain", "tune", "find-lr", "list"])
@pytest.mark.parametrize("width", [80, 100])
def test_help_fits_the_screen(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        call(*filter(None, [command]), "--help")
    _, *lines = capsys.readouterr().out.splitlines()  # tyro leaves the line of the usage to the terminal
    assert [line for line in lines if len(line) > width] == []
    assert "\n\n\n" not in "\n".join(lines)


def test_the_version_is_among_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        call("--help")
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    assert re.search(r"usage: metalr \[-h\] \[--version\] \{train,", help_text)
    assert "--version" in options_of("", capsys)


def test_train_options_are_all_explained(capsys):
    with pytest.raises(SystemExit):
        call("train", "--help")
    text = capsys.readouterr().out
    options = re.findall(r"--[a-z-]+", text)
    assert {"--agent", "--task", "--episodes", "--seed", "--reward"} <= set(options)


def options_of(command: str, capsys) -> dict[str, str]:
    """Option -> what the help says of it, between one option and the next."""
    with pytest.raises(SystemExit):
        call(*filter(None, [command]), "--help")
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]  # a box on a terminal, else spaces
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if re.match("--[a-z]", line):
            name = line.split()[0].rstrip(",")
            found[name] = line[len(name) :]
        elif not line or line.startswith(("---", "───", "╭", "╰")):
            name = ""
        elif name:
            found[name] += " " + line
    return found


@pytest.mark.parametrize("command", ["train", "export", "compare", "tune", "find-lr", "explain"])
def test_every_option_is_explained_in_words_a_person_reads(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options = options_of(command, capsys)
    assert len(options) > 1
    for name, text in options.items():
        text = re.sub(r"\((default|required).*?\)", "", text)
        text = re.sub(r"^[ ,]*(--[\w.-]+[ ,]*)*(\[?\{?[A-Z\]\[ .]+(?= |$)|\{.*?\})?", "", text)
        assert len(text.split()) >= 3, f"{name} has no help"
        assert "None" not in options[name]


@pytest.mark.parametrize("agent", ["ppo", "dqn", "clone"])
def test_settings_of_the_agents_are_options(agent, capsys):
    assert {f"--{agent}.learning-rate", f"--{agent}.peak-lr"} & set(options_of("train", capsys))


def test_a_setting_on_the_command_line_reaches_the_agent_and_is_kept(tmp_path):
    call("train", *SMALL, "--ppo.width", "7", "--ppo.target-kl", "0.5", "--folder", str(tmp_path / "run"))
    card = load_card(tmp_path / "run" / "controller.safetensors")
    assert (card["about"]["settings"]["width"], card["about"]["settings"]["target_kl"]) == (7, 0.5)
    assert load_controller(tmp_path / "run" / "controller.safetensors").network.biases[0].shape == (7,)
    call("train", "--resume", str(tmp_path / "run"))


def test_none_is_understood_where_the_help_says_none(tmp_path):
    call("train", *SMALL, "--optimizer", "none", "--visible", "none", "--folder", str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["optimizer"] is None


def test_training_ends_with_fresh_seeds_and_commands_that_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("train", *SMALL, "--folder", "run")
    text, progress = capsys.readouterr()
    assert progress.endswith("episodes 16 of 16\n")
    assert re.search(r"^\* teacher-student, ppo +[\d.]+ ", text, flags=re.MULTILINE)
    (command,) = re.findall("compare it: metalr (.*)", text)
    (use,) = re.findall("use it: +metalr.(.*)", text)
    few = ["--trials", "1", "--tuning-seeds", "1", "--report-seeds", "1", "--contenders", "constant", "--factors", "1"]
    call(*command.split(), *few)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    assert eval(use, {"load_scheduler": metalr.load_scheduler, "optimizer": optimizer}).horizon == 20


@pytest.mark.parametrize(
    ("agent", "option", "value"),
    [("clone", "reward", "valid"), ("clone", "episodes", "9"), ("ppo", "dqn.gamma", "0.9"), ("dqn", "ppo.width", "9")],
)
def test_an_option_that_the_agent_does_not_read_is_refused(agent, option, value, tmp_path):
    arguments = ["--task", "teacher-student", "--horizon", "20", "--decisions", "5", "--agent", agent]
    with pytest.raises(SystemExit, match=f"got a change of {option.split('.')[0]} for the agent {agent}"):
        call("train", *arguments, f"--{option}", value, "--folder", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_workers_for_a_single_task_of_ppo_are_refused(tmp_path):
    pytest.importorskip("joblib")
    with pytest.raises(SystemExit, match=r"metalr: got 2 workers for one task, .*, expected several tasks: train on a"):
        call("train", *SMALL, "--workers", "2", "--folder", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_train_export_compare(tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "mine.safetensors"
    call("train", *SMALL, "--folder", str(folder))
    call("export", str(folder), str(file))
    assert load_card(file)["about"] == {
        **load_card(folder / "controller.safetensors")["about"],
        "exported_from": "run",
    }
    arguments = ["--task", "teacher-student", "--horizon", "20", "--trials", "2", "--tuning-seeds", "1"]
    arguments += ["--report-seeds", "2", "--contenders", "constant", "cosine", "--controllers", str(file)]
    call("compare", *arguments, "--folder", str(tmp_path / "compare"))
    text = capsys.readouterr().out
    assert "mine" in text
    assert "chosen on valid loss, reported on test loss" in text
    assert (tmp_path / "compare" / "report.html").is_file()
    rows = (tmp_path / "compare" / "records.jsonl").read_text().splitlines()
    assert {json.loads(row)["contender"] for row in rows} >= {"constant", "cosine", "mine"}


def test_compare_takes_tasks_factors_and_trials_for_controllers(tmp_path, own):
    arguments = ["--tasks", "teacher-student", "quadratic", "--horizon", "40", "--trials", "4"]
    arguments += ["--tuning-seeds", "1", "--report-seeds", "2", "--contenders", "cosine", "--factors", "0.01", "100"]
    call("compare", *arguments, "--tune-controllers", "--controllers", str(own), "--folder", str(tmp_path / "here"))
    records = [json.loads(row) for row in (tmp_path / "here" / "records.jsonl").read_text().splitlines()]
    assert {r["task"] for r in records} == {"teacher-student", "quadratic"}
    assert {r["base_lr_factor"] for r in records if r["phase"] == "wrong-base"} == {0.01, 100.0}
    trials = {(r["contender"], r["trial"]) for r in records if r["phase"] == "tuning"}
    assert trials == {(name, trial) for name in ("cosine", "own") for trial in range(4)}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("a/ppo", "b/dqn"), ["ppo", "dqn"]),
        (("a/best/controller", "b/best/controller"), ["a/best", "b/best"]),
        (("a/x/controller", "b/y/controller"), ["x", "y"]),
        (("a/best", "a/best/controller"), ["best", "controller"]),
        (("controller",), ["here"]),
    ],
)
def test_controllers_have_different_names(files, names, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = _different_names(tuple(Path(f"{file}.safetensors") for file in files))
    assert list(found) == names
    assert list(found.values()) == [Path(f"{file}.safetensors") for file in files]


def test_the_same_controller_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected different files"):
        _different_names((tmp_path / "a.safetensors", tmp_path / "b" / ".." / "a.safetensors"))


def test_tune_prints_the_best_trials(capsys):
    call("tune", "--task", "teacher-student", "--contender", "polynomial", "--horizon", "20", "--trials", "4")
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("train loss  base LR")
    assert len(rows) == 4
    losses = [float(row.split()[0]) for row in rows]
    assert losses == sorted(losses)
    assert "power" in rows[0]


@pytest.mark.parametrize("shipped", [None, *sorted(SHIPPED.glob("*.safetensors"))], ids=str)
def test_a_controller_becomes_python_and_a_table(shipped, own, tmp_path, capsys):
    file = shipped or own
    call("export", str(file), str(tmp_path / "mine.py"))
    call("export", str(file), str(tmp_path / "mine.csv"))
    code = (
        "import sys, torch; sys.modules['metalr'] = None; import mine; w = torch.nn.Parameter(torch.ones(3));"
        "o = torch.optim.SGD([w], lr=0.1); s = mine.make_scheduler(o, horizon=200);"
        "[(o.zero_grad(), w.square().sum().backward(), o.step(), s.step()) for _ in range(200)];print(s.get_last_lr())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    table = [row for row in (tmp_path / "mine.csv").read_text().splitlines() if not row.startswith("#")]
    assert len(table) >= 1 + load_controller(file).decisions  # early decisions come on top


def test_resume_reads_everything_from_the_folder(tmp_path, capsys):
    call("train", *SMALL, "--folder", str(tmp_path / "run"))
    call("train", "--resume", str(tmp_path / "run"))
    assert capsys.readouterr().out.count(f"controller: {tmp_path / 'run' / 'controller.safetensors'}") == 2


def test_list_names_everything(capsys):
    call("list")
    text = capsys.readouterr().out
    for word in ("mnist1d-mlp", "cosine-restarts", "adamw", "paired", "gradient_cosine", "reduce-on-plateau"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--task", "mnist1d"], "did you mean 'mnist1d-mlp'"),
        (["train", "--schedule", "cosin"], "did you mean 'cosine'"),
        (["train", "--decisions", "7"], "got horizon 200 with 7 decisions"),
        (["compare", "--controllers", "nowhere.safetensors"], "which is not a file"),
        (["export", "nowhere", "x.safetensors"], r"got source nowhere, where there is nothing, .*\(general\): check"),
        (["export", "gone/run", "x.safetensors"], "expected a run folder.* make a run folder with `metalr train`"),
        (["compare", "--contenders", "cosin"], "did you mean 'cosine'"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        call(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", *SMALL, "--device", "foo"], "got device 'foo', which cannot be used here"),
        (["train", *SMALL, "--device", "cuda:77"], "got device 'cuda:77', which cannot be used here"),
        (["train", *SMALL, "--decisions", "0"], "got 0 decisions, expected at least 1"),
        (["train", *SMALL, "--episodes", "0"], "got a budget of 0 episodes"),
        (["train", *SMALL, "--episodes", "-3"], "got a budget of -3 episodes"),
        (["train", *SMALL, "--max-minutes", "-1"], "and -60.0 seconds, expected at least 1 episode and more than 0"),
        (["train", *SMALL, "--max-minutes", "0"], "more than 0 seconds"),
        (["train", *SMALL, "--max-minutes", "nan"], "more than 0 seconds"),
        (["compare", "--device", "foo"], "got device 'foo', which cannot be used here"),
        (["compare", "--tuning-seeds", "0"], "got tuning_seeds 0, expected at least 1"),
        (["tune", "--device", "foo"], "got device 'foo', which cannot be used here"),
        (["tune", "--tuning-seeds", "0"], "got tuning_seeds 0, expected at least 1"),
        (["tune", "--trials", "0"], "got 0 trials"),
    ],
)
def test_numbers_and_devices_that_make_no_sense(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert str(stop.value).startswith("metalr: got ")
    assert message in str(stop.value)
    assert list(tmp_path.rglob("*.json")) == []  # the corrected command finds the folder free


def test_the_same_factor_twice_is_one(tmp_path):
    arguments = ["--task", "teacher-student", "--horizon", "20", "--trials", "2", "--tuning-seeds", "1"]
    arguments += ["--report-seeds", "1", "--contenders", "constant", "--factors", "1", "1"]
    call("compare", *arguments, "--folder", str(tmp_path))
    records = [json.loads(row) for row in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert sum(r["phase"] == "wrong-base" for r in records) == len({r["cell"] for r in records if "wrong" in r["cell"]})


def test_a_shipped_controllers_name_works_where_a_file_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("export", "general", "mine.safetensors")
    assert load_card(tmp_path / "mine.safetensors") == load_card("general")
    arguments = ["--task", "teacher-student", "--horizon", "40", "--trials", "2", "--tuning-seeds", "1"]
    arguments += ["--report-seeds", "1", "--contenders", "constant", "--factors", "1"]
    call("compare", *arguments, "--controllers", "general", "--folder", "compared")
    rows = (tmp_path / "compared" / "records.jsonl").read_text().splitlines()
    assert "general" in {json.loads(row)["contender"] for row in rows}


OWN_TASK = """
import torch
from metalr import Task

def make():
    inputs = torch.linspace(-1.0, 1.0, 50)[:, None]
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return Task(net, (inputs, inputs.sin()), torch.nn.functional.mse_loss, torch.optim.NAdam,
                base_lr=0.01, horizon=30, batch_size=10, plain=True)
"""


def test_a_task_of_ones_own_by_module_and_function(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_sine.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    own = ["--task", "own_sine:make"]
    call("train", *own, "--decisions", "5", "--num-envs", "2", "--episodes", "4", "--folder", "trained")
    about = load_card(tmp_path / "trained" / "controller.safetensors")["about"]
    assert [(task["name"], task["horizon"]) for task in about["tasks"]] == [("own_sine:make", 30)]
    call("train", *own, "--decisions", "5", "--num-envs", "2", "--episodes", "4", "--folder", "trained")  # resumes
    counts = ["--trials", "2", "--tuning-seeds", "1", "--report-seeds", "2", "--factors", "1"]
    controllers = ["--controllers", "trained/controller.safetensors"]
    call("compare", *own, *counts, *controllers, "--contenders", "constant", "cosine", "--folder", "compared")
    call("find-lr", *own, "--seeds", "2")
    printed = capsys.readouterr().out
    assert "own_sine:make" in printed
    assert "suggestion" in printed
    for command, wrong in (("train", "own_sine:mak"), ("compare", "own_sin:make"), ("find-lr", "own_sine:torch")):
        with pytest.raises(SystemExit, match=r"metalr: got .*, expected .*metalr\.Task|module:function"):
            call(command, "--task", wrong)


def test_a_name_that_does_not_say_what_to_write_is_refused(tmp_path):
    call("train", *SMALL, "--folder", str(tmp_path / "run"))
    with pytest.raises(SystemExit, match=r"expected a name that ends in \.safetensors"):
        call("export", str(tmp_path / "run"), str(tmp_path / "mine.onnx"))


def test_a_closed_pipe_is_quiet():
    code = f"{sys.executable} -m metalr list | head -1"
    result = subprocess.run(code, shell=True, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "tasks"
    assert "Traceback" not in result.stderr
