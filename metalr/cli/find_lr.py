"""`metalr find-lr`."""

from dataclasses import dataclass
from pathlib import Path

from metalr.reports.text_table import listing, screen_width


@dataclass
class FindLR:
    """Find an LR by a range test: train briefly while the LR grows.

    Says where the loss falls fastest and where it explodes, and draws the curve.
    """

    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
    optimizer: str | None = None
    """Inner optimizer, in place of the task's own; see `metalr list`."""
    seeds: int = 16
    """Runs behind the curve."""
    figure: Path = Path("runs/find-lr.png")
    """Where the curve is drawn."""

    def run(self) -> None:
        """Print the suggestion and draw the curve."""
        from metalr.reports.lr_range_test import find_lr, save_figure
        from metalr.tasks.catalog import make_task

        changes = {} if self.optimizer is None else {"optimizer": self.optimizer}
        curve = find_lr(make_task(self.task, **changes), num_seeds=self.seeds)
        rows = {
            "suggestion": f"{curve.suggestion:.3g}",
            "steepest": f"{curve.steepest:.3g}",
            "lowest": f"{curve.lowest:.3g}  (beyond it the LR is too big)",
            "figure": str(save_figure(curve, self.figure, self.task)),
        }
        print(listing(rows.items(), screen_width()))
