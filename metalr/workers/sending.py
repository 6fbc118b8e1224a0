"""Work as bytes that another process can read, and what is left of its errors."""

from typing import Any


def dumps(value: Any) -> bytes:
    """The bytes of a value; functions that are in no importable module are sent whole."""
    import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise ValueError(
            f"got work that cannot be sent to another process ({type(error).__name__}: {error}), expected data and "
            "functions without open files, generators or locks: run it in this process, with one worker"
        ) from error


def last_line(text: str) -> str:
    """The last line of a traceback, which has the error."""
    return text.strip().splitlines()[-1]
