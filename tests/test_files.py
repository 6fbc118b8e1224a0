"""Files are whole or not there."""

import errno
import os

import pytest

from metalr.agents.outer_loop import MetaGradients, MetaTrainer, OuterConfig
from metalr.artefacts.controller_file import save_controller
from metalr.artefacts.replay_table import write_replay_csv
from metalr.artefacts.standalone import write_standalone
from metalr.control.reference import ScheduleController
from metalr.files import whole_file, write_whole
from metalr.learned.schedules import ConstantLR
from metalr.records import RunFolder
from metalr.schedules import Linear
from metalr.tasks.catalog import make_task


def trainer() -> MetaTrainer:
    learned = ConstantLR()
    return MetaTrainer(learned, MetaGradients(learned, [make_task("quadratic", horizon=2)]), OuterConfig(1))


CONTROLLER = ScheduleController(Linear(), decisions=5)
WRITERS = {
    "note.txt": lambda path: write_whole(path, "new"),
    "controller.safetensors": lambda path: save_controller(path, CONTROLLER),
    "controller.py": lambda path: write_standalone(CONTROLLER, {"about": {}}, path),
    "controller.csv": lambda path: write_replay_csv(CONTROLLER, None, path),
    "checkpoint.pt": lambda path: trainer().save(path),
    "config.json": lambda path: RunFolder(path.parent, "test", {"seed": 0}),
}


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that takes what a program gives it and says only at the end that there was no room."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_no_file(name, tmp_path):
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_else_is_left_beside_the_file(name, tmp_path):
    WRITERS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("full_disk")
def test_the_old_file_outlives_a_failed_write(tmp_path):
    (tmp_path / "note.txt").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "note.txt", "new")
    assert (tmp_path / "note.txt").read_text() == "old"


def stop_half_way(path, error) -> None:
    with whole_file(path) as partial:
        partial.write_text("ne")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_stops_half_way_leaves_the_old_file(error, tmp_path):
    (tmp_path / "note.txt").write_text("old")
    with pytest.raises(error):
        stop_half_way(tmp_path / "note.txt", error)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    assert (tmp_path / "note.txt").read_text() == "old"


def test_text_keeps_its_line_ends_and_bytes_their_bits(tmp_path):
    write_whole(tmp_path / "a", "é\n")
    write_whole(tmp_path / "b", b"\xff\r\n")
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\xff\r\n"


def test_the_ending_stays_for_writers_that_look_at_it(tmp_path):
    with whole_file(tmp_path / "model.zip") as partial:
        assert partial.suffix == ".zip"
        partial.write_bytes(b"")
