"""Progress on the screen with the time left: a line that is rewritten on a terminal, lines now and then elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

# Called with how much is done, how much there is in all, and what is counted.
Progress = Callable[[int, int, str], None]

# Seconds between two lines, on a terminal and elsewhere.
_ON_TERMINAL, _ELSEWHERE = 0.2, 10.0
# Share of a sitting's work whose speed must be known before it says anything about the rest.
_SHARE_TIMED = 0.03


class _Count(NamedTuple):
    """What was done at the first call, since when and from where the speed is measured, and when a line was written."""

    done_before: int
    began_at: float
    began_with: int
    shown_at: float


class ProgressLines:
    """Writes lines such as `episodes 1280 of 5120, 1:05 left`.

    The time left is that of the rest at the mean speed of this sitting, so that what an earlier one did does not count
    as done in no time. It is held back until a few percent are timed. The last line of a count is always written.

    Args:
        file: where to; None for the error stream, so that what a command prints can go into a pipe or a file.
        clock: seconds.
    """

    def __init__(self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.file = file or sys.stderr
        self.clock = clock
        self.is_terminal = self.file.isatty()
        self._counts: dict[str, _Count] = {}
        self._open = False

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` of `what` are done, if it is time for a line."""
        now = self.clock()
        if what not in self._counts:
            self.finish()
            self._counts[what] = _Count(done, now, done, now)
        count = self._counts[what]
        if done > count.began_with == count.done_before:
            # The first piece: the time until here has a start-up in it, such as a compilation, that never comes again.
            count = self._counts[what] = count._replace(began_at=now, began_with=done)
        if done < total and now - count.shown_at < (_ON_TERMINAL if self.is_terminal else _ELSEWHERE):
            return
        self._counts[what] = count._replace(shown_at=now)
        text = f"{what} {done} of {total}"
        timed = done - count.began_with
        if done < total and timed >= _SHARE_TIMED * (total - count.began_with):
            text += f", {clock_time((now - count.began_at) * (total - done) / timed)} left"
        self._write(text, is_last=done >= total)

    def finish(self) -> None:
        """End a line that is still being rewritten."""
        if self._open:
            self._open = False
            self.file.write("\n")
            self.file.flush()

    def _write(self, text: str, is_last: bool) -> None:
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1  # a full line would wrap
            self.file.write(f"\r{text[:width].ljust(width)}")
            self._open = True
            if is_last:
                self.finish()
        else:
            self.file.write(f"{text}\n")
        self.file.flush()


def clock_time(seconds: float) -> str:
    """Seconds as people write a time.

    Example:
        >>> clock_time(65.2), clock_time(3_725)
        ('1:06', '1:02:05')
    """
    minutes, second = divmod(-int(-seconds // 1), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
