"""The command line: `metalr train`, `export`, `compare`, `explain`, `tune`, `find-lr` and `list`."""

import sys
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args

import torch

from metalr.workers import UnitError

try:
    import tyro
except ImportError as error:
    raise SystemExit("the command line needs tyro: pip install 'metalr[cli]'") from error

from metalr.cli.compare import Compare
from metalr.cli.explain import Explain
from metalr.cli.export import Export
from metalr.cli.find_lr import FindLR
from metalr.cli.list import List
from metalr.cli.tune import Tune

try:
    from metalr.cli.train import Train
except ImportError as error:  # the agents need more than the core; the other commands work without them
    _missing = str(error)

    @dataclass
    class Train:  # type: ignore[no-redef]
        """Train a controller (needs pip install 'metalr[rl,data]')."""

        def run(self) -> None:
            """Say which packages are missing."""
            raise SystemExit(f"training needs more packages ({_missing}): pip install 'metalr[rl,data]'")


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """`X | None` reads like X in the help, with the default `none`, where tyro would write `{None}|X`."""
    kinds = get_args(info.type)
    if info.type_origin not in (Union, UnionType) or len(kinds) != 2 or NoneType not in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    inner = tyro.constructors.PrimitiveTypeInfo.make(kind, info.markers)
    spec = tyro.constructors.ConstructorRegistry.get_primitive_spec(inner)
    if isinstance(spec, tyro.constructors.UnsupportedTypeAnnotationError):
        return None

    return replace(
        spec,
        instance_from_str=lambda words: None if words == ["none"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["none"] if value is None else spec.str_from_instance(value),
    )


_COMMANDS: dict[str, type] = {
    "train": Train,
    "export": Export,
    "compare": Compare,
    "explain": Explain,
    "tune": Tune,
    "find-lr": FindLR,
    "list": List,
}
_Command: Any = Union[  # noqa: UP007
    tuple(
        Annotated[Any, tyro.conf.subcommand(name=name, constructor=command, prefix_name=False)]
        for name, command in _COMMANDS.items()
    )
]


@dataclass
class _Metalr:
    """Learning-rate controllers, learned and compared."""

    command: Annotated[_Command, tyro.conf.arg(name="", help="Each has a --help of its own.")]  # type: ignore[valid-type]
    version: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False
    """show the version and exit"""  # which `metalr.__main__` does, without all that is imported here


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `metalr` command."""
    # Two threads on small kernels collapse as soon as anything else runs beside them.
    torch.set_num_threads(1)
    command: Any = tyro.cli(_Metalr, prog="metalr", args=arguments, registry=_REGISTRY).command
    try:
        command.run()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the folder holds what was done, and the same command continues it") from None
    except (ValueError, TypeError, OSError, ImportError, UnitError) as error:
        raise SystemExit(f"metalr: {error}") from None
