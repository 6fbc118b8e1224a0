"""The throughput benchmark's table and figure, from its records alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.support.plotting import COLOURS, legend, panels
from metalr.reports.text_table import aligned

Row = dict[str, Any]
_OPTIMIZERS = {"momentum": "momentum", "adam": "Adam", "adamw": "AdamW"}


def _count(value: float | None) -> str:
    """1234567 -> "1.23 M"."""
    if value is None:
        return ""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if value < 999.5 * size else f"{value / size:.0f}{letter}"
    return f"{value:.3g}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100.0 else f"{value:.2g}" if value < 10.0 else f"{value:.3g}"


# Head of the column -> its cell of a row. At most 100 characters in all.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row["model"],
    "optim.": lambda row: _OPTIMIZERS.get(row.get("optimizer", ""), ""),
    "runs": lambda row: str(row["num_runs"]),
    "how": lambda row: (
        row.get("how", "").replace("one graph, compiled", "graph+comp.").replace("step by step", "eager")
    ),
    "steps/s": lambda row: _count(row.get("steps_per_s")),
    "xplain": lambda row: _number(row.get("over_plain")),
    "xgraph": lambda row: _number(row.get("over_graph")),
    "limit": lambda row: "" if row.get("of_limit") is None else f"{100.0 * row['of_limit']:.0f} %",
    "MiB": lambda row: _number(row.get("mib_per_run")),
    "fit": lambda row: _count(row.get("runs_that_fit")),
    "prep": lambda row: _number(row.get("preparation_s")),
    "reset": lambda row: _number(row.get("reset_over_interval")),
}


def table(rows: Sequence[Row]) -> str:
    """Aligned columns of the rows that have steps per second; names to the left, numbers to the right."""
    order = [(row["model"], row.get("optimizer")) for row in rows]
    measured = [row for row in rows if row.get("steps_per_s") is not None]
    measured.sort(key=lambda row: (order.index((row["model"], row.get("optimizer"))), row["num_runs"]))
    lines = [[show(row) for show in COLUMNS.values()] for row in measured]
    numbers = [name not in ("model", "optim.", "how") for name in COLUMNS]
    return "\n".join(aligned([list(COLUMNS), *lines], numbers, width=100))


def summary(rows: Sequence[Row]) -> str:
    """Lines below the table: the hardware, PPO's shares, kernels, and the rows that failed."""
    lines = [f"{_limits(row)}" for row in rows if row["what"] == "limits" and "failed" not in row]
    for row in rows:
        where = f"{row['what']}, {row['model']}, {row['num_runs']} runs"
        if "failed" in row:
            lines.append(f"FAILED {where}: {row['failed']}")
            continue
        lines += [f"note on {where}: {note}" for note in row.get("notes", [])]
        if row["what"] == "PPO":
            lines.append(_ppo(row))
        lines += [f"  {100 * share:5.1f} %  {calls:6.2f}/step  {name}" for name, share, calls in row.get("kernels", [])]
    return "\n".join(lines)


def _limits(row: Row) -> str:
    return (
        f"{row['hardware']}: copies {row['copy_bytes_per_s'] / 1e9:.0f} GB/s (read and written), multiplies "
        f"{row['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s ({row['precision']})"
    )


def _ppo(row: Row) -> str:
    shares = ", ".join(
        f"{part} {100.0 * row[f'{part}_share']:.0f} %" for part in ("engine", "policy", "python", "update")
    )
    return (
        f"PPO, {row['num_runs']} runs, {row['threads']} threads: {_count(row['inner_steps'])} inner steps in "
        f"{row['seconds']:.1f} s, after {row['until_ready_s']:.0f} s of preparation and one rollout\n"
        f"  {shares}\n"
        f"  for each decision: engine {row['engine_ms_per_decision']:.2f} ms, policy "
        f"{row['policy_ms_per_decision']:.2f} ms, Python {row['python_ms_per_decision']:.2f} ms; "
        f"for each update {row['s_per_update']:.2f} s"
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Inner steps per second against the number of runs; dashed, the plain loop of the same model."""
    from matplotlib import ticker

    engines = [row for row in rows if row["what"] == "engine" and row.get("optimizer") == "momentum" and "how" in row]
    if not engines:
        return
    figure, (axis,) = panels(1, height=4.4)
    for index, model in enumerate(dict.fromkeys(row["model"] for row in engines)):
        own, colour = [row for row in engines if row["model"] == model], COLOURS[index % len(COLOURS)]
        for how in dict.fromkeys(row["how"] for row in own):
            points = sorted((row["num_runs"], row["steps_per_s"]) for row in own if row["how"] == how)
            style = "s:" if how == "compiled" else "o-"
            axis.plot(*zip(*points, strict=True), style, color=colour, label=f"{model}, {how}", markersize=4)
        axis.axhline(median(row["plain_steps_per_s"] for row in own), color=colour, linestyle="--", linewidth=0.7)
    axis.set(xscale="log", yscale="log", xlabel="runs side by side", ylabel="inner steps per second, all runs")
    counts = sorted({row["num_runs"] for row in engines})
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.xaxis.minorticks_off()
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(lambda value, _: _count(value))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_title(f"{engines[0]['hardware']}; dashed: plain loop of torch.optim, one run", fontsize=9)
    legend(figure, axis)
    figure.savefig(path, dpi=110)
