"""Every marked table of the documents says what its records say."""

import json
import shutil

import pytest

from experiments.support import readme_tables, records

TEXTS = {path.name: path.read_text() for path in readme_tables.DOCUMENTS}


@pytest.mark.parametrize("name", TEXTS)
def test_tables_are_those_of_their_records(name):
    assert readme_tables.renewed(TEXTS[name]) == TEXTS[name]


def test_every_table_is_marked_somewhere():
    found = [mark for text in TEXTS.values() for mark in readme_tables.marks(text)]
    assert sorted(found) == sorted(readme_tables.TABLES)


@pytest.mark.parametrize("name", readme_tables.TABLES)
def test_one_changed_digit_is_noticed(name):
    text = next(text for text in TEXTS.values() if name in readme_tables.marks(text))
    start = text.index(f"<!-- table: {name} -->")
    row = text.index("\n| ", text.index("|---|", start)) + 1
    place = next(i for i in range(text.index(".", row), len(text)) if text[i].isdigit())
    changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
    assert readme_tables.renewed(changed) == text != changed


def test_changed_records_are_noticed(tmp_path, monkeypatch):
    shutil.copytree(records.FOLDER / "records", tmp_path / "records")
    path = tmp_path / "records" / "all_schedules.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    shown = next(row for row in rows if (row["contender"], row["task"]) == ("wsd-linear", "digits-mlp"))
    shown["over_best"] += 0.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    assert readme_tables.renewed(TEXTS["results.md"]) != TEXTS["results.md"]


def test_an_unknown_mark_is_refused():
    with pytest.raises(KeyError, match="nothing"):
        readme_tables.renewed("<!-- table: nothing -->\n| a |\n")
