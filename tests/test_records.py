"""The folder of a run: begun once, continued by the same run, closed to any other."""

import json
import math
import subprocess
import sys

import pytest

from metalr.files import held
from metalr.records import CONFIG, CURVES, RECORDS, RunFolder, difference, open_folder, read_config, read_records

RUN = {"agent": "ppo", "settings": {"gamma": 1.0}, "tasks": [{"name": "a", "horizon": 20}], "versions": {"torch": "1"}}


def test_a_new_folder_gets_the_config(tmp_path):
    assert open_folder(tmp_path / "deep" / "run", RUN) == RUN
    assert json.loads((tmp_path / "deep" / "run" / CONFIG).read_text()) == RUN


def test_the_same_run_continues_with_the_versions_it_began_with(tmp_path):
    open_folder(tmp_path, RUN)
    assert open_folder(tmp_path, {**RUN, "versions": {"torch": "2"}}) == RUN
    assert read_config(tmp_path, "training") == RUN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"gamma": 0.9}}, r"\(changed: gamma was 1\.0, is 0\.9\)"),
        ({"tasks": [{"name": "a", "horizon": 40}]}, r"\(changed: tasks\.0\.horizon was 20, is 40\)"),
        ({"tasks": []}, r"\(changed: tasks was "),
        ({"seed": 1}, r"\(changed: seed was null, is 1\)"),
        ({"kind": "comparison"}, "of a training, expected one of a comparison"),
    ],
)
def test_another_run_is_refused_and_told_why(change, message, tmp_path):
    open_folder(tmp_path, RUN)
    before = (tmp_path / CONFIG).read_bytes()
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, {**RUN, **change})
    assert (tmp_path / CONFIG).read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "of another program"}'])
def test_a_foreign_config_is_left_alone(content, tmp_path):
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(ValueError, match="already holds files but no run"):
        open_folder(tmp_path, RUN)
    with pytest.raises(ValueError, match="with nothing readable, expected a training"):
        read_config(tmp_path, "training")
    assert (tmp_path / CONFIG).read_text() == content


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="which is a file, expected a folder"):
        open_folder(tmp_path / "run", RUN)


def test_a_comparison_does_not_move_into_a_training(tmp_path):
    open_folder(tmp_path, RUN)
    with pytest.raises(ValueError, match="of a training, expected one of a comparison"):
        RunFolder(tmp_path, "comparison", {"seed": 0})


def test_differences_are_found_where_they_are():
    assert difference({"a": [1, 2]}, {"a": [1, 3]}) == ["a was [1, 2], is [1, 3]"]
    assert difference({"a": [{"b": 1}]}, {"a": [{"b": 1}, {"b": 2}]}) == ['a.1 was null, is {"b": 2}']
    assert difference(RUN, RUN) == []
    assert len(difference({"a": "x" * 99}, {"a": math.pi})[0]) < 80


# Damage


def lines_of(folder, *records: dict) -> None:
    (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_records_are_read_as_a_set(tmp_path):
    lines_of(tmp_path, {"cell": "a", "x": 1}, {"cell": "b", "x": 2}, {"cell": "a", "x": 1})
    assert read_records(tmp_path / RECORDS) == [{"cell": "a", "x": 1}, {"cell": "b", "x": 2}]
    open_folder(tmp_path / "run", {"kind": "test", "settings": {}})
    lines_of(tmp_path / "run", {"cell": "a", "x": 1}, {"cell": "a", "x": 1})
    assert len(RunFolder(tmp_path / "run", "test", {}).records) == 1


@pytest.mark.parametrize("bad", [b"{]", b"[1, 2]", b"3", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_bad_line_is_named(bad, tmp_path):
    (tmp_path / RECORDS).write_bytes(b'{"cell": "a"}\n' + bad + b'\n{"cell": "b"}\n')
    with pytest.raises(ValueError, match=rf"{RECORDS} with line 2 damaged .*delete that line"):
        read_records(tmp_path / RECORDS)


def test_a_line_of_no_cell_is_named(tmp_path):
    lines_of(tmp_path, {"cell": "a"}, {"x": 1})
    with pytest.raises(ValueError, match="with line 2 without its cell"):
        read_records(tmp_path / RECORDS)


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run", "test", {})
    folder.append([{"cell": "a"}])
    before = (tmp_path / "run" / RECORDS).read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        folder.append([{"cell": "b"}], [{"cell": "b"}])
    assert (tmp_path / "run" / RECORDS).read_bytes() == before
    assert not (tmp_path / "run" / CURVES).exists()


# One process at a time

HOLD = "import sys, time\nfrom metalr.files import held\nwith held(sys.argv[1]):\n    print('held', flush=True)\n"
HOLD += "    time.sleep(60)\n"


def test_a_folder_is_one_processs_at_a_time_even_if_that_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="to which another process is writing"), held(tmp_path):
            pass
        with pytest.raises(ValueError, match="another process"), RunFolder.held(tmp_path, "test", {}):
            pass
        other.kill()
    with RunFolder.held(tmp_path, "test", {}) as folder:
        assert folder.records == []


def test_a_run_that_fails_before_it_wrote_anything_leaves_the_folder_to_the_next(tmp_path):
    with pytest.raises(RuntimeError), RunFolder.held(tmp_path / "run", "test", {"seed": 0}):
        raise RuntimeError("no such device")
    assert not (tmp_path / "run").exists()

    def interrupted() -> None:
        with RunFolder.held(tmp_path / "run", "test", {"seed": 1}) as folder:
            folder.append([{"cell": "a"}])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_config(tmp_path / "run", "test")["settings"] == {"seed": 1}
