"""The harness, the tables and the figures that experiments share."""

import sys
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

from experiments.support import harness, plotting
from experiments.support.tables import by_factor, print_table


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of no experiment."""

    steps: int = 100
    """Inner steps."""

    def small(self) -> "Args":
        return replace(self, steps=2)


@pytest.fixture
def start(monkeypatch):
    """Runs a command that keeps its options."""

    def started(*line: str) -> Args:
        kept: list[Args] = []

        def main(args: Args) -> None:
            assert torch.get_num_threads() == 1
            kept.append(args)

        monkeypatch.setattr(sys, "argv", ["experiment", *line])
        harness.run(main, Args)
        return kept[0]

    return started


def test_an_experiment_gets_the_options_of_its_command(start):
    torch.set_num_threads(2)
    assert start("--steps", "7") == Args(steps=7)


def test_a_smoke_run_gets_small_numbers(start):
    assert start("--smoke") == Args(smoke=True, steps=2)


def test_the_help_is_the_docstring_of_the_file(start, capsys):
    with pytest.raises(SystemExit):
        start("--help")
    shown = capsys.readouterr().out
    assert "The harness, the tables and the figures that experiments share." in shown
    assert "Inner steps." in shown
    assert "A quick run with small numbers" in shown


def test_a_table_is_aligned(capsys):
    print_table([{"name": "a", "loss": 1 / 3}, {"name": "long", "lr": 1 / 3, "loss": None}], ["name", "loss", "lr"])
    lines = ["name  loss        lr", "a     0.33333333", "long  -           0.3333"]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_table_without_rows_has_a_header(capsys):
    print_table([], ["a", "bc"])
    assert capsys.readouterr().out == "a  bc\n"


def test_a_contender_without_a_factor_stands_in_every_column():
    rows = [
        {"task": "t", "contender": "tuned", "factor": None, "loss": 1.0},
        {"task": "t", "contender": "a", "factor": 0.1, "loss": 2.0},
        {"task": "t", "contender": "a", "factor": 10.0, "loss": 3.0},
    ]
    assert by_factor(rows, lambda row: str(row["loss"]), factors=(0.1, 10.0)) == [
        {"task": "t", "contender": "tuned", "x0.1": "1.0", "x10": "1.0"},
        {"task": "t", "contender": "a", "x0.1": "2.0", "x10": "3.0"},
    ]


def test_panels_stand_in_rows(tmp_path, monkeypatch):
    figure, axes = plotting.panels(2, rows=2, height=2.0)
    axes[3].plot([0, 1], [0, 1], label="line")
    plotting.legend(figure, axes[3])
    figure.draw_without_rendering()
    places = [axis.get_position() for axis in axes]
    assert places[0].x1 < places[1].x0
    assert places[2].y1 < places[0].y0
    assert places[2].x0 == pytest.approx(places[0].x0)
    monkeypatch.chdir(tmp_path)
    assert plotting.save(figure, "q", smoke=True).stat().st_size > 5000
    assert (tmp_path / "runs" / "q-smoke.png").is_file()
