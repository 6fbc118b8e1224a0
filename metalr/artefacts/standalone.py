"""One controller as one Python file that depends on torch alone.

The file is cut out of this package's own sources: it holds the definitions that the scheduler and its controller reach
and nothing else, without the imports between our modules. So there is no second implementation that could drift.
"""

import base64
import dataclasses
import pprint
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metalr.artefacts.controller_file import needs_losses
from metalr.artefacts.source_cut import cut_out
from metalr.control.actions import ActionSpec
from metalr.control.controller import Controller
from metalr.control.lstm import LSTMCell, LSTMPolicyController
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.recurrent import RecurrentPolicyController
from metalr.control.reference import RandomController, ReplayController, ScheduleController
from metalr.control.rules import RULES
from metalr.files import write_whole
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Schedule, to_config
from metalr.signals.observations import NUM_FEATURES

# A controller decides without these methods; with them, the file would hold every schedule and optimizer there is.
_LEFT_OUT = frozenset({"config", "build", "to_torch", "tensors"})
_LICENCE = """\
MIT License

Copyright (c) 2026 The metalr authors

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
_USE = '''\
"""A learning-rate scheduler in one file, made by `metalr export`. It depends on torch alone.

    from {module} import make_scheduler

    scheduler = make_scheduler(optimizer, horizon=num_updates)      # optimizer updates, not epochs
    for x, y in loader:
        optimizer.zero_grad(); loss = loss_fn(model(x), y); loss.backward()
        scheduler.observe(loss); optimizer.step(); scheduler.step()

`CARD` below states its training and its bounds. The code is metalr's own, in the order in which it is used: schedules,
statistics, observation, action, controller, scheduler.

{licence}"""
'''
_END = '''\
# The contents of this file


def _tensor(dtype: torch.dtype, shape: tuple[int, ...], text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype).clone().view(shape)


_WEIGHTS: dict[str, Tensor] = {{
{weights}}}

CARD = {card}


def make_controller() -> Controller:
    """The controller with its weights."""
    return {controller}


def make_scheduler(
    optimizer: Optimizer, horizon: int | None, *, base: Schedule | None = None, **options: Any
) -> LearnedLR:
    """The scheduler, ready to use.

    Args:
        optimizer: any `torch.optim.Optimizer`; its LR is the guess that the controller corrects.
        horizon: optimizer updates in the run (not epochs); None if unknown.
        base: base schedule to replace the controller's own.
        options: of `LearnedLR`: decisions, steps_per_action, scope, hooks, distributed, measure, expects_loss.
    """
    controller = make_controller()
    options = {{"expects_loss": {expects_loss}, **options}}
    return LearnedLR(optimizer, controller if base is None else controller.with_schedule(base), horizon, **options)
'''


def write_standalone(controller: Controller, card: Mapping[str, Any], path: str | Path) -> Path:
    """Write a controller as a Python file whose scheduler sets the same LRs as `LearnedLR`, bit for bit.

    Args:
        controller: of a registered kind.
        card: facts for people, JSON-able, as `load_card` returns them.
        path: ends in `.py` and names a module; must not exist.

    Returns:
        The path.

    Raises:
        ValueError: the path does not name a module, or the controller contains code of its own.
        FileExistsError: the file already exists.

    Example:
        write_standalone(load_controller("c.safetensors"), load_card("c.safetensors"), "my_scheduler.py")
    """
    path = _new_file(path, ".py")
    if not path.stem.isidentifier():
        raise ValueError(f"got file name {path.name!r}, expected one that can be imported: use letters, digits and _")
    write_whole(path, standalone_source(controller, card, path.stem))
    return path


def standalone_source(controller: Controller, card: Mapping[str, Any], module: str = "my_scheduler") -> str:
    """The text of the file that `write_standalone` writes.

    Args:
        controller: of a registered kind.
        card: facts for people, JSON-able.
        module: name of the file without its ending, for the example at its top.

    Raises:
        ValueError: the controller contains code of its own.
    """
    to_config(controller.schedule)  # refuses a schedule that is code, which has no description
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in controller.tensors().items()}
    expression = _expression(controller)
    roots: list[type] = [LearnedLR, Controller, type(controller), Schedule, *_schedule_types(controller.schedule)]
    roots += [PolicyNetwork] if isinstance(controller, PolicyController | LSTMPolicyController) else []
    roots += [LSTMCell] if isinstance(controller, LSTMPolicyController) else []
    roots += [ActionSpec] if hasattr(controller, "action") else []
    body = cut_out(roots, leave_out=_LEFT_OUT, also_import=("import base64", "from torch.optim import Optimizer"))
    end = _END.format(
        weights="".join(f'    "{name}": {_literal(tensor)},\n' for name, tensor in weights.items()),
        card=pprint.pformat(dict(card), width=110, sort_dicts=False),
        controller=expression,
        expects_loss=needs_losses(card),
    )
    return f"{_USE.format(module=module, licence=_LICENCE)}\n{body}\n\n{end}"


def _new_file(path: str | Path, ending: str) -> Path:
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"got file name {path.name!r}, expected one that ends in {ending}")
    if path.exists():
        raise FileExistsError(f"got {path}, which exists, expected a new file: choose another name or remove it first")
    return path


def _expression(controller: Controller) -> str:
    """A Python expression that makes the controller."""
    common = f"{getattr(controller, 'action', None)!r}, {controller.schedule!r}, {controller.decisions!r}"
    if isinstance(controller, PolicyController):
        return (
            f"PolicyController(\n        {_network(controller.network)},\n"
            f"        {controller.action!r},\n        {controller.schedule!r},\n"
            f"        {controller.decisions!r},\n        {controller.visible!r},\n        "
            f"{controller.spacing!r},\n    )"
        )
    if isinstance(controller, LSTMPolicyController):
        parts = [[f'_WEIGHTS["cells.{i}.{name}"]' for name in LSTMCell._fields] for i in range(len(controller.cells))]
        cells = ", ".join(f"LSTMCell({', '.join(named)})" for named in parts)
        return (
            f"LSTMPolicyController(\n        [{cells}],\n        {_network(controller.head)},\n"
            f"        {common}, {controller.visible!r}, {controller.spacing!r},\n    )"
        )
    if isinstance(controller, RecurrentPolicyController):
        return f"RecurrentPolicyController(_WEIGHTS, {common}, {controller.visible!r}, {controller.spacing!r})"
    if isinstance(controller, (ScheduleController, RandomController, ReplayController, *RULES.values())):
        return repr(controller)
    raise ValueError(
        f"got a {type(controller).__name__}, expected a registered kind of controller: save it as "
        ".safetensors, or add its kind to metalr.artefacts.standalone"
    )


def _network(network: PolicyNetwork) -> str:
    weights, biases = (
        "[" + ", ".join(f'_WEIGHTS["layers.{i}.{part}"]' for i in range(len(network.weights))) + "]"
        for part in ("weight", "bias")
    )
    inputs = "" if network.num_inputs == NUM_FEATURES else f"            {network.num_inputs},\n"
    return f"PolicyNetwork(\n            {weights},\n            {biases},\n{inputs}        )"


def _schedule_types(schedule: Schedule) -> Iterator[type]:
    yield type(schedule)
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Schedule):
                yield from _schedule_types(part)


def _literal(tensor: Tensor) -> str:
    text = base64.b64encode(tensor.numpy().tobytes()).decode()
    lines = "\n".join(f'        "{line}"' for line in textwrap.wrap(text, 100)) or '        ""'
    return f"_tensor(\n        {tensor.dtype},\n        {tuple(tensor.shape)},\n{lines},\n    )"
