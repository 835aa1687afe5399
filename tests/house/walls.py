"""Counts on the syntax tree what the house's walls forbid.

python tests/house/walls.py             the table: today's counts and what they may be
python tests/house/walls.py --list N    the places that break wall N
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "paddlelite_trainer"

# Which part of the engine may import which: a part those of its own row and of the rows below it.
LAYERS = (
    {"configuration"},
    {"doctor"},
    {"tuner", "lr_finder"},
    {"trainer"},
    {"configured"},
    {"readable"},
    {"surroundings"},
    {"fit"},
    {"export"},
    {"module", "defaults"},
    {"module_hooks", "of_network"},
    {"run", "data", "callback", "logs", "settings", "optimizers", "layers", "gradients", "factories", "forward_inputs"},
    {"checkpoint", "reporting", "machine"},
    {"errors", "progress", "hyperparameters", "duration", "names_elsewhere", "importing"},
)
CLI_MAY_IMPORT = {"cli", "run", "checkpoint", "reporting", *LAYERS[-1]}
# Commands that need Paddle import it when they run; test_cli.py holds that no other does.
CLI_MAY_IMPORT_TOO = {("cli/exporting", "export"), ("cli/examining", "doctor"), ("cli/training", "configuration")}
# They exist for users' editors, so they count as arrows only outside `if TYPE_CHECKING`.
TYPE_ARROWS = {("module", "trainer"), ("callback", "trainer"), ("callback", "module")}

ROOMS_OF_PRIVATES = ("machine/paddle_internals", "machine/paddle_sharding")
# Python's own, public in spite of their underscore: what a named tuple has, os._exit and sys._current_frames.
OF_PYTHON = {"_fields", "_replace", "_asdict", "_exit", "_current_frames"}
HANDED_THE_TRAINER = {"callback", "tuner", "fit/hooks", "doctor/workload", "configuration/keeping"}
WIDE_CLASSES = {"Module", "Callback", "DataModule", "Readable", "Surroundings", "ModuleHooks"}
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_THE_LOOP = 90
LONGEST_LINE = 120

AnyFunction = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """One Python file, named as in `fit/loop` or `callbacks/ema`: by its path in the engine, or from the root."""

    name: str
    text: str
    tree: ast.Module

    @property
    def is_engine(self) -> bool:
        return not self.name.startswith("callbacks/")


class Place(NamedTuple):
    """Where a wall is broken; `size` is what a wall that compares a length looks at."""

    file: str
    line: int
    what: str
    size: int = 1


class Import(NamedTuple):
    """`file` imports `name` from `target`, which is a source's name or, from elsewhere, a dotted one."""

    file: str
    name: str
    target: str
    line: int
    for_checkers: bool


class Wall(NamedTuple):
    """What is counted, where, and whether the places are counted or the largest of them is."""

    what: str
    places: Callable[[Sequence[Source]], Iterable[Place]]
    largest: bool = False

    def count(self, files: Sequence[Source]) -> int:
        sizes = [place.size for place in self.places(files)]
        return max(sizes, default=0) if self.largest else len(sizes)


def source(name: str, text: str) -> Source:
    return Source(name, text, ast.parse(text))


def sources(root: Path = ROOT) -> list[Source]:
    """The engine's files and those of callbacks/."""
    engine = root / PACKAGE
    named = [(path.relative_to(engine), path) for path in sorted(engine.rglob("*.py"))]
    named += [(path.relative_to(root), path) for path in sorted((root / "callbacks").rglob("*.py"))]
    return [source(name.with_suffix("").as_posix(), path.read_text(encoding="utf-8")) for name, path in named]


# -- 1 to 3: what belongs to others ------------------------------------------------------------------------------------


def private_reaches(files: Sequence[Source]) -> Iterator[Place]:
    """`x._y`, where x is neither self nor cls nor super(), `getattr(x, "_y")` and `from x import _y`."""
    for file in files:
        for node in ast.walk(file.tree) if file.name not in ROOMS_OF_PRIVATES else ():
            by_dot = isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_self(node.value)
            if by_dot or _asks_for_a_private_by_name(node):
                yield Place(file.name, node.lineno, ast.unparse(node))
            elif isinstance(node, ast.ImportFrom):
                private = [alias.name for alias in node.names if _is_private(alias.name)]
                yield from (Place(file.name, node.lineno, f"imports {name}") for name in private)


def handed_the_trainer(files: Sequence[Source]) -> Iterator[Place]:
    """Functions of the engine with a parameter `trainer`, or one annotated Trainer."""
    for file in files:
        if not file.is_engine or file.name in HANDED_THE_TRAINER:
            continue
        for node in ast.walk(file.tree):
            if isinstance(node, AnyFunction) and any(_is_the_trainer(one) for one in _parameters(node)):
                yield Place(file.name, node.lineno, node.name)


def outside_writes(files: Sequence[Source]) -> Iterator[Place]:
    """`x.y = ...`, where x is neither self nor cls."""
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not _is_self(node.value):
                yield Place(file.name, node.lineno, ast.unparse(node))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OF_PYTHON


def _is_self(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _asks_for_a_private_by_name(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1):
        return False
    name = node.args[1]
    asks = node.func.id in ("getattr", "setattr", "hasattr", "delattr")
    return asks and isinstance(name, ast.Constant) and _is_private(str(name.value))


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    arguments = function.args
    stars = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *stars]


def _is_the_trainer(parameter: ast.arg) -> bool:
    annotation = ast.unparse(parameter.annotation).strip("'\"") if parameter.annotation else ""
    kinds = [kind.split(".")[-1] for kind in annotation.removeprefix("Optional[").removesuffix("]").split(" | ")]
    return parameter.arg == "trainer" or "Trainer" in kinds


# -- 4: who is born when -----------------------------------------------------------------------------------------------


def born_late(files: Sequence[Source]) -> Iterator[Place]:
    """Attributes of Trainer, Readable, Settings and fit/'s classes that neither `__init__` nor the class body makes."""
    classes = [(file, node) for file in files for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef)]
    by_name = {node.name: node for file, node in classes if file.is_engine}
    for file, node in classes:
        if not (file.name.startswith("fit/") or (file.is_engine and node.name in ("Trainer", "Readable", "Settings"))):
            continue
        early = _born_early(node, by_name)
        late: dict[str, int] = {}
        for method in node.body:
            for name, line in _writes_to_self(method):
                if name not in early:
                    late.setdefault(name, line)
        for name, line in late.items():
            yield Place(file.name, line, f"{node.name}.{name}")


def _born_early(node: ast.ClassDef, by_name: dict[str, ast.ClassDef]) -> set[str]:
    early: set[str] = set()
    for base in node.bases:
        parent = by_name.get(base.id) if isinstance(base, ast.Name) else None
        if parent is not None and parent is not node:
            early |= _born_early(parent, by_name)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            early.add(statement.target.id)
        elif isinstance(statement, ast.Assign):
            early |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, AnyFunction):
            if statement.name in ("__init__", "__post_init__"):
                early |= {name for name, _ in _writes_to_self(statement)}
            elif any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in statement.decorator_list):
                early.add(statement.name)
    return early


def _writes_to_self(node: ast.AST) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.ClassDef):
        return  # a class of its own, with a self of its own
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
        yield node.attr, node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _writes_to_self(child)


# -- 5 and 6: who imports whom -----------------------------------------------------------------------------------------


def in_circles(files: Sequence[Source]) -> Iterator[Place]:
    """Files of the engine that import themselves by way of others; in functions and for type checkers counts too."""
    arrows: dict[str, set[str]] = {file.name: set() for file in files if file.is_engine}
    for one in imports(files):
        if one.target in arrows and "__init__" not in (one.file, one.target) and not _is_type_arrow(one):
            arrows[one.file].add(one.target)
    for name in arrows:
        if name in _reached_from(name, arrows):
            partners = sorted(other for other in arrows[name] if name in _reached_from(other, arrows))
            yield Place(name, 1, f"imports {', '.join(partners)}, which lead back to it")


def against_the_layers(files: Sequence[Source]) -> Iterator[Place]:
    """Imports that go up, those of a part that no layer names, and the command line's of Paddle."""
    known = {file.name for file in files if file.is_engine}
    row = {part: index for index, layer in enumerate(LAYERS) for part in layer}
    seen: set[tuple[str, str]] = set()
    for one in imports(files):
        importer, imported = one.file.split("/")[0], one.target.split("/")[0]
        if (one.file, one.target) in seen or "__init__" in (importer, imported) or _is_type_arrow(one):
            continue
        if one.target not in known:
            allowed = importer != "cli" or one.target.split(".")[0] != "paddle"
        elif importer == "cli":
            allowed = imported in CLI_MAY_IMPORT or (one.file, imported) in CLI_MAY_IMPORT_TOO
        else:
            allowed = importer in row and imported in row and row[importer] <= row[imported]
        if not allowed:
            seen.add((one.file, one.target))
            yield Place(one.file, one.line, f"imports {one.target}")


def imports(files: Sequence[Source]) -> Iterator[Import]:
    """Every import in the engine, wherever it stands; a name taken from the package leads to the file it lives in."""
    known = {file.name for file in files if file.is_engine}
    package = [file for file in files if file.name == "__init__"]
    homes = {one.name: one.target for file in package for one in _written_imports(file, known)}
    for file in files:
        for one in _written_imports(file, known) if file.is_engine else ():
            if one.target == "__init__" and one.name in homes:
                one = one._replace(target=homes[one.name])
            yield one


def _written_imports(file: Source, known: set[str]) -> Iterator[Import]:
    for_checkers = {
        id(inner)
        for node in ast.walk(file.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    folder = [PACKAGE, *file.name.split("/")[:-1]]
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            found = [("", alias.name, _home(alias.name, known)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            homes = [_home(f"{base}.{alias.name}", known) or _home(base, known) for alias in node.names]
            found = [(alias.name, base, home) for alias, home in zip(node.names, homes)]
        else:
            continue
        for name, dotted, home in found:
            yield Import(file.name, name, home or dotted, node.lineno, id(node) in for_checkers)


def _home(dotted: str, known: set[str]) -> str | None:
    """The file of the engine that a dotted name means, if it means one."""
    if dotted.split(".")[0] != PACKAGE:
        return None
    name = "/".join(dotted.split(".")[1:])
    return next((one for one in (name, f"{name}/__init__".lstrip("/")) if one in known), None)


def _is_type_arrow(one: Import) -> bool:
    return one.for_checkers and (one.file, one.target) in TYPE_ARROWS


def _reached_from(start: str, arrows: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    ahead = [*arrows[start]]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += arrows[name]
    return reached


# -- 7: how long things are --------------------------------------------------------------------------------------------


def files_by_length(files: Sequence[Source]) -> Iterator[Place]:
    for file in files:
        if file.is_engine:
            length = len(file.text.splitlines())
            yield Place(file.name, 1, f"{length} lines", length)


def classes_by_methods(files: Sequence[Source]) -> Iterator[Place]:
    """How many methods a class of the engine has; those that offer users a hook each, and Readable, are left out."""
    for file in files:
        for node in ast.walk(file.tree) if file.is_engine else ():
            if isinstance(node, ast.ClassDef) and node.name not in WIDE_CLASSES:
                methods = sum(isinstance(one, AnyFunction) for one in node.body)
                yield Place(file.name, node.lineno, f"{node.name} has {methods} methods", methods)


def long_functions(files: Sequence[Source]) -> Iterator[Place]:
    """Functions too long for a screen without their docstring; the loop's may be longer, as it is to be read whole."""
    for file in files:
        for node in ast.walk(file.tree):
            if not isinstance(node, AnyFunction):
                continue
            first = node.body[0]
            is_docstring = ast.get_docstring(node, clean=False) is not None
            lines = node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if is_docstring else 0)
            is_the_loop = (file.name, node.name) == ("fit/loop", "train")
            if lines > (MOST_LINES_OF_THE_LOOP if is_the_loop else MOST_LINES_OF_A_FUNCTION):
                yield Place(file.name, node.lineno, f"{node.name}: {lines} lines", lines)


def long_lines(files: Sequence[Source]) -> Iterator[Place]:
    for file in files:
        for number, line in enumerate(file.text.splitlines(), 1):
            if len(line) > LONGEST_LINE:
                yield Place(file.name, number, f"{len(line)} characters")


# -- the table ---------------------------------------------------------------------------------------------------------

WALLS = {
    "1": Wall("private names of others, outside machine/paddle_internals.py", private_reaches),
    "2": Wall("functions of the engine that are handed the Trainer", handed_the_trainer),
    "3": Wall("attributes written from outside", outside_writes),
    "4": Wall("attributes born outside __init__ and the class body", born_late),
    "5": Wall("files in circles of imports", in_circles),
    "6": Wall("imports against the layers", against_the_layers),
    "7a": Wall("lines of the longest file of the engine", files_by_length, largest=True),
    "7b": Wall("methods of the largest class of the engine", classes_by_methods, largest=True),
    "7c": Wall("functions over 60 lines; fit/loop.py's train over 90", long_functions),
    "7d": Wall("lines over 120 characters", long_lines),
}
# (most today, most in the end). The first may only fall: whoever makes it smaller lowers it here, down to the second.
RATCHET = {
    "1": (0, 0),
    "2": (0, 0),
    "3": (50, 50),
    "4": (0, 0),
    "5": (0, 0),
    "6": (0, 0),
    "7a": (500, 500),
    "7b": (40, 40),
    "7c": (0, 0),
    "7d": (0, 0),
}


def listed(number: str, files: Sequence[Source]) -> list[str]:
    """The places that break a wall as `file:line what`; where lengths are compared, those above the final limit."""
    wall, (_, final) = WALLS[number], RATCHET[number]
    places = [place for place in wall.places(files) if not wall.largest or place.size > final]
    folders = {file.name: f"{PACKAGE}/" if file.is_engine else "" for file in files}
    return [f"{folders[place.file]}{place.file}.py:{place.line}  {place.what}" for place in sorted(places)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts what the house's walls forbid.")
    parser.add_argument("--list", metavar="N", help="the places that break wall N; 7 stands for 7a to 7d")
    chosen = parser.parse_args().list
    files = sources()
    if chosen is not None:
        numbers = [number for number in WALLS if number == chosen or number[:-1] == chosen]
        if not numbers:
            parser.error(f"there is no wall {chosen}: choose among {', '.join(WALLS)}")
        for number in numbers:
            print(f"{number} {WALLS[number].what}", *listed(number, files), sep="\n  ")
        return
    print(f"{'wall':<64}{'count':>7}{'limit':>7}{'final':>7}")
    for number, wall in WALLS.items():
        today, final = RATCHET[number]
        print(f"{number:<3} {wall.what:<60}{wall.count(files):>7}{today:>7}{final:>7}")


if __name__ == "__main__":
    main()
