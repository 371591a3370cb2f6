"""Reads the tables that LIBERO-Plus keeps in Python sources, without importing or running them.

Classes are looked up by name in the text (7,629 of them define scenes), and what is asked for is
read from that part alone.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs._plus_package import LiberoPlusError

_HEADER = re.compile(r"^class (?P<name>\w+)\((?P<base>\w+)\):", re.MULTILINE)
_COMMENT = re.compile(r"#.*")
_SCENE_ENTRY = re.compile(
    r"""["'](?P<name>scene_xml|floor_style|wall_style)["']:\s*["'](?P<value>[^"']+)["']"""
)
_NUMPY: dict[str, Any] = {"pi": np.pi, "arange": np.arange, "array": np.array}
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


@dataclass(frozen=True, kw_only=True)
class SceneChange:
    """What a variant's problem class changes in LIBERO's.

    Attributes:
        base: LIBERO's problem class.
        scene_xml: the arena's file in the assets folder, None for LIBERO's own.
        floor_style: name of the floor's texture, None for LIBERO's own.
        wall_style: name of the wall's texture, None for LIBERO's own.
    """

    base: str
    scene_xml: str | None = None
    floor_style: str | None = None
    wall_style: str | None = None


@dataclass(frozen=True, kw_only=True)
class AddedObject:
    """An object class of LIBERO-Plus.

    Attributes:
        category: as the definitions name it.
        xml: its model's file in the assets folder.
        rotation: axis -> range of the angles (rad) that LIBERO's samplers may give it.
        rotation_axis: the axis they turn it about, None for all.
    """

    category: str
    xml: str
    rotation: dict[str, tuple[float, float]] | None
    rotation_axis: str | None


@functools.cache
def task_names(definitions: Path) -> dict[str, list[str]]:
    """Suite -> names of its tasks, in the benchmark's order."""
    names = _assignments(definitions / "benchmark" / "libero_suite_task_map.py")["libero_task_map"]
    return {suite: list(tasks) for suite, tasks in names.items()}


@functools.cache
def style_textures(definitions: Path) -> dict[str, dict[str, str]]:
    """ "floor" or "wall" -> style -> texture file in the assets' `textures`."""
    values = _assignments(definitions / "envs" / "arenas" / "style.py")
    return {"floor": values["FLOOR_STYLE"], "wall": values["WALL_STYLE"]}


@functools.cache
def scene_change(definitions: Path, problem: str) -> SceneChange:
    """What a problem class changes; `problem` as a definition file names it, in any case.

    Raises:
        LiberoPlusError: the package has no such class.
    """
    for path in sorted((definitions / "envs" / "problems").glob("libero_*.py")):
        if cls := _classes(path).get(problem.lower()):
            return _scene_change(cls)
    raise LiberoPlusError(f"{definitions} has no problem class {problem!r}.")


@functools.cache
def robot_joints(definitions: Path, mount: str, number: int) -> tuple[float, ...]:
    """The seven joint angles (rad) of a robot's initial posture.

    Args:
        definitions: see `PlusFiles`.
        mount: "mounted_panda" or "on_the_ground_panda", as the task's scene has it.
        number: from 1.

    Raises:
        LiberoPlusError: the package has no such posture.
    """
    path = definitions / "envs" / "robots" / f"{mount}.py"
    cls = _classes(path).get(f"{mount.replace('_', '')}{number}")
    if cls is None:
        raise LiberoPlusError(f"{path} has no robot posture number {number}.")
    values = next(node.value for node in ast.walk(cls.parse()) if isinstance(node, ast.Return))
    assert values is not None, path
    return tuple(float(angle) for angle in _value(values))


@functools.cache
def added_object(definitions: Path, category: str) -> AddedObject | None:
    """An object class of LIBERO-Plus by its category, None if it is none of them."""
    cls = _objects(definitions).get(category)
    if cls is None:
        return None
    body = cls.parse()
    texts = [n.value for n in ast.walk(body) if isinstance(n, ast.Constant)]
    xml = next(text for text in texts if isinstance(text, str) and text.endswith(".xml"))
    fields = {
        node.targets[0].attr: _value(node.value)
        for node in ast.walk(body)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    }
    return AddedObject(
        category=category,
        xml=xml.removeprefix("assets/"),
        rotation=fields.get("rotation"),
        rotation_axis=fields.get("rotation_axis"),
    )


@functools.cache
def corruption_table(definitions: Path, function: str) -> list[Any]:
    """The parameters of an image corruption, one entry per severity."""
    tree = ast.parse((definitions / "envs" / "env_wrapper.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            tables = [
                statement.value.value
                for statement in node.body
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Subscript)
            ]
            return list(_value(tables[0]))
    raise LiberoPlusError(f"{definitions} has no image corruption {function!r}.")


@dataclass(frozen=True)
class _Class:
    """A class in a source text, not parsed yet."""

    base: str
    text: str
    start: int
    end: int

    def parse(self) -> ast.Module:
        body = self.text[self.start : self.end].rsplit("\n@", 1)[0]  # the next class's decorator
        return ast.parse(body)


@functools.cache
def _classes(path: Path) -> dict[str, _Class]:
    """Lower-case name -> class, for every class of a file; of equal names the last counts."""
    text = path.read_text(encoding="utf-8")
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    return {
        header["name"].lower(): _Class(header["base"], text, header.start(), end)
        for header, end in zip(headers, ends, strict=True)
    }


@functools.cache
def _objects(definitions: Path) -> dict[str, _Class]:
    """Category -> class. A category is the class name with a break before capitals and digits."""
    path = definitions / "envs" / "objects" / "custom_objects.py"
    names = _HEADER.finditer(path.read_text(encoding="utf-8"))
    classes = _classes(path)
    return {
        "_".join(re.sub(r"([A-Z0-9])", r" \1", m["name"]).split()).lower(): classes[
            m["name"].lower()
        ]
        for m in names
    }


def _scene_change(cls: _Class) -> SceneChange:
    """By its text: there are thousands, and parsing all takes seconds."""
    text = _COMMENT.sub("", cls.text[cls.start : cls.end])
    values = {match["name"]: match["value"] for match in _SCENE_ENTRY.finditer(text)}
    return SceneChange(base=cls.base, **values)


def _assignments(path: Path) -> dict[str, Any]:
    """Names bound to literals at the top of a file."""
    values = {}
    for node in _top_level(path):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # computed from the others
    return values


def _top_level(path: Path) -> Iterator[ast.stmt]:
    yield from ast.parse(path.read_text(encoding="utf-8")).body


def _value(node: ast.expr) -> Any:
    """A literal, with arithmetic and `np.pi`, `np.arange` and `np.array` in it."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {_value(k): _value(v) for k, v in zip(keys, values, strict=True) if k}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.Attribute(value=ast.Name(id="np"), attr=name) if name in _NUMPY:
            return _NUMPY[name]
        case ast.Call(func=function, args=arguments, keywords=[]):
            return _value(function)(*(_value(argument) for argument in arguments))
    raise LiberoPlusError(
        f"LIBERO-Plus's source has {ast.unparse(node)!r} where a value should be."
    )
