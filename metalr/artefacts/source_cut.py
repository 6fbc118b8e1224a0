"""Classes of this package, and every definition that they reach, cut out into one flat piece of source.

It edits source text by the positions in its syntax tree, so that comments and layout survive.
"""

import ast
import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

PACKAGE = "metalr"


class Symbol(NamedTuple):
    """A top-level name of one of our modules.

    Attributes:
        module: full name of the module.
        name: in that module.
    """

    module: str
    name: str


@dataclass
class _Module:
    """The parts of a source file that matter for cutting."""

    name: str
    lines: list[str]
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, Symbol] = field(default_factory=dict)  # names from our other modules
    aliases: dict[str, str] = field(default_factory=dict)  # our other modules themselves
    foreign: dict[str, str] = field(default_factory=dict)  # name -> import line


@cache
def _module(name: str) -> _Module:
    source = inspect.getsource(importlib.import_module(name))
    module = _Module(name, source.splitlines())
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                shown = alias.asname or alias.name.split(".")[0]
                module.foreign[shown] = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        elif isinstance(node, ast.ImportFrom):
            _note_import_from(module, node)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for leaf in ast.walk(target):
                    if isinstance(leaf, ast.Name):
                        module.definitions[leaf.id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            module.definitions[node.target.id] = node
    return module


def _note_import_from(module: _Module, node: ast.ImportFrom) -> None:
    origin = node.module or ""
    for alias in node.names:
        shown = alias.asname or alias.name
        if origin.split(".")[0] != PACKAGE:
            module.foreign[shown] = f"from {origin} import {alias.name}" + (
                f" as {alias.asname}" if alias.asname else ""
            )
        elif _is_module(f"{origin}.{alias.name}"):
            module.aliases[shown] = f"{origin}.{alias.name}"
        else:
            module.imported[shown] = Symbol(origin, alias.name)


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


def cut_out(roots: Iterable[type], *, leave_out: frozenset[str], also_import: tuple[str, ...] = ()) -> str:
    """The source of some classes and of everything they use from this package, after their imports.

    Args:
        roots: classes of this package.
        leave_out: names of methods to drop from every class.
        also_import: further import lines, for code that the caller appends.

    Raises:
        ValueError: a name cannot be made unique without changing what the code means.
    """
    reached = _reach([Symbol(root.__module__, root.__name__) for root in roots], leave_out)
    flat = _flat_names(reached, leave_out)
    imports = {line for symbol in reached for line in _foreign_of(symbol, leave_out)} | set(also_import)
    text = _import_block(imports)
    for name in _in_order(reached):
        module = _module(name)
        nodes = {id(module.definitions[s.name]): module.definitions[s.name] for s in reached if s.module == name}
        text += f"\n\n# From {name}\n"
        after_line = False
        for node in sorted(nodes.values(), key=lambda n: n.lineno):
            is_line = not isinstance(node, ast.FunctionDef | ast.ClassDef)
            text += "\n" * (1 if is_line and after_line else 2)
            text += _renamed(_text(module, node, leave_out), module, flat) + "\n"
            after_line = is_line
    return text


def _import_block(lines: set[str]) -> str:
    """Import lines, sorted, with the standard library first and one line per module."""
    plain = {line for line in lines if line.startswith("import")}
    names: dict[str, set[str]] = {}
    for line in lines - plain:
        origin, name = line.removeprefix("from ").split(" import ")
        names.setdefault(origin, set()).add(name)
    merged = [*plain, *(f"from {origin} import {', '.join(sorted(found))}" for origin, found in names.items())]
    blocks: list[list[str]] = [[], []]
    for line in sorted(merged, key=lambda line: (line.startswith("from"), line)):
        blocks[line.split()[1].split(".")[0] == "torch"].append(line)
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _kept(node: ast.stmt, leave_out: frozenset[str]) -> Iterable[ast.AST]:
    """The nodes of a definition, except in methods that are left out."""
    pending: list[ast.AST] = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, ast.FunctionDef) and item is not node and item.name in leave_out:
            continue
        yield item
        pending.extend(ast.iter_child_nodes(item))


def _resolve(symbol: Symbol) -> Symbol | None:
    """The place where a name is defined: the `__init__` of a package may only re-export it."""
    module = _module(symbol.module)
    if symbol.name in module.definitions:
        return symbol
    return _resolve(module.imported[symbol.name]) if symbol.name in module.imported else None


def _uses(symbol: Symbol, leave_out: frozenset[str]) -> Iterable[Symbol]:
    """The names of our own that a definition mentions."""
    module = _module(symbol.module)
    for item in _kept(module.definitions[symbol.name], leave_out):
        found = None
        if isinstance(item, ast.Name):
            found = _resolve(Symbol(module.name, item.id))
        elif isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id in module.aliases:
            found = _resolve(Symbol(module.aliases[item.value.id], item.attr))
        if found is not None:
            yield found


def _foreign_of(symbol: Symbol, leave_out: frozenset[str]) -> Iterable[str]:
    module = _module(symbol.module)
    for item in _kept(module.definitions[symbol.name], leave_out):
        if isinstance(item, ast.Name) and item.id in module.foreign:
            yield module.foreign[item.id]


def _reach(roots: list[Symbol], leave_out: frozenset[str]) -> list[Symbol]:
    reached: dict[Symbol, None] = {}
    pending = list(roots)
    while pending:
        symbol = pending.pop()
        if symbol not in reached:
            reached[symbol] = None
            pending.extend(_uses(symbol, leave_out))
    return list(reached)


def _in_order(reached: list[Symbol]) -> list[str]:
    """The modules, each after those it imports."""
    wanted, order, seen = {symbol.module for symbol in reached}, [], set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        module = _module(name)
        for other in [*(symbol.module for symbol in module.imported.values()), *module.aliases.values()]:
            visit(other)
        if name in wanted:
            order.append(name)

    for name in sorted(wanted):
        visit(name)
    return order


def _flat_names(reached: list[Symbol], leave_out: frozenset[str]) -> dict[Symbol, str]:
    """The name of each definition in the flat file: its own, prefixed with that of its module where two would clash."""
    taken: dict[str, int] = {}
    for symbol in reached:
        taken[symbol.name] = taken.get(symbol.name, 0) + 1
    # The last word of an import line is the name that it binds; torch has an `SGD` too.
    imported = {line.split()[-1] for symbol in reached for line in _foreign_of(symbol, leave_out)}
    by_attribute = {
        found
        for symbol in reached
        for item in _kept(_module(symbol.module).definitions[symbol.name], leave_out)
        if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name)
        if item.value.id in _module(symbol.module).aliases
        if (found := _resolve(Symbol(_module(symbol.module).aliases[item.value.id], item.attr))) is not None
    }
    # `stats.ratio` may occur beside a local variable `ratio`; a class never shares its name with one.
    local = {name for symbol in reached for name in _bound_names(_module(symbol.module).definitions[symbol.name])}
    flat = {}
    for symbol in reached:
        clash = taken[symbol.name] > 1 or symbol.name in imported or (symbol in by_attribute and symbol.name in local)
        last = symbol.module.rsplit(".", 1)[-1]
        prefix = f"_{last}_" if symbol.name.startswith("_") else f"{last}_"
        flat[symbol] = prefix + symbol.name.lstrip("_") if clash else symbol.name
    return flat


def _bound_names(node: ast.AST) -> set[str]:
    """Parameters and local variables of the functions in a definition."""
    functions = [item for item in ast.walk(node) if isinstance(item, ast.FunctionDef | ast.Lambda)]
    found = {item.arg for function in functions for item in ast.walk(function) if isinstance(item, ast.arg)}
    names = (item for function in functions for item in ast.walk(function) if isinstance(item, ast.Name))
    return found | {name.id for name in names if isinstance(name.ctx, ast.Store)}


def _text(module: _Module, node: ast.stmt, leave_out: frozenset[str]) -> str:
    """The lines of a definition with the comment above it, without the methods that are left out."""
    first = _first_line(node)
    while first > 1 and module.lines[first - 2].startswith("#"):
        first -= 1
    dropped: set[int] = set()
    for item in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(item, ast.FunctionDef) and item.name in leave_out:
            dropped |= set(range(_first_line(item) - 1, (item.end_lineno or 0) + 1))  # with the blank line above
    numbered = enumerate(module.lines[first - 1 : node.end_lineno], first)
    return "\n".join(line for number, line in numbered if number not in dropped)


def _first_line(node: ast.AST) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])  # type: ignore[attr-defined]


def _renamed(text: str, module: _Module, flat: dict[Symbol, str]) -> str:
    """The text with flat names in place of `alias.name` and of names that clash."""
    tree = ast.parse(text)
    bound = _bound_names(tree)
    in_strings = {id(part) for item in ast.walk(tree) if isinstance(item, ast.JoinedStr) for part in ast.walk(item)}
    lines = [line.encode() for line in text.splitlines()]  # the tree counts bytes
    edits: list[tuple[int, int, int, str]] = []
    for item in ast.walk(tree):
        found, row, start, stop = _mention(item, module, lines)
        new = flat.get(found) if found is not None else None
        old = lines[row - 1][start:stop].decode() if new is not None else None
        if new is None or new == old:
            continue
        if id(item) in in_strings or old in bound:
            raise ValueError(
                f"got {old!r} in {module.name} as a clashing name and also in an f-string or as a variable, "
                "expected it to mean one thing: rename the variable"
            )
        edits.append((row, start, stop, new))
    for row, start, stop, new in sorted(edits, reverse=True):
        lines[row - 1] = lines[row - 1][:start] + new.encode() + lines[row - 1][stop:]
    return b"\n".join(lines).decode()


def _mention(item: ast.AST, module: _Module, lines: list[bytes]) -> tuple[Symbol | None, int, int, int]:
    """The definition of ours that a node mentions or makes, and its place: row, first byte, end byte."""
    if isinstance(item, ast.Name):
        return _resolve(Symbol(module.name, item.id)), item.lineno, item.col_offset, item.end_col_offset or 0
    if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id in module.aliases:
        found = _resolve(Symbol(module.aliases[item.value.id], item.attr))
        return found, item.lineno, item.col_offset, item.end_col_offset or 0
    if isinstance(item, ast.FunctionDef | ast.ClassDef) and item.col_offset == 0:
        start = lines[item.lineno - 1].index(item.name.encode())
        return Symbol(module.name, item.name), item.lineno, start, start + len(item.name.encode())
    return None, 0, 0, 0
