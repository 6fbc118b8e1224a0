"""The parts of a report: which tables a comparison has as far as it has got, and what is to be said about it."""

import math
import re
from dataclasses import replace

from metalr.compare import results, selection
from metalr.compare.calibrated import NAME as CALIBRATED
from metalr.compare.comparison import Comparison
from metalr.compare.contenders import Kind
from metalr.compare.results import WrongBaseRow
from metalr.compare.run_record import Phase
from metalr.compare.selection import Criterion
from metalr.compare.statistics import MIN_TRAINING_SEEDS
from metalr.reports import tables
from metalr.reports.text_table import Grid


def all_grids(comparison: Comparison) -> list[Grid]:
    """Every table of a comparison, task by task, as far as it has got."""
    found = []
    for task in comparison.tasks:
        part = part_of(comparison, task)
        if reached(part, task, "report"):
            found += [tables.result_grid(part, task, criterion) for criterion in Criterion]
        if reached(part, task, "wrong-base"):
            found += wrong_base_grids(part, task)
        if reached(part, task, "report"):
            found += [tables.price_grid(part, task), tables.time_grid(part, task)]
    return found + average_grids(comparison) + learner_grids(comparison)


def part_of(comparison: Comparison, task: str) -> Comparison:
    """The comparison with the records of one task: tables look through all of them many times."""
    return replace(comparison, records=[record for record in comparison.records if record.task == task])


def average_grids(comparison: Comparison) -> list[Grid]:
    """The averages over several tasks, once all of them are finished."""
    if len(comparison.tasks) < 2 or unfinished(comparison, "report"):
        return []
    return [tables.average_grid(comparison, criterion) for criterion in Criterion]


def unfinished(comparison: Comparison, phase: Phase) -> list[str]:
    """The tasks that have not reached a phase."""
    return [task for task in comparison.tasks if not reached(comparison, task, phase)]


def wrong_base_grids(comparison: Comparison, task: str) -> list[Grid]:
    """Final losses, regrets and, where there is one, ratios to the calibrated setting, from every base LR."""
    shown = [tables.LOSS, tables.REGRET]
    if selection.untuned_runs(comparison.records, task, CALIBRATED):
        shown.append(tables.OVER_CALIBRATED)
    return [tables.wrong_base_grid(comparison, task, shown=column) for column in shown]


def reached(comparison: Comparison, task: str, phase: Phase) -> bool:
    """Whether a comparison that may have been stopped has records of a phase, and the reference to read them by."""
    if not selection.contenders_of(comparison.records, task, phase):
        return False
    reported = {record.seed for record in selection.select(comparison.records, task=task, phase=phase)}
    references = [selection.tuned_best_runs(comparison.records, task, criterion) for criterion in Criterion]
    return all(reported <= {run.seed for run in runs} for runs in references)


def learners_of(comparison: Comparison) -> dict[str, list[str]]:
    """Learner -> its controllers, those whose names differ in a number at their end: `ppo-0`, `ppo (seed 1)`."""
    found: dict[str, list[str]] = {}
    for name, kind in selection.kinds_of(comparison.records).items():
        match = re.fullmatch(r"(.*?)[\s_/(-]+(?:seed[\s_=-]*)?\d+\)?", name)
        if kind is Kind.LEARNED and match and match[1]:
            found.setdefault(match[1], []).append(name)
    return found


def learner_grids(comparison: Comparison) -> list[Grid]:
    """How good each learner is over its training seeds, with an interval over everything that was drawn."""
    learners = {n: own for n, own in learners_of(comparison).items() if len(own) >= MIN_TRAINING_SEEDS}
    if not learners or not comparison.settings.factors or unfinished(comparison, "wrong-base"):
        return []
    rows = results.learner_table(comparison.records, comparison.tasks, learners)
    factors = sorted({row.factor for row in rows})
    by_name = {name: {row.factor: row for row in rows if row.learner == name} for name in learners}
    drawn = "tasks and evaluation seeds" if len(comparison.tasks) > 1 else "evaluation seeds"
    note = (
        f"loss / tuned best's, geometric mean [95 %]; the interval is over training seeds, {drawn}, in this order (a "
        "hierarchical bootstrap), so it is about the learner and not about one controller. Controllers whose names "
        "differ in a number at the end count as training seeds of one learner."
    )
    return [
        Grid(
            "Learners over their training seeds: train loss ratio when the base LR is wrong",
            ["learner", "training seeds", *(f"x{factor:g}" for factor in factors)],
            [
                [name, str(len(learners[name])), *(tables.interval(own[f].over_reference) for f in factors)]
                for name, own in by_name.items()
            ],
            [note],
            frozenset(range(len(by_name))),
        )
    ]


def few_seeds(comparison: Comparison) -> list[str]:
    """A sentence for each learner with more than one training seed and too few for an interval."""
    return [
        f"{name} has {len(own)} controllers whose names differ in a number at the end, taken for training seeds: "
        f"too few for an interval over them, which takes {MIN_TRAINING_SEEDS}."
        for name, own in learners_of(comparison).items()
        if 1 < len(own) < MIN_TRAINING_SEEDS
    ]


def settings_line(comparison: Comparison) -> str:
    """One sentence about the budget."""
    s = comparison.settings
    more = f", {s.extension} more for everyone where a best LR lies on an edge" if s.extension else ""
    return (
        f"{s.trials} trials for each tuned contender over its LR (x{s.lr_range[0]:.3g} to x{s.lr_range[1]:.3g} of the "
        f"base LR) and its parameters{more}; {s.tuning_seeds} tuning seeds, {s.report_seeds} fresh seeds."
    )


def headline(comparison: Comparison) -> str:
    """What came out, in a sentence or two on the train loss: each controller's, else that of the tuned best."""
    waiting = unfinished(comparison, "report")
    if waiting:
        return f"Not finished: {', '.join(waiting)} had no report yet when this page was written."
    best = {task: selection.tuned_best(comparison.records, task, Criterion.TRAIN) for task in comparison.tasks}
    names = "; ".join(f"{name} on {task}" if len(best) > 1 else name for task, name in best.items())
    told = [f"The tuned best schedule by train loss is {names}, after {comparison.settings.trials} trials."]
    kinds = selection.kinds_of(comparison.records)
    learned = [name for name, kind in kinds.items() if kind is Kind.LEARNED]
    if comparison.settings.factors and not unfinished(comparison, "wrong-base"):
        told += [_of_controller(comparison, name) for name in learned[:3]]
        if len(learned) > 3:
            told.append(f"{len(learned) - 3} more controllers are in the tables.")
    return " ".join(told)


def _of_controller(comparison: Comparison, name: str) -> str:
    rows: dict[str, list[WrongBaseRow]] = {}
    for task in comparison.tasks:
        found = results.wrong_base_table(part_of(comparison, task).records, task, [name])
        rows[task] = [row for row in found if row.contender == name and row.factor is not None]
    factors = sorted({row.factor for own in rows.values() for row in own if row.factor is not None})
    if not factors:
        return f"{name} has no runs from wrong base LRs."

    def mean(factor: float) -> float:
        logs = [math.log(row.over_best.value) for own in rows.values() for row in own if row.factor == factor]
        return math.exp(sum(logs) / len(logs))

    right = min(factors, key=lambda factor: abs(math.log(factor)))
    place = "the right base LR" if right == 1.0 else f"x{right:g} of the base LR"
    average = " (geometric mean over tasks)" if len(comparison.tasks) > 1 else ""
    ratios = [mean(factor) for factor in factors]
    wrong = f", and {min(ratios):.3g} to {max(ratios):.3g} from x{factors[0]:g} to x{factors[-1]:g} of it"
    return (
        f"{name}, without trials, has {mean(right):.3g} times that schedule's loss from {place}"
        f"{wrong if len(factors) > 1 else ''}{average}."
    )
