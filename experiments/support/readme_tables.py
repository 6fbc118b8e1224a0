"""The tables of the documents, made from committed records, so that prose and records cannot part.

A table that follows a line `<!-- table: NAME -->` is the text that `TABLES[NAME]` makes. This writes them anew, and a
test fails where one of them differs:

    python -m experiments.support.readme_tables
"""

import json
import re
import statistics as stdlib
from collections.abc import Callable
from typing import Any

from experiments.support import records
from metalr.compare import results, selection
from metalr.compare.comparison import load
from metalr.compare.contenders import Kind
from metalr.compare.selection import Criterion
from metalr.files import write_whole

ROOT = records.FOLDER.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n)((?:\|.*\n)*)")

Row = dict[str, Any]


def demo() -> str:
    """Final train loss of the demo from every guessed LR."""
    found = load(records.FOLDER / "records" / "demo")
    (task,) = found.tasks
    by_name: dict[str, dict[float | None, float]] = {}
    for row in results.wrong_base_table(found.records, task):
        by_name.setdefault(row.contender, {})[row.factor] = row.loss.value
    factors = sorted(factor for factor in by_name["cosine"] if factor is not None)
    learned = [name for name, kind in selection.kinds_of(found.records).items() if kind is Kind.LEARNED]
    best = selection.tuned_best(found.records, task, Criterion.TRAIN)
    names = {
        "tuned cosine": f"cosine *tuned* over {found.settings.trials} LRs",
        "tuned best": f"the best of eight tuned classics ({best})",
        "cosine": "cosine from the guessed LR",
        **{name: f"**PPO controller, training {name[5:-1]}**" for name in learned},
        "state-blind policy": "state-blind policy (sees progress alone)",
        f"{learned[0]}: random policy": "random policy in the same bounds",
    }
    lines = [["final train loss, from a guessed LR of", *(f"×{factor:g}" for factor in factors)]]
    for name, label in names.items():
        shown = [f"{by_name[name].get(factor, by_name[name].get(None)):.3f}" for factor in factors]
        lines.append([label, *(f"**{value}**" if name in learned else value for value in shown)])
    return _table(lines)


def transfer() -> str:
    """Final train loss of the shipped controller and of cosine over tuned cosine's, on unseen tasks."""
    rows = _rows("transfer.jsonl")
    ratio = {(row["task"], row["contender"], row["factor"]): row["over_tuned_cosine"] for row in rows}
    factors = sorted({row["factor"] for row in rows})
    learned = next(row["contender"] for row in rows if row["contender"] != "cosine")
    header = ["task, none but the first seen in training", *(f"×{factor:g}" for factor in factors)]
    lines = [[*header, f"cosine itself: ×{factors[0]:g}", *(f"×{factor:g}" for factor in factors[1:])]]
    for task in dict.fromkeys(row["task"] for row in rows):
        own, cosine = ([_two(ratio[task, name, f], missing="inf") for f in factors] for name in (learned, "cosine"))
        lines.append([task, *(f"**{value}**" for value in own), *cosine])
    return _table(lines)


# In this order in the table: schedules, rules, optimizers under a constant LR.
_SHOWN = (
    *(
        "wsd-linear",
        "wsd",
        "hold-then-linear",
        "rex",
        "cosine",
        "linear",
        "one-cycle",
        "constant",
        "exponential",
        "step",
    ),
    *("greedy", "up-down", "reduce-on-plateau"),
    *("hypergradient", "lookahead"),
)


def all_schedules() -> str:
    """Final loss over that of the tuned best schedule of every task."""
    rows = [row for row in _rows("all_schedules.jsonl") if row["task"] != "quadratic"]
    ratio = {(row["chosen_on"], row["contender"], row["task"]): row["over_best"] for row in rows}
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [["chosen on train loss", "average", *tasks, "average on *test*, chosen on *valid*"]]
    for name in _SHOWN:
        own = [ratio.get(("train", name, task)) for task in tasks]
        on_test = [ratio.get(("valid", name, task)) for task in tasks]
        lines.append([name, _two(_geometric(own)), *map(_two, own), _two(_geometric(on_test))])
    return _table(lines)


TABLES: dict[str, Callable[[], str]] = {"demo": demo, "transfer": transfer, "all_schedules": all_schedules}


def renewed(text: str) -> str:
    """A document with every marked table made anew.

    Raises:
        KeyError: a mark names no table.
    """
    return _MARKED.sub(lambda found: found[1] + TABLES[found[2]](), text)


def marks(text: str) -> list[str]:
    """The names of the marked tables of a document."""
    return [found[2] for found in _MARKED.finditer(text)]


def _rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (records.FOLDER / "records" / name).read_text().splitlines()]


def _geometric(values: list[float | None]) -> float:
    return stdlib.geometric_mean(value for value in values if value is not None)


def _two(value: float | None, missing: str = "–") -> str:
    """In a record an infinite number is null."""
    return missing if value is None else f"{value:.2f}"


def _table(lines: list[list[str]]) -> str:
    rule = "|" + "---|" * len(lines[0])
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], rule, *shown[1:]]) + "\n"


def main() -> None:
    """Renew the tables of every document."""
    for path in DOCUMENTS:
        text = path.read_text()
        if (new := renewed(text)) != text:
            write_whole(path, new)
            print(f"{path.name}: {', '.join(marks(text))}")


if __name__ == "__main__":
    main()
