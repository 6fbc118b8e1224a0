"""The sentences of the documents that state measured numbers, made from committed records.

Each stands in its document word for word; line breaks do not count. A test fails where one of them does not, and where
a document states a measured number that is neither in such a sentence nor in a table of `readme_tables`. This prints
what is missing:

    python -m experiments.support.readme_sentences
"""

import math
import re
import statistics as stdlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from experiments.support import readme_tables
from experiments.support.readme_tables import DOCUMENTS, Row, rows_of, shipped_stage
from metalr.compare.comparison import load


class Sentence(NamedTuple):
    """A part of a document.

    Attributes:
        document: name of its file.
        text: makes it from the records.
    """

    document: str
    text: Callable[[], str]


# Document -> what stands in its prose and was not measured: settings, bounds, versions.
SETTINGS: dict[str, tuple[str, ...]] = {
    "README.md": ("guess ×0.1", "Python 3.11"),
    "concepts.md": ("decides 40 times a run",),
    "faq.md": ("1/1000 to 1000 times",),
    "integrations.md": ("at most 0.3 times the lesser", "by a factor of 1.3"),
    "results.md": ("1/20 and 20 times",),
}
_MEASURED = re.compile(r"(?<![\w.])\d+(?:\.\d+|(?= ?%)|(?= times)|(?=×))")


def _general() -> str:
    def over(names: Iterable[str], factor: float) -> list[float]:
        rows = rows_of("general.jsonl")
        return [
            100.0
            * (
                math.exp(stdlib.mean(r["log_regret"] for r in rows if (r["controller"], r["factor"]) == (n, factor)))
                - 1.0
            )
            for n in names
        ]

    own = [value for factor in (0.1, 10.0) for value in over([shipped_stage()], factor)]
    others = [value for factor in (0.1, 10.0) for value in over(["base schedule", "cosine"], factor)]
    return (
        f"From guesses that are ten times off the controller costs {min(own):.0f} to {max(own):.0f} %, the schedules "
        f"cost {min(others):.0f} to {max(others):.0f} %."
    )


def _limits() -> str:
    rows = rows_of("general_limits.jsonl")

    def held(name: str) -> float:
        return stdlib.mean(stdlib.mean(row["held_out"]) for row in rows if row["variant"] == name)

    one = "one LR, a quarter of the run"
    seen = stdlib.mean(row["trained_on"] for row in rows if row["variant"] == one)
    fewer = [held(f"the same, {count} tasks") for count in (125, 250, 500)]
    (ranges,) = (row for row in rows if row["variant"] == "ranges")
    return (
        f"From the first quarter of a run at one LR, a network that learned from 125, 250, 500 and 1,000 tasks names "
        f"an LR whose regret on tasks that it has not seen is {fewer[0]:.2f}, {fewer[1]:.2f}, {fewer[2]:.2f} and "
        f"{held(one):.2f} in log loss; on those that it has seen it ends at {seen:.2f}, so that more tasks would not "
        f"help, and neither does a wider network ({held('the same, width 128'):.2f}). Observations averaged over six "
        f"seeds, which have little noise left, give {held('the same, mean of six seeds'):.2f}; three LRs at once, a "
        f"factor of five apart, {held('three LRs, a quarter of the run'):.2f}; seven, "
        f"{held('seven LRs, a quarter of the run'):.2f}; one LR watched to the end of the run, "
        f"{held('one LR, the whole run'):.2f}. Before the first update it is {held('before the first update'):.2f}. "
        f"None of {ranges['observations']:,} observations on the other family leaves the range of those in training, "
        f"so that a controller cannot tell from it when to trust itself less."
    )


def _transfer() -> str:
    rows = {(row["task"], row["contender"], row["factor"]): row["over_tuned_best"] for row in rows_of("transfer.jsonl")}
    low = 100.0 * (rows["mnist1d-mlp, T 800", "general", 0.1] - 1.0)
    lost = [v for (task, who, _), v in rows.items() if who == "general" and not task.startswith("mnist1d")]
    worst = max(v for (_, who, factor), v in rows.items() if who != "general" and factor != 1.0 and v is not None)
    return (
        f"at T = 800 a guess that is ten times too low costs {low:.0f} %. It loses on digits and teacher-student, "
        f"whose train loss goes towards zero: tuned schedules end {min(lost):.1f} to {max(lost):.1f} times lower "
        f"there, and schedules from a wrong guess up to {worst:.0f} times higher."
    )


def _demo() -> str:
    found = load(readme_tables.records.FOLDER / "records" / "demo")
    untrained = stdlib.mean(record.untrained_loss for record in found.records)
    return f"a diverged run counting as the untrained network ({untrained:.2f})"


def _all_schedules() -> str:
    count = len({row["contender"] for row in rows_of("all_schedules.jsonl")})
    return f"{len(readme_tables.SHOWN)} of {count} contenders"


def _which_schedule() -> str:
    rows = [row for row in rows_of("all_schedules.jsonl") if row["task"] != "quadratic" and row["chosen_on"] == "train"]
    ratio = {(row["contender"], row["task"]): row["over_best"] for row in rows}
    tasks = {row["task"] for row in rows}
    wsd = [ratio["wsd-linear", task] for task in tasks]
    name, worst = max(((task, ratio["step", task]) for task in tasks), key=lambda pair: pair[1])
    return (
        f"with the LR alone tuned, WSD with a linear end is at {min(wsd):.2f} to {max(wsd):.2f} of the tuned best on "
        f"[seven tasks](#every-schedule-on-every-task), and a bad choice costs up to {worst:.1f} times (step on "
        f"{name}, at its default drops)"
    )


def _schedule_free() -> str:
    rows = {(r["task"], r["chosen_on"], r["contender"]): r for r in rows_of("schedule_free.jsonl")}
    tasks = list(dict.fromkeys(task for task, _, _ in rows))
    names = ("schedule-free-sgd", "schedule-free-adamw")
    best = [min(rows[task, "train", name]["over_best"] for name in names) for task in tasks]
    test = [min(rows[task, "valid", name]["over_best"] for name in names) for task in tasks]
    behind = [
        min(rows[task, "train", name]["untuned"] for name in names) > rows[task, "train", "cosine"]["iqm"]
        for task in tasks
    ]
    prodigy = [rows[t, "train", "prodigy"]["untuned"] > rows[t, "train", "cosine"]["iqm"] for t in tasks]
    level = sum(value > 0.95 for value in test)
    if not all(behind):
        raise ValueError(f"got Schedule-Free behind tuned cosine on {sum(behind)} tasks, expected all: reword")
    return (
        f"no: the better of Schedule-Free SGD and AdamW, tuned, has {min(best):.2f} to {max(best):.2f} of the train "
        "loss of the tuned best schedule, which had momentum (so that part of this is AdamW's), and on test it is "
        f"within 5 % of it on {_WORDS[level]} of three tasks; at its authors' LRs it is behind tuned cosine on all "
        f"three, Prodigy at its LR of 1 on {_WORDS[sum(prodigy)]}"
    )


def _greed() -> str:
    loss = {r["contender"]: r["loss"] for r in rows_of("short_horizon_bias.jsonl") if r["horizon"] == 1000}
    optimum = loss["optimum under lr <= 2"]
    return f"greedy {loss['greedy']:.5f}, best constant {loss['constant']:.6f}, optimum {optimum:.8f}"


def _learners() -> str:
    """On one scale: excess over the true optimum under the cap, with one LR for each step."""
    rows = [row for row in rows_of("noisy_quadratic_optimum.jsonl") if row["capped"]]

    def over(horizon: int, learner: str) -> list[float]:
        found = [r["over_capped_optimum_percent"] for r in rows if (r["horizon"], r["learner"]) == (horizon, learner)]
        return sorted(found)

    def one(horizon: int, learner: str) -> float:
        (value,) = over(horizon, learner)
        return value

    ppo = over(1000, "PPO")
    short = "; ".join(
        f"T = {horizon}: WSD {one(horizon, 'WSD, tuned'):.2f}, knots {one(horizon, 'meta-gradient, knots'):.2f}, "
        f"pieces {one(horizon, 'meta-gradient, pieces'):.2f}, PES {one(horizon, 'PES, pieces'):.2f}"
        for horizon in (100, 300)
    )
    return (
        "excess over the true optimum in percent, at T = 1000: meta-gradients on knots "
        f"{one(1000, 'meta-gradient, knots'):.3f}, on 40 pieces {one(1000, 'meta-gradient, pieces'):.2f}, PES "
        f"{one(1000, 'PES, pieces'):.2f}, PPO {ppo[0]:.2f} to {ppo[-1]:.2f}, the best tuned WSD "
        f"{one(1000, 'WSD, tuned'):.2f}. {short}: there WSD beats the 40 pieces, however they are learned. Without the "
        "cap all learners fall behind WSD"
    )


def _hypergradient() -> str:
    rows = rows_of("hypergradient_repair.jsonl")
    largest = max(row["beta"] for row in rows)

    def accuracy(beta: float, lr: float) -> float:
        return 100.0 * stdlib.mean(r["test_accuracy"] for r in rows if (r["beta"], r["lr"]) == (beta, lr))

    pairs = [f"{accuracy(0.0, lr):.0f} → {accuracy(largest, lr):.0f} % from {lr:g}" for lr in (0.01, 0.1)]
    return f"test accuracy {', '.join(pairs)}"


def _horizon() -> str:
    rows = rows_of("horizon_moves_lr.jsonl")
    best = []
    for horizon in sorted({row["horizon"] for row in rows}):
        losses: dict[float, list[float]] = {}
        for row in rows:
            if row["horizon"] == horizon:
                losses.setdefault(row["lr"], []).append(math.inf if row["diverged"] else row["test_loss"])
        best.append(min(losses, key=lambda lr: stdlib.fmean(losses[lr])))
    return f"{', '.join(f'{lr:.2f}' for lr in best)} at T = 50, 200, 1000, 4000 (judged on test)"


def _meta_lr() -> str:
    rows = rows_of("mnist1d_meta_lr.jsonl")

    def of(learned: str, loss: str) -> list[Row]:
        return [r for r in rows if (r["learned"], r["meta_loss"], r["net_seed"]) == (learned, loss, 0)]

    first, second = (row["lr"] for row in of("ConstantLR", "mean-train"))
    final = [row["lr"] for row in of("ConstantLR", "final-train")]
    before, after = of("ConstantLR", "final-train")[0]["loss"], of("KnotLR", "final-train")[0]["loss"]
    if f"{first:.3f}" != f"{second:.3f}":
        raise ValueError(f"got {first} and {second} from the two starts, expected one LR: reword")
    return (
        f"{first:.3f} from both 0.15 and 1.5; {final[0]:.3f} for the final loss; knots lower the final loss from "
        f"{before:.2f} to {after:.2f}"
    )


def _knots() -> str:
    rows = {(r["schedule"], r["horizon"], r["tuned_at"]): r["loss"] for r in rows_of("knots_transfer.jsonl")}

    def best(tuned_at: int) -> tuple[float, str]:
        return min((v, s) for (s, h, t), v in rows.items() if (h, t) == (1600, tuned_at) and "knots" not in s)

    (there, name), (short, other) = best(1600), best(400)
    if name != other:
        raise ValueError(f"got {name} and {other} as the best classics, expected one: reword")
    knots = rows["knots by PES", 1600, 400]
    return (
        f"knots by PES: {knots:.3f} beside {there:.3f} for the best classic tuned there ({name}), {short:.3f} for the "
        "best tuned at the short one"
    )


def _few_shot() -> str:
    def means(name: str) -> list[str]:
        rows = rows_of(name)
        found = []
        for shots in (5, 10):
            losses = [
                [r["loss"] for r in rows if (r["method"], r["shots"]) == (m, shots)] for m in ("meta-sgd", "maml")
            ]
            found.append(" against ".join(f"{stdlib.mean(values):.2f}" for values in losses))
        return found

    rows = rows_of("sinusoid_few_shot_frequency.jsonl")
    seeds = len({row["seed"] for row in rows})
    if "tuning_loss" in rows[0] or seeds > 1:
        raise ValueError(f"got a record with a tuned MAML or {seeds} seeds, expected the old one: reword")
    varied, fixed = means("sinusoid_few_shot_frequency.jsonl"), means("sinusoid_few_shot.jsonl")
    return (
        f"yes, with the frequency varied as in its paper: {varied[0]} at 5 shots, {varied[1]} at 10 (paper: 0.90 "
        "against 1.13, 0.53 against 0.77): this MAML, whose inner LR was not tuned, is behind the paper's, so that the "
        f"gap is flattering. One seed; at a fixed frequency {fixed[0]} and {fixed[1]}"
    )


def _meta_cost() -> str:
    (row,) = [row for row in rows_of("meta_gradient_cost.jsonl") if row["route"] == "segments"]
    return (
        f"segments use {100.0 * row['memory_over_full']:.1f} % of the full unroll's extra memory at "
        f"{row['time_over_full']:.2f} times its time, at {row['horizon']} inner steps"
    )


def _closed_loops() -> str:
    rows = {
        (r["contender"], r["factor"]): r["train_loss"]
        for r in rows_of("closed_loop_learners.jsonl")
        if r["task"] == "mnist1d-mlp"
    }
    shown = [
        f"{label} {' / '.join(f'{rows[name, factor]:.2f}' for factor in (0.1, 1.0, 10.0))}"
        for name, label in (("ppo", "PPO"), ("pes-gru", "GRU by PES"), ("dqn", "DQN"), ("pes-mlp", "MLP by PES"))
    ]
    return (
        f"on MNIST-1D from ×0.1 / ×1 / ×10: {', '.join(shown)} (tuned cosine {rows['tuned cosine', None]:.2f}); one "
        "training seed each and unequal budgets, so that this is no ranking"
    )


def _rl_agents() -> str:
    cells: dict[str, list[str]] = {}
    for row in rows_of("rl_agents-compared.jsonl"):
        cell = f"{row['percent']:+.0f} [{row['low']:+.0f}, {row['high']:+.0f}]"
        cells.setdefault(f"{row['case']} ({row['seeds']} seeds)", []).append(cell)
    shown = "; ".join(f"{case} {' / '.join(values)} %" for case, values in cells.items())
    return f"area under the learning curve beside the best open-loop schedule, from ×0.1 / ×1 / ×10: {shown}"


def _cost() -> str:
    (row,) = rows_of("scheduler_cost.jsonl")
    mean, low, high = (100.0 * (value - 1.0) for value in row["learned_interval"])
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _cost_of_builds() -> str:
    (row,) = rows_of("scheduler_cost.jsonl")
    above = sum(math.exp(value) > 1.02 for value in row["log_ratios"])
    return f"above the target of 2 % in {above} of {row['builds']} builds"


def _engine() -> str:
    ratio = {
        row["compiled"]: row["over_plain"]
        for row in rows_of("benchmark_throughput-cpu.jsonl")
        if (row["model"], row["num_runs"], row.get("optimizer")) == ("MLP 40-32-32-10", 32, "momentum")
    }
    return f"{ratio[False]:.1f} times the plain loop at 32 runs, {ratio[True]:.1f} times compiled, on one CPU thread"


def _environments() -> str:
    (row,) = [row for row in rows_of("benchmark_throughput-cpu.jsonl") if row["what"] == "AsyncVectorEnv"]
    return f"one process each, reach {row['steps_per_s'] / 1000.0:.1f} k"


def _one_run() -> str:
    alone = [
        row["over_plain"]
        for row in rows_of("benchmark_throughput-cpu.jsonl")
        if row["what"] == "engine" and row["num_runs"] == 1 and not row["compiled"]
    ]
    return f"({min(alone):.2f}× to {max(alone):.1f}×)"


def _scaling() -> str:
    rows = rows_of("workers_scaling.jsonl")
    faster = {(row["what"], row["place"]): row["speed_up"] for row in rows if row.get("speed_up")}
    curves, whole = ({place: faster[what, place] for _, place in faster} for what in ("oracle curves", "compare"))
    overhead = [row["overhead"] for row in rows if row.get("workers") == 2 and row["speed_up"]]
    nodes = {row["nodes"]: row for row in rows if "nodes" in row}
    minutes = {count: 60.0 * row["hours"] for count, row in nodes.items()}
    return (
        f"Two workers made oracle curves {curves['two workers']:.2f} times and a comparison "
        f"{whole['two workers']:.2f} times as fast as one process, a Ray cluster of two nodes "
        f"{curves['Ray, two nodes']:.2f} and {whole['Ray, two nodes']:.2f} times; overhead took "
        f"{100.0 * min(overhead):.0f} to {100.0 * max(overhead):.0f} % of their time. By calculation from these times, "
        f"10,000 tasks of 16 LRs take {nodes[1]['core_hours']:.1f} hours of a core: with {nodes[1]['cores']} cores a "
        f"node {minutes[1]:.1f} minutes on one node, {minutes[10]:.1f} minutes on 10, and {minutes[100]:.1f} on 100, "
        f"where the process that sends the units and writes the results is the first bottleneck; it can feed some "
        f"{nodes[1]['full_at_nodes']:.0f} such nodes."
    )


_WORDS = ("none", "one", "two", "three")

SENTENCES: dict[str, Sentence] = {
    "general": Sentence("results.md", _general),
    "general_limits": Sentence("results.md", _limits),
    "transfer": Sentence("results.md", _transfer),
    "demo": Sentence("results.md", _demo),
    "all_schedules": Sentence("results.md", _all_schedules),
    "which schedule": Sentence("results.md", _which_schedule),
    "schedule_free": Sentence("results.md", _schedule_free),
    "short_horizon_bias": Sentence("results.md", _greed),
    "noisy_quadratic_optimum": Sentence("results.md", _learners),
    "hypergradient_repair": Sentence("results.md", _hypergradient),
    "horizon_moves_lr": Sentence("results.md", _horizon),
    "mnist1d_meta_lr": Sentence("results.md", _meta_lr),
    "knots_transfer": Sentence("results.md", _knots),
    "sinusoid_few_shot": Sentence("results.md", _few_shot),
    "meta_gradient_cost": Sentence("results.md", _meta_cost),
    "closed_loop_learners": Sentence("results.md", _closed_loops),
    "rl_agents": Sentence("results.md", _rl_agents),
    "scheduler_cost": Sentence("results.md", _cost),
    "scheduler_cost, builds": Sentence("results.md", _cost_of_builds),
    "FAQ: scheduler_cost": Sentence("faq.md", _cost),
    "FAQ: scheduler_cost, builds": Sentence("faq.md", _cost_of_builds),
    "engine": Sentence("results.md", _engine),
    "environments": Sentence("results.md", _environments),
    "one run": Sentence("results.md", _one_run),
    "workers_scaling": Sentence("cluster.md", _scaling),
}


def joined(text: str) -> str:
    """A text with single spaces in place of all white space."""
    return " ".join(text.split())


def missing(texts: dict[str, str]) -> dict[str, str]:
    """Name -> text of the sentences that are not in their documents.

    Args:
        texts: name of a document's file -> its text.
    """
    return {
        name: text
        for name, sentence in SENTENCES.items()
        if (text := joined(sentence.text())) not in joined(texts[sentence.document])
    }


def unfounded(document: str, text: str) -> list[str]:
    """The measured numbers in a document's prose that no sentence, table or setting accounts for, with some context.

    A number is measured if it has a decimal point or stands before "%", "times" or "×". Code is not prose.
    """
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", readme_tables.without_tables(text), flags=re.DOTALL | re.MULTILINE)
    plain = joined(prose)
    known = [re.sub(r"`[^`]*`", "", joined(s.text())) for s in SENTENCES.values() if s.document == document]
    for part in sorted([*map(joined, known), *SETTINGS.get(document, ())], key=len, reverse=True):
        plain = plain.replace(part, " ")
    return [plain[max(found.start() - 40, 0) : found.end() + 20] for found in _MEASURED.finditer(plain)]


def main() -> None:
    """Print what is missing and what is unfounded."""
    texts = {path.name: path.read_text() for path in DOCUMENTS}
    for name, text in missing(texts).items():
        print(f"{SENTENCES[name].document} lacks: {text}\n")
    for name, document in texts.items():
        for found in unfounded(name, document):
            print(f"{name} states without a record: …{found}…")


if __name__ == "__main__":
    main()
