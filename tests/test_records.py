"""The folder of a run: begun once, continued by the same run, closed to any other."""

import json
import math

import pytest

from metalr.records import CONFIG, RunFolder, difference, open_folder, read_config

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
