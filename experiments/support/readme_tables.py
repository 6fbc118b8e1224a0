"""The tables of the documents, made from committed records, so that prose and records cannot part.

A table that follows a line `<!-- table: NAME -->` is the text that `TABLES[NAME]` makes. This writes them anew, and a
test fails where one of them differs:

    python -m experiments.support.readme_tables
"""

import json
import math
import re
import statistics as stdlib
from collections.abc import Callable
from typing import Any

from experiments.support import records
from metalr.artefacts.controller_file import load_card
from metalr.compare import results, selection
from metalr.compare.comparison import load
from metalr.compare.contenders import Kind
from metalr.compare.selection import Criterion
from metalr.files import write_whole

ROOT = records.FOLDER.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n)((?:\|.*\n)*)")

Row = dict[str, Any]
# (contender, task, factor of the right LR) -> final loss over that of the reference; None is infinite.
_Ratios = dict[tuple[str, str, float], float | None]


def headline() -> str:
    """The shipped controller from the right LR and from guesses that are ten times off, in a few lines."""
    unseen: _Ratios = {
        (row["controller"], row["task"], row["factor"]): math.exp(row["log_regret"]) for row in rows_of("general.jsonl")
    }
    shipped: _Ratios = {
        (row["contender"], row["task"], row["factor"]): row["over_tuned_best"] for row in rows_of("transfer.jsonl")
    }
    factors = (0.1, 1.0, 10.0)
    lines = [["final train loss over the reference", *(f"guess ×{factor:g}" for factor in factors)]]

    def add(label: str, ratios: _Ratios, name: str) -> None:
        chosen = [[value for (who, _, at), value in ratios.items() if (who, at) == (name, f)] for f in factors]
        cells = [_two(None if None in values else _geometric(values), missing="inf") for values in chosen]
        lines.append([label, *(f"**{cell}**" if label[0] == "*" else cell for cell in cells)])

    add(
        f"**`general`** on {_count(unseen)} unseen random tasks; reference: the best of 15 LRs", unseen, shipped_stage()
    )
    add("one LR for each kind of optimizer, fitted on the tasks of the training", unseen, "calibrated")
    add("cosine from the guess", unseen, "cosine")
    reference = "the best of nine tuned schedules"
    families = len({task.partition(",")[0] for _, task, _ in shipped})
    label = f"**`general`** on {families} shipped tasks in {_count(shipped)} settings; reference: {reference}"
    add(label, shipped, "general")
    add("cosine from the guess", shipped, "cosine")
    return _table(lines)


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
        "tuned best": f"the best of eight classics, their LRs tuned so ({best})",
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
    """Final train loss of the shipped controller and of two schedules over the tuned best's, on shipped tasks."""
    rows = rows_of("transfer.jsonl")
    ratio = {(row["task"], row["contender"], row["factor"]): row["over_tuned_best"] for row in rows}
    factors = sorted({row["factor"] for row in rows})
    names = ["general", "wsd-linear", "cosine"]
    titles = [
        f"{name}: ×{factor:g}" if factor == factors[0] else f"×{factor:g}" for name in names for factor in factors
    ]
    lines = [["over the tuned best, from", *titles]]
    for task in dict.fromkeys(row["task"] for row in rows):
        cells = [_two(ratio[task, name, factor], missing="inf") for name in names for factor in factors]
        count = len(factors)
        lines.append([task, *(f"**{value}**" for value in cells[:count]), *cells[count:]])
    return _table(lines)


def general() -> str:
    """Final train loss over that of the best LR, by guess, on the meta-validation family."""
    rows = rows_of("general.jsonl")
    shipped = shipped_stage()
    names = {
        shipped: "**`general`**",
        "calibrated": "calibrated: one LR for each kind of optimizer, whatever the guess",
        "base schedule": "its base schedule from the guess (warmup, plateau, linear end)",
        "cosine": "cosine from the guess",
        "edge rule": "an edge rule, written by hand",
        f"{shipped}, no losses": "`general` where no losses are passed",
        f"{shipped}, no horizon": "`general` where the horizon is unknown; reference: the best constant LR",
        "base schedule, no horizon": "a constant LR from the guess; the same reference",
    }
    factors = sorted({row["factor"] for row in rows})
    lines = [["final train loss over that of the best LR, from a guess of", *(f"×{factor:g}" for factor in factors)]]
    for name, label in names.items():
        cells = []
        for factor in factors:
            regrets = [r["log_regret"] for r in rows if r["controller"] == name and r["factor"] == factor]
            cells.append(f"{_two(math.exp(stdlib.mean(regrets)))} ({_two(math.exp(stdlib.median(regrets)))})")
        lines.append([label, *(f"**{cell}**" if name == shipped else cell for cell in cells)])
    return _table(lines)


# In this order in the table: schedules, rules, optimizers under a constant LR.
SHOWN = (
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
    rows = [row for row in rows_of("all_schedules.jsonl") if row["task"] != "quadratic"]
    ratio = {(row["chosen_on"], row["contender"], row["task"]): row["over_best"] for row in rows}
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [["chosen on train loss", "average", *tasks, "average on *test*, chosen on *valid*"]]
    for name in SHOWN:
        own = [ratio.get(("train", name, task)) for task in tasks]
        on_test = [ratio.get(("valid", name, task)) for task in tasks]
        lines.append([name, _two(_geometric(own)), *map(_two, own), _two(_geometric(on_test))])
    return _table(lines)


# In this order in the table of speeds.
_MODELS = ("MLP 40-32-32-10", "MLP 40-100-100-10", "Conv1d", "Conv2d", "GRU", "byte transformer")


def speed() -> str:
    """Inner steps per second of the plain loop and of the engine."""
    rows: dict[tuple[str, int, bool], Row] = {}
    for row in rows_of("benchmark_throughput-cpu.jsonl"):
        if row["what"] == "engine":  # the first of a model is its usual optimizer
            rows.setdefault((row["model"], row["num_runs"], row["compiled"]), row)
    lines = [["network, batch", "plain loop", "engine, 1 run", "32 runs", "32 runs, compiled"]]
    for model in _MODELS:
        one = rows[model, 1, False]
        cells = [_thousands(one["plain_steps_per_s"]), _thousands(one["steps_per_s"])]
        for compiled in (False, True):
            many = rows.get((model, 32, compiled))
            cells.append(f"{_thousands(many['steps_per_s'])} ({many['over_plain']:.1f}×)" if many else "")
        lines.append([f"{model}, {one['batch_size']}", *cells])
    return _table(lines)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "general": general,
    "demo": demo,
    "transfer": transfer,
    "all_schedules": all_schedules,
    "speed": speed,
}


def renewed(text: str) -> str:
    """A document with every marked table made anew.

    Raises:
        KeyError: a mark names no table.
    """
    return _MARKED.sub(lambda found: found[1] + TABLES[found[2]](), text)


def without_tables(text: str) -> str:
    """A document without its marked tables."""
    return _MARKED.sub("", text)


def marks(text: str) -> list[str]:
    """The names of the marked tables of a document."""
    return [found[2] for found in _MARKED.finditer(text)]


def shipped_stage() -> str:
    """The name of the shipped controller among those of `general.jsonl`."""
    return load_card("general")["about"]["stage"]


def _count(ratios: _Ratios) -> int:
    """How many tasks there are."""
    return len({task for _, task, _ in ratios})


def rows_of(name: str) -> list[Row]:
    """The rows of a record."""
    return [json.loads(line) for line in (records.FOLDER / "records" / name).read_text().splitlines()]


def _geometric(values: list[float | None]) -> float:
    return stdlib.geometric_mean(value for value in values if value is not None)


def _two(value: float | None, missing: str = "–") -> str:
    """In a record an infinite number is null."""
    return missing if value is None else f"{value:.2f}"


def _thousands(value: float) -> str:
    return f"{value / 1000.0:.2g} k"


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
