"""Progress lines: what they say, how often, on a terminal and elsewhere."""

import io

from metalr.progress import ProgressLines, clock_time


class Screen(io.StringIO):
    """A file that says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def shown(is_terminal: bool, calls: list[tuple[float, int, int, str]]) -> str:
    """What is written for calls at (seconds, done, total, what)."""
    screen, now = Screen(is_terminal), [0.0]
    lines = ProgressLines(screen, clock=lambda: now[0])
    for now[0], done, total, what in calls:
        lines(done, total, what)
    lines.finish()
    return screen.getvalue()


def test_off_a_terminal_there_is_a_line_now_and_then_with_the_time_left() -> None:
    calls = [(float(second), 10 * second, 1000, "episodes") for second in range(101)]
    lines = shown(False, calls).splitlines()
    assert len(lines) == 10
    assert lines[0] == "episodes 100 of 1000, 1:30 left"
    assert lines[-1] == "episodes 1000 of 1000"


def test_what_an_earlier_sitting_did_does_not_count_as_fast() -> None:
    calls = [(0.0, 900, 1000, "episodes"), (20.0, 920, 1000, "episodes"), (40.0, 940, 1000, "episodes")]
    assert shown(False, calls).splitlines() == ["episodes 920 of 1000", "episodes 940 of 1000, 1:00 left"]


def test_the_start_up_does_not_count_and_a_few_percent_are_timed_before_a_time_is_told() -> None:
    compilation = [(0.0, 0, 1000, "episodes"), (60.0, 10, 1000, "episodes")]
    calls = [*compilation, (61.0, 20, 1000, "episodes"), (62.0, 30, 1000, "episodes"), (63.0, 40, 1000, "episodes")]
    parts = [part.strip() for part in shown(True, calls).split("\r")[1:]]
    assert parts == [*(f"episodes {done} of 1000" for done in (10, 20, 30)), "episodes 40 of 1000, 1:36 left"]


def test_counts_have_their_own_clocks_and_nothing_done_has_no_time_left() -> None:
    calls = [(0.0, 0, 2, "curves"), (30.0, 2, 2, "curves"), (30.0, 0, 4, "rollouts"), (45.0, 0, 4, "rollouts")]
    assert shown(False, calls).splitlines() == ["curves 2 of 2", "rollouts 0 of 4"]


def test_on_a_terminal_one_line_is_rewritten_and_fits(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    calls = [
        (0.0, 0, 4, "a name that is longer than the screen is wide"),
        (1.0, 1, 4, "episodes"),
        (9.0, 2, 4, "episodes"),
        (17.0, 3, 4, "episodes"),
    ]
    text = shown(True, calls)
    assert all(len(part) <= 29 for part in text.replace("\n", "").split("\r"))
    assert text.split("\r")[-1].strip() == "episodes 3 of 4, 0:08 left"
    assert text.endswith("\n")


def test_clock_time() -> None:
    assert [clock_time(seconds) for seconds in (0.0, 0.2, 59.0, 60.0, 3600.0)] == [
        "0:00",
        "0:01",
        "0:59",
        "1:00",
        "1:00:00",
    ]
