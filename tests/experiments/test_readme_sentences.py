"""Every measured number in the prose of the documents comes from a record, and no other stands there."""

import json
import re
import shutil

import pytest

from experiments.support import readme_sentences, records
from experiments.support.readme_sentences import SENTENCES, SETTINGS, joined, missing, unfounded
from experiments.support.readme_tables import DOCUMENTS

TEXTS = {path.name: path.read_text() for path in DOCUMENTS}


def test_sentences_are_those_of_their_records():
    assert missing(TEXTS) == {}


@pytest.mark.parametrize("name", TEXTS)
def test_no_other_number_is_measured(name):
    assert unfounded(name, TEXTS[name]) == []


def test_changed_digits_are_noticed():
    """In each sentence another digit, so that the records are read once."""
    texts = {name: joined(text) for name, text in TEXTS.items()}
    for sentence in SENTENCES.values():
        text = joined(sentence.text())
        place = max(found.start() for found in re.finditer(r"\d", text))
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        texts[sentence.document] = texts[sentence.document].replace(text, changed)
    assert set(missing(texts)) == set(SENTENCES)


def test_a_new_number_without_a_record_is_noticed():
    for number in ("1.25", "12 %", "3 times", "×7"):
        assert unfounded("concepts.md", f"{TEXTS['concepts.md']}\nIt is {number.replace('×7', '7×')} better.\n")
    assert unfounded("concepts.md", f"{TEXTS['concepts.md']}\nIt has 40 of them in `x = 0.5`.\n") == []


def test_changed_records_are_noticed(tmp_path, monkeypatch):
    shutil.copytree(records.FOLDER / "records", tmp_path / "records")
    path = tmp_path / "records" / "knots_transfer.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    next(r for r in rows if r["schedule"] == "knots by PES" and r["horizon"] == 1600)["loss"] += 0.01
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    assert set(missing(TEXTS)) == {"knots_transfer"}


def test_every_setting_stands_in_its_document():
    """An exception that is no longer needed would hide a number that comes later."""
    for name, parts in SETTINGS.items():
        assert name in TEXTS
        assert all(part in joined(TEXTS[name]) for part in parts), name


def test_what_is_missing_and_unfounded_is_printed(capsys, monkeypatch):
    readme_sentences.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(readme_sentences, "SETTINGS", {})
    readme_sentences.main()
    assert "faq.md states without a record: …" in capsys.readouterr().out
