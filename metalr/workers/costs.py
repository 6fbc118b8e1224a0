"""Where the time of the workers went."""

from dataclasses import dataclass


@dataclass
class Costs:
    """Where the time of the workers went.

    Attributes:
        workers: the most there were.
        units: finished.
        lost: times that a unit was lost with its worker or node.
        failed: times that a unit raised an error.
        work: seconds in the functions, summed over workers.
        build: seconds to fetch and build what units share and to read the arguments, summed over workers.
        wall: seconds between the first unit and the last.
    """

    workers: int = 1
    units: int = 0
    lost: int = 0
    failed: int = 0
    work: float = 0.0
    build: float = 0.0
    wall: float = 0.0

    @property
    def overhead(self) -> float:
        """The share of the workers' time outside the functions: start, transport, building, waiting."""
        return max(1.0 - self.work / (self.wall * self.workers), 0.0) if self.wall else 0.0

    def __str__(self) -> str:
        again = f" ({self.lost} lost and {self.failed} failed on the way)" if self.lost or self.failed else ""
        return (
            f"{self.units} units{again}: {self.work:.1f} s of work in {self.wall:.1f} s on {self.workers} worker"
            f"{'s' * (self.workers != 1)}; {self.overhead:.0%} of their time was overhead"
        )
