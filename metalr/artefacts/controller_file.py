"""Controllers as files: one `.safetensors` file with a JSON card in its header. Never pickle.

The card states the kind of controller, its training and its bounds; a SHA-256 over the whole file tells a damaged copy
from the original. A file from a stranger can at worst hold a bad controller, whose LR still stays within the bounds
that the card shows.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from metalr.control import loop
from metalr.control.catalog import build_controller
from metalr.control.controller import Controller
from metalr.control.lr import schedule_limit
from metalr.files import write_whole
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant, Schedule
from metalr.signals.observations import OBSERVATION_VERSION
from metalr.signals.stats import Prospect

FORMAT_VERSION = 1
# The folder in which shipped controllers are looked up by name.
SHIPPED = Path(__file__).parent / "shipped"
_NO_CHECKSUM = "0" * 64
_LARGEST_FILE = 16 * 2**20
_LARGEST_HEADER = 2**20
# Levels of lists and dicts in a card that are kept.
_DEEPEST = 16
_MAX_DECISIONS = 100_000
# A factor of the base LR outside this range means a damaged or hostile file, whatever its card says.
_SANE_FACTORS = (1e-9, 1e6)


def save_controller(path: str | Path, controller: Controller, card: Mapping[str, Any] | None = None) -> Path:
    """Write a controller to one file.

    Args:
        path: ends in `.safetensors`; its folder must exist.
        controller: any controller of a registered kind.
        card: JSON-able facts for people: training tasks, results, seeds, versions.

    Returns:
        The path.

    Raises:
        ValueError: the path has another ending, the card cannot be written as JSON, or the controller could not be
            loaded again.
        FileExistsError: the file already exists.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"got file name {path.name!r}, expected one that ends in .safetensors")
    if path.exists():
        raise FileExistsError(f"got {path}, which exists, expected a new file: choose another name or remove it first")
    write_whole(path, to_bytes(controller, card))
    return path


def to_bytes(controller: Controller, card: Mapping[str, Any] | None = None) -> bytes:
    """The content of the file that `save_controller` writes.

    Raises:
        ValueError: the card cannot be written as JSON, or the controller could not be loaded again.
    """
    full_card = {
        "format_version": FORMAT_VERSION,
        "observation_version": OBSERVATION_VERSION,
        "metalr_version": metadata.version("metalr"),
        "controller": controller.config(),
        "about": dict(card or {}),
    }
    try:
        text = json.dumps(full_card, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"got a card that JSON cannot hold ({error}), expected finite numbers and text") from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in controller.tensors().items()}
    content = safetensors.torch.save(tensors, {"metalr": text, "sha256": _NO_CHECKSUM})
    if _NO_CHECKSUM in text:  # it would be taken for the placeholder of the checksum
        raise ValueError("got a card with 64 zeros in a row, expected none: shorten the number")
    content = content.replace(_NO_CHECKSUM.encode(), hashlib.sha256(content).hexdigest().encode(), 1)
    from_bytes(content, "a controller")  # nothing is saved that could not be loaded again
    return content


def load_controller(source: str | Path) -> Controller:
    """Read a controller from a file, or a shipped one by name.

    Args:
        source: the path of a `.safetensors` file, or the name of a shipped controller.

    Raises:
        FileNotFoundError: there is no such file or shipped controller.
        ValueError: the file is truncated, damaged, foreign, or of another observation version.
    """
    path = _locate(source)
    return from_bytes(_read(path), str(path))[0]


def list_controllers() -> dict[str, str]:
    """The shipped controllers: name -> one sentence from its card.

    Example:
        >>> sorted(list_controllers())
        ['general']
    """
    found = {}
    for path in sorted(SHIPPED.glob("*.safetensors")):
        about = load_card(path)["about"]
        found[path.stem] = str(about.get("summary", ""))
    return found


def load_card(source: str | Path) -> dict[str, Any]:
    """The card of a controller file: `controller`, `about`, the versions, and `bounds`.

    The bounds are those of the controller, whatever the file says: of `lr_multiplier`, and of `lr_factor`, the LR in
    force over the base LR. A scheduler never leaves them.

    Args:
        source: as for `load_controller`.

    Raises:
        FileNotFoundError: there is no such file or shipped controller.
        ValueError: the file is truncated, damaged, foreign, or of another observation version.
    """
    path = _locate(source)
    return from_bytes(_read(path), str(path))[1]


def load_scheduler(
    source: str | Path, optimizer: Optimizer, horizon: int | None, *, base: Schedule | None = None, **options: Any
) -> LearnedLR:
    """A learned controller as a torch scheduler.

    Args:
        source: the path of a `.safetensors` file, or the name of a shipped controller.
        optimizer: any `torch.optim.Optimizer`; its LR is the guess that the controller corrects.
        horizon: optimizer updates in the run (not epochs); None if unknown.
        base: base schedule to replace the controller's own; without a horizon, by default, a constant one.
        options: of `LearnedLR`: decisions, steps_per_action, scope, hooks, distributed, measure, expects_loss.

    Raises:
        FileNotFoundError: there is no such file or shipped controller.
        ValueError: the file cannot be used, or the horizon does not suit the decisions.
    """
    path = _locate(source)
    controller, card = from_bytes(_read(path), str(path))
    if base is None and horizon is None:
        base = Constant()
    if base is not None:
        controller = controller.with_schedule(base)
    return LearnedLR(optimizer, controller, horizon, **{"expects_loss": needs_losses(card), **options})


def needs_losses(card: Mapping[str, Any]) -> bool:
    """Whether a card says that its controller sees losses and was never trained without."""
    about, visible = card.get("about"), card.get("controller", {}).get("visible")
    env = about.get("env") if isinstance(about, Mapping) else None
    hidden = env.get("hide_loss") if isinstance(env, Mapping) else None
    sees_losses = visible is None or any(str(name).startswith("loss") for name in visible)
    return isinstance(hidden, (int, float)) and hidden == 0.0 and sees_losses


def from_bytes(content: bytes, name: str = "the file") -> tuple[Controller, dict[str, Any]]:
    """The controller and the card in the content of a file.

    Args:
        content: of the file.
        name: of the file, for errors.

    Raises:
        ValueError: the content is not exactly as saved, or does not describe a usable controller.
    """
    card = _verified_card(content, name)
    if card.get("observation_version") != OBSERVATION_VERSION:
        raise ValueError(
            f"got {name} with observation version {card.get('observation_version')!r}, expected "
            f"{OBSERVATION_VERSION}: train or export the controller again with this version of metalr"
        )
    try:
        tensors = safetensors.torch.load(content)
        controller = build_controller(card["controller"], tensors)
        _check_sane(controller, tensors)
        return controller, _clean_card(card, controller)
    except Exception as error:  # every way in which a hostile card can fail ends in the same clear refusal
        raise ValueError(
            f"got {name}, which does not describe a controller ({_one_line(error)}), expected an export"
        ) from error


def _clean_card(card: dict[str, Any], controller: Controller) -> dict[str, Any]:
    """The card of a controller that was built from it, safe to print and to write again."""
    low, high = controller.bounds
    about = _cleaned(card.get("about"), _DEEPEST)
    return {
        **_cleaned(card, _DEEPEST),
        "controller": controller.config(),
        "about": about if isinstance(about, dict) else {} if about is None else {"about": about},
        "bounds": {"lr_multiplier": [low, high], "lr_factor": [0.0, high * schedule_limit(controller.schedule)]},
    }


def _cleaned(value: Any, depth: int) -> Any:
    """A value of a card without what could break an export or play tricks on a terminal."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in value)
    if isinstance(value, float) and not math.isfinite(value):  # JSON has 1e999
        return None
    if isinstance(value, (dict, list)) and depth == 0:
        return "…"
    if isinstance(value, dict):
        return {_cleaned(key, 0): _cleaned(item, depth - 1) for key, item in value.items()}
    return [_cleaned(item, depth - 1) for item in value] if isinstance(value, list) else value


def _one_line(error: Exception) -> str:
    text = " ".join(_cleaned(str(error), 0).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def _check_sane(controller: Controller, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if an undamaged file describes a controller that could not be used."""
    decisions = controller.decisions
    if isinstance(decisions, bool) or not isinstance(decisions, int) or not 1 <= decisions <= _MAX_DECISIONS:
        raise ValueError(f"{decisions!r} decisions are not a whole number between 1 and {_MAX_DECISIONS}")
    expected = controller.tensors()
    if set(tensors) != set(expected):
        raise ValueError(f"its tensors are {sorted(tensors)[:9]}, not {sorted(expected)[:9]}")
    wrong = [name for name, tensor in tensors.items() if tensor.dtype not in (torch.float32, torch.float64)]
    if wrong:
        raise ValueError(f"its tensors {wrong[:9]} are not of dtype float32 or float64")
    schedule = controller.schedule(torch.linspace(0.0, 2.0, 4001, dtype=torch.float64))
    if not bool(((schedule >= 0.0) & (schedule <= _SANE_FACTORS[1])).all()):
        raise ValueError(f"its base schedule leaves [0, {_SANE_FACTORS[1]:g}]")
    action = getattr(controller, "action", controller)
    bounds = [float(getattr(action, name, 1.0)) for name in ("low", "high")]
    like = torch.ones(1, 1, dtype=torch.float64)
    prospect = Prospect(1e-3 * like, like, like[:, 0])
    state = loop.start(controller, loop.init(controller.init(like), like), prospect, 1000.0)
    factors = torch.tensor([*bounds, state.multiplier.item(), *getattr(controller, "multipliers", ())])
    if not bool(((factors >= _SANE_FACTORS[0]) & (factors <= _SANE_FACTORS[1])).all()):
        raise ValueError(f"its LR multipliers leave [{_SANE_FACTORS[0]:g}, {_SANE_FACTORS[1]:g}]")


def _verified_card(content: bytes, name: str) -> dict[str, Any]:
    try:
        (length,) = struct.unpack("<Q", content[:8])
        if not 2 <= length <= len(content) - 8:
            raise ValueError("its header is longer than the file")
        if length > _LARGEST_HEADER:
            raise ValueError(f"its header is longer than {_LARGEST_HEADER} bytes")
        header = json.loads(content[8 : 8 + length])
        checksum, text = header["__metadata__"]["sha256"], header["__metadata__"]["metalr"]
        if not re.fullmatch("[0-9a-f]{64}", checksum):
            raise ValueError("its checksum is malformed")
        if _checksum(content, checksum) != checksum:
            raise ValueError("its checksum does not match its content")
        card = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
            raise ValueError("its card has another format version")
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"got {name}, which is truncated, damaged or not a metalr controller ({_one_line(error)}), "
            "expected a file that save_controller wrote: copy or export it again"
        ) from error
    return card


def _refuse_constant(name: str) -> None:
    raise ValueError(f"its card holds {name}, which is not a number")


def _checksum(content: bytes, written: str) -> str:
    """SHA-256 of the content, with zeros in place of the checksum `written` there. Copies nothing."""
    view, at = memoryview(content), content.index(written.encode())
    digest = hashlib.sha256(view[:at])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(view[at + len(written) :])
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(f"got {path} of {size} bytes, expected at most {_LARGEST_FILE}: this is not a controller")
    return path.read_bytes()


def _locate(source: str | Path) -> Path:
    if isinstance(source, str) and re.fullmatch("[a-z0-9][a-z0-9-]*", source):
        path = SHIPPED / f"{source}.safetensors"
        if not _is_file(path) and not _is_file(Path(source)):
            names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors"))) or "none"
            raise FileNotFoundError(
                f"got controller name {source!r}, expected a shipped one ({names}) or the path of a .safetensors file"
            )
        return path
    path = Path(source)
    if not _is_file(path):
        raise FileNotFoundError(f"got {path}, which is not a file, expected a controller saved as .safetensors")
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
