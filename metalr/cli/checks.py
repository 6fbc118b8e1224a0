"""The device and the controller that a command was given."""

from pathlib import Path

import torch


def check_device(name: str) -> None:
    """Raise ValueError if a device cannot be used here."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"got device {name!r}, which cannot be used here ({reason}), expected cpu or cuda") from error


def file_or_name(source: Path) -> Path | str:
    """The path of a file, or the name of a shipped controller where there is no such file."""
    from metalr.artefacts.controller_file import SHIPPED

    is_name = len(source.parts) == 1 and not source.exists() and (SHIPPED / f"{source}.safetensors").is_file()
    return str(source) if is_name else source
