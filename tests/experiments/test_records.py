"""Records are strict JSON that says where and with what it was made; the committed ones are read here."""

import gzip
import json
import math
import platform
from pathlib import Path

import pytest
import torch

from experiments.support import records
from metalr.records import from_line

COMMITTED = [path for path in sorted((records.FOLDER / "records").rglob("*")) if ".json" in path.name]


@pytest.fixture
def here(monkeypatch, tmp_path):
    """An empty working folder, and a repository without records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "FOLDER", tmp_path / "experiments")
    return tmp_path


def refuse(token: str) -> None:
    raise AssertionError(f"{token} is not JSON")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_records_are_strict_json(path):
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    assert text.endswith("\n")
    for part in [text] if path.suffix == ".json" else text.splitlines():
        assert isinstance(json.loads(part, parse_constant=refuse), dict)


def test_all_kinds_of_committed_records_are_met():
    assert {"".join(path.suffixes) for path in COMMITTED} == {".json", ".jsonl", ".jsonl.gz"}
    assert len(COMMITTED) > 15


def test_a_record_says_where_and_with_what_it_was_made(here):
    path = records.write("question", [{"seed": 3, "loss": 0.5}], device="cpu", smoke=False)
    assert path == here / "experiments" / "records" / "question.jsonl"
    (row,) = records.read(path)
    assert (row["experiment"], row["seed"], row["loss"], row["device"]) == ("question", 3, 0.5, "cpu")
    assert row["hardware"] == records.hardware("cpu") != ""
    assert row["torch"] == torch.__version__
    assert row["python"] == platform.python_version()
    assert row["torch_threads"] == torch.get_num_threads()


def test_a_row_is_stamped_with_the_device_that_it_was_computed_on(here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    rows = [{"seed": 0}, {"seed": 0, "device": "cuda:1"}]
    first, second = records.read(records.write("q", rows, device="cpu", smoke=False))
    assert (first["device"], first["hardware"]) == ("cpu", records.hardware("cpu"))
    assert (second["device"], second["hardware"]) == ("cuda:1", "GPU 1")


def test_a_row_that_is_written_again_keeps_its_circumstances(here):
    old = {"experiment": "q", "seed": 0, "device": "cpu", "torch": "1.0", "commit": "abc"}
    path = records.write("q", [old, {"seed": 1}], device="cpu", smoke=False)
    first, second = records.read(path)
    assert first == old
    assert second["torch"] == torch.__version__
    records.write("q", records.recorded("q", smoke=False), device="cpu", smoke=False)
    assert records.read(path) == [first, second]


def test_a_row_without_a_seed_is_refused(here):
    with pytest.raises(ValueError, match=r"got a row of \['loss'\], expected a seed"):
        records.write("q", [{"loss": 1.0}], device="cpu", smoke=False)
    assert records.recorded("q", smoke=False) == []


def test_infinity_is_null_and_a_null_loss_is_infinite(here):
    path = records.write("q", [{"seed": None, "loss": math.inf, "low": math.nan}], device="cpu", smoke=False)
    assert '"loss":null,"low":null' in path.read_text()
    (row,) = records.read(path)
    assert row["loss"] == math.inf
    assert row["low"] is None
    assert row["seed"] is None


def test_a_smoke_run_reads_and_writes_beside_the_run_folders(here):
    records.write("q", [{"seed": 0}], device="cpu", smoke=False)
    path = records.write("q", [{"seed": 1}], device="cpu", smoke=True)
    assert path.resolve() == here / "runs" / "q-smoke.jsonl"
    assert records.recorded("q", smoke=True) == []
    assert [row["seed"] for row in records.recorded("q", smoke=False)] == [0]


def test_a_file_is_replaced_as_a_whole(here):
    path = records.write("q", [{"seed": 0}], device="cpu", smoke=False)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        records.write("q", [{"seed": 1}, {"seed": 2, "loss": object()}], device="cpu", smoke=False)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_compressed_records_are_the_same_bytes_each_time(here):
    rows = [{"cell": "a", "train_loss": math.inf}]
    first = records.write_lines(Path("a.jsonl.gz"), rows).read_bytes()
    assert first == records.write_lines(Path("a.jsonl.gz"), rows).read_bytes()
    assert from_line(gzip.decompress(first).decode()) == rows[0]
