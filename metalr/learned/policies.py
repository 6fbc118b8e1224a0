"""Learned closed loops: small policies that read the observation and become controllers.

`metalr.learned.export.controller_of` exports them. Evolution strategies and meta-gradients learn them; PPO and DQN have
policies of their own.
"""

import itertools
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalr.control.actions import ActionSpec
from metalr.control.recurrent import gru_cell
from metalr.learned.module import Learned
from metalr.signals.observations import NUM_FEATURES


class ClosedLoop(Learned):
    """Observation and memory -> action in [-1, 1] and new memory.

    Attributes:
        action: how an action becomes an LR multiplier; anchored, recursive or absolute, continuous.
        decisions: decisions per run.
        memory_size: numbers that are carried from one decision to the next; 0 for none.
    """

    action: ActionSpec
    decisions: int
    memory_size: int = 0

    def _check(self) -> None:
        if self.action.levels:
            raise ValueError(
                f"got {self.action}, expected levels=0: an action with levels has no gradient; DQN learns those"
            )

    @abstractmethod
    def forward(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """`(…, NUM_FEATURES)` and `(…, memory_size)` -> `(…,)` and `(…, memory_size)`."""


class MLPPolicy(ClosedLoop):
    """A small perceptron with tanh between its layers; starts as the base schedule (action 0 throughout).

    Args:
        hidden: widths of the hidden layers.
        action: see `ClosedLoop`.
        decisions: per run.
        seed: of the initial weights.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (16,),
        action: ActionSpec | None = None,
        decisions: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.action, self.decisions = action or ActionSpec(), decisions
        self._check()
        sizes = [NUM_FEATURES, *hidden, 1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        _silence(layers[-1])

    def forward(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        hidden = observation.double()
        for index, layer in enumerate(self.layers):
            hidden = layer(torch.tanh(hidden) if index else hidden)
        return hidden[..., 0], memory


class GRUPolicy(ClosedLoop):
    """A gated recurrent unit that reads the observation at every decision; starts as the base schedule.

    Cell (Cho et al. 2014): z = sigmoid(.), r = sigmoid(.), n = tanh(W x + r * (U h)), h' = n + z * (h - n). It does
    what MLR-SNet's LSTM does, on scale-free features in place of the raw loss.

    Args:
        hidden_size: width of the memory.
        action, decisions, seed: as in `MLPPolicy`.
    """

    def __init__(
        self, hidden_size: int = 8, action: ActionSpec | None = None, decisions: int = 20, seed: int = 0
    ) -> None:
        super().__init__()
        self.action, self.decisions, self.memory_size = action or ActionSpec(), decisions, hidden_size
        self._check()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.from_input = nn.Linear(NUM_FEATURES, 3 * hidden_size, dtype=torch.float64)
            self.from_memory = nn.Linear(hidden_size, 3 * hidden_size, dtype=torch.float64)
            self.head = nn.Linear(hidden_size, 1, dtype=torch.float64)
        _silence(self.head)

    def forward(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        new_memory = gru_cell(self.from_input(observation.double()), self.from_memory(memory), memory)
        return self.head(new_memory)[..., 0], new_memory


def _silence(head: nn.Linear) -> None:
    """Zero the read-out: the untrained policy is the base schedule, and its gradient is not zero."""
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
