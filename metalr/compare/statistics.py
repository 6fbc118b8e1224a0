"""Statistics of many runs: robust means, bootstrap intervals, paired comparisons, profiles. Pure numpy.

Losses are the usual input: lower is better and a diverged run is infinite, unless an argument says otherwise.
Every function here accepts infinities and gives no NaN for them.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
# A statistic of the last axis: (…, num_values) -> (…).
Statistic = Callable[[Array], Array]

_TINY = 1e-300
# Fewer trainings of a learner say nothing about the next one.
MIN_TRAINING_SEEDS = 5


class Interval(NamedTuple):
    """A statistic with its bootstrap interval."""

    value: float
    low: float
    high: float


def _array(values: ArrayLike, what: str = "values") -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"got no {what}, expected at least one number: run at least one seed")
    if np.isnan(array).any():
        raise ValueError(f"got NaN among the {what}, expected numbers: count a failed run as infinite")
    return array


def median(values: ArrayLike) -> Array:
    """Median of the last axis; between two infinities it is infinite, as it should be."""
    return np.median(_array(values), axis=-1)


def interquartile_mean(values: ArrayLike) -> Array:
    """Mean of the middle half of the last axis (Agarwal et al. 2021, arXiv 2108.13264).

    floor(n / 4) values are cut off at each end, as `scipy.stats.trim_mean` does.

    Example:
        >>> float(interquartile_mean([0.0, 1.0, 2.0, 99.0]))
        1.5
    """
    ordered = np.sort(_array(values), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def worst_decile(values: ArrayLike, *, lower_is_better: bool = True) -> Array:
    """Mean of the worst tenth of the last axis, rounded up: of ten losses the largest, of eleven the largest two.

    Example:
        >>> float(worst_decile(range(20)))
        18.5
    """
    ordered = np.sort(_array(values), axis=-1)
    count = math.ceil(ordered.shape[-1] / 10)
    return (ordered[..., -count:] if lower_is_better else ordered[..., :count]).mean(-1)


def bootstrap(
    scores: ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    repetitions: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of all scores with a stratified percentile bootstrap interval.

    Runs are drawn again with replacement within each task, so that every task keeps its weight (Agarwal et al.
    2021). With one column this is the ordinary bootstrap over seeds.

    Args:
        scores: `(num_runs,)` or `(num_runs, num_tasks)`.
        statistic: of the last axis; it gets runs and tasks flattened into one.
        repetitions: bootstrap samples.
        confidence: share of them between low and high.
        seed: of the bootstrap; the same one gives the same interval.

    Example:
        >>> bootstrap([1.0, 1.0, 1.0])
        Interval(value=1.0, low=1.0, high=1.0)
    """
    if repetitions < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"got {repetitions} repetitions and confidence {confidence}, expected at least 1 and a share "
            "between 0 and 1: pass for example 2000 and 0.95"
        )
    table = _array(scores, "scores")
    table = table[:, None] if table.ndim == 1 else table
    num_runs, num_tasks = table.shape
    index = np.random.default_rng(seed).integers(num_runs, size=(repetitions, num_runs, num_tasks))
    drawn = table[index, np.arange(num_tasks)].reshape(repetitions, -1)
    low, high = _quantiles(statistic(drawn), confidence)
    return Interval(float(statistic(table.reshape(-1))), low, high)


def hierarchical_bootstrap(
    scores: ArrayLike,
    statistic: Statistic = lambda values: values.mean(-1),
    *,
    draw_tasks: bool = True,
    repetitions: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic with an interval over training seeds, tasks and evaluation seeds, for a claim about a learner.

    Each repetition draws training seeds, then tasks, then evaluation seeds for each task, all with replacement.
    Training seeds are common to all tasks, and evaluation seeds to all training seeds: what they share is drawn
    together. The statistic is usually the mean of log ratios to a reference from the same evaluation seed.

    Args:
        scores: `(num_training_seeds, num_tasks, num_evaluation_seeds)`.
        statistic: of the last axis; it gets everything flattened into one.
        draw_tasks: the claim is about tasks like these; without it about these tasks, and each keeps its weight.
        repetitions: bootstrap samples.
        confidence: share of them between low and high.
        seed: of the bootstrap.

    Raises:
        ValueError: the scores have another shape, or there are fewer than five training seeds.

    Example:
        >>> hierarchical_bootstrap([[[1.0, 1.0, 1.0]]] * 5)
        Interval(value=1.0, low=1.0, high=1.0)
    """
    table = _array(scores, "scores")
    if table.ndim != 3 or table.shape[0] < MIN_TRAINING_SEEDS:
        raise ValueError(
            f"got scores of shape {table.shape}, expected (training seeds, tasks, evaluation seeds) with at least "
            f"{MIN_TRAINING_SEEDS} training seeds: train the learner again, fewer say nothing about it"
        )
    generator = np.random.default_rng(seed)
    trained, tasks, evaluated = table.shape
    samples = np.empty(repetitions)
    for repetition in range(repetitions):
        row = generator.integers(trained, size=(trained,))[:, None, None]
        task = generator.integers(tasks, size=(tasks,)) if draw_tasks else np.arange(tasks)
        run = generator.integers(evaluated, size=(tasks, evaluated))
        samples[repetition] = statistic(table[row, task[:, None], run].reshape(-1))
    return Interval(float(statistic(table.reshape(-1))), *_quantiles(samples, confidence))


def _quantiles(samples: Array, confidence: float) -> tuple[float, float]:
    tail = (1.0 - confidence) / 2.0
    # No interpolation where a value is infinite: infinity minus infinity is NaN.
    method = "linear" if np.isfinite(samples).all() else "closest_observation"
    low, high = np.quantile(samples, [tail, 1.0 - tail], method=method)  # type: ignore[call-overload]
    return float(low), float(high)


def log_ratio(losses: ArrayLike, reference: ArrayLike) -> Array:
    """log(loss / reference), element by element; 0 where both are infinite (two failures are equal).

    A loss of exactly 0 counts as 1e-300.
    """
    loss, best = _array(losses, "losses"), _array(reference, "reference losses")
    if (loss < 0.0).any() or (best < 0.0).any():
        raise ValueError("got negative losses, expected positive ones: a ratio of them has no logarithm")
    loss, best = np.broadcast_arrays(loss, best)
    both = np.isinf(loss) & np.isinf(best)
    return np.log(np.maximum(np.where(both, 1.0, loss), _TINY)) - np.log(np.maximum(np.where(both, 1.0, best), _TINY))


def regret(losses: ArrayLike, tuned_best: ArrayLike) -> Array:
    """max(0, log(loss / tuned best)), element by element: 0.05 means about 5 % above the tuned best."""
    return np.maximum(log_ratio(losses, tuned_best), 0.0)


def paired_difference(
    first: ArrayLike, second: ArrayLike, statistic: Statistic = median, **settings: float
) -> Interval:
    """Statistic of first - second over runs that share seeds, `(num_runs,)` each, with an interval."""
    a, b = _pair(first, second)
    both = np.isinf(a) & np.isinf(b) & (a == b)
    difference = np.where(both, 0.0, np.where(both, 0.0, a) - np.where(both, 0.0, b))
    return bootstrap(difference, statistic, **settings)  # type: ignore[arg-type]


def paired_ratio(first: ArrayLike, second: ArrayLike, statistic: Statistic = median, **settings: float) -> Interval:
    """Exponential of the statistic of log(first / second) over runs that share seeds: 1.05 is 5 % above second.

    Example:
        >>> paired_ratio([2.0, 4.0], [1.0, 2.0]).value
        2.0
    """
    a, b = _pair(first, second)
    inner = bootstrap(log_ratio(a, b), statistic, **settings)  # type: ignore[arg-type]
    return Interval(*(float(np.exp(value)) for value in inner))


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    a, b = _array(first), _array(second)
    if a.shape != b.shape:
        raise ValueError(f"got {a.shape} and {b.shape} values, expected pairs: compare the same seeds")
    return a, b


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    *,
    lower_is_better: bool = True,
    repetitions: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Probability that a run of the first is better than a run of the second, a tie counting half.

    Mann-Whitney's U over the number of pairs, averaged over tasks (Agarwal et al. 2021, section 4.3).

    Args:
        first: `(num_runs,)` or `(num_runs, num_tasks)`.
        second: the same for the other; the number of runs may differ.
        lower_is_better: True for losses.
        repetitions: bootstrap samples.
        confidence: share of them between low and high.
        seed: of the bootstrap.

    Example:
        >>> probability_of_improvement([1.0, 2.0], [3.0, 4.0]).value
        1.0
    """
    tables = [_array(values) for values in (first, second)]
    a, b = (table[:, None] if table.ndim == 1 else table for table in tables)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"got {a.shape[1]} and {b.shape[1]} tasks, expected the same tasks for both")
    better = (a[:, None] < b[None]) if lower_is_better else (a[:, None] > b[None])
    wins = better + 0.5 * (a[:, None] == b[None])  # (num_runs, num_other_runs, num_tasks)
    generator = np.random.default_rng(seed)
    task = np.arange(a.shape[1])
    samples = np.empty(repetitions)
    for repetition in range(repetitions):
        row = generator.integers(len(a), size=(len(a), 1, a.shape[1]))
        column = generator.integers(len(b), size=(1, len(b), a.shape[1]))
        samples[repetition] = wins[row, column, task].mean()
    return Interval(float(wins.mean()), *_quantiles(samples, confidence))


def time_to_target(steps: Sequence[float] | Array, losses: ArrayLike, target: float) -> Array:
    """The first step at which a loss curve is at or below the target; infinite if it never is.

    Args:
        steps: `(num_points,)`, ascending.
        losses: `(…, num_points)`; NaN (a diverged run) never reaches anything.
        target: the loss to reach.

    Example:
        >>> time_to_target([10, 20, 30], [[3.0, 1.0, 2.0], [3.0, 3.0, 3.0]], target=1.5).tolist()
        [20.0, inf]
    """
    curve, at = np.asarray(losses, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    if curve.shape[-1:] != at.shape:
        raise ValueError(f"got curves of {curve.shape[-1:]} points for {at.shape} steps, expected equally many")
    reached = curve <= target
    return np.where(reached.any(-1), at[reached.argmax(-1)], np.inf)


def performance_profile(costs: ArrayLike, taus: ArrayLike) -> Array:
    """Share of tasks that each contender solves within tau times the cost of the best one (Dolan and Moré 2002).

    Args:
        costs: `(num_contenders, num_tasks)`, for example times to target; infinite for a failure.
        taus: `(num_taus,)`, ratios of at least 1.

    Returns:
        `(num_contenders, num_taus)`. A task that nobody solves counts as a failure of all.

    Example:
        >>> performance_profile([[1.0, 4.0], [2.0, float("inf")]], [1.0, 2.0]).tolist()
        [[1.0, 1.0], [0.0, 0.5]]
    """
    table, tau = _array(costs, "costs"), np.asarray(taus, dtype=np.float64)
    if table.ndim != 2 or (table <= 0.0).any():
        raise ValueError(
            f"got costs of shape {table.shape} down to {table.min()}, expected positive numbers "
            "(num_contenders, num_tasks): a ratio to the best needs a best above 0"
        )
    best = table.min(0)
    solved = np.isfinite(table)
    ratio = np.where(solved, table, 1.0) / np.where(np.isfinite(best), best, 1.0)
    return (solved[..., None] & (ratio[..., None] <= tau * (1.0 + 1e-12))).mean(1)


def score_profile(losses: ArrayLike, thresholds: ArrayLike) -> Array:
    """Share of runs whose loss is at most each threshold: `(num_runs, …)` and `(num_thresholds,)` -> shares."""
    flat = _array(losses).reshape(-1)
    return (flat[:, None] <= np.asarray(thresholds, dtype=np.float64)).mean(0)
