"""`metalr list`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from metalr.reports.text_table import listing, screen_width, wrap


@dataclass
class List:
    """List tasks, schedules, contenders, optimizers, features, controllers and more."""

    def run(self) -> None:
        """Print the lists."""
        from metalr.artefacts.controller_file import SHIPPED
        from metalr.compare.catalog import CONTENDERS, EXTERNAL_CONTENDERS
        from metalr.optimizers.classic import OPTIMIZERS
        from metalr.schedules import SCHEDULES
        from metalr.signals.observations import FEATURES
        from metalr.tasks.catalog import TASKS
        from metalr.tasks.families import FAMILIES

        _print_section("tasks", {name: _first_line(builder) for name, builder in TASKS.items()})
        _print_section("families", {name: ", ".join(family.tasks) for name, family in FAMILIES.items()})
        _print_section("schedules", {name: _first_line(kind) for name, kind in SCHEDULES.items()})
        _print_words("contenders", CONTENDERS)
        _print_words("contenders from packages of their own: pip install 'metalr[optimizers]'", EXTERNAL_CONTENDERS)
        _print_section("inner optimizers", {name: repr(optimizer) for name, optimizer in OPTIMIZERS.items()})
        try:
            from metalr.envs.rewards import REWARDS
        except ImportError:
            print("rewards\n  (install 'metalr[rl]' to see them)\n")
        else:
            _print_section("rewards", {name: reward.formula for name, reward in REWARDS.items()})
        _print_section("features", {feature.name: feature.formula for feature in FEATURES})
        shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
        _print_words("shipped controllers", shipped or ["none"])


def _first_line(thing: Callable) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _print_section(title: str, rows: dict[str, str]) -> None:
    print(f"{title}\n{listing(rows.items(), screen_width(), indent='  ')}\n")


def _print_words(title: str, words: Iterable[str]) -> None:
    print("\n  ".join([title, *wrap(", ".join(words), screen_width() - 2)]) + "\n")
