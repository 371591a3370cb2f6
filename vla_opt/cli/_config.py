"""Configuration from YAML and the command line: ``--config_path=x.yaml --optimizer.lr=1e-3``.

The notation and the decoding of values are draccus's, as in lerobot. The tree of dataclasses is
built here, for two reasons: an unknown key is answered with the nearest valid one, and setting one
key of a nested configuration keeps its parent's defaults for the others (draccus would fall back to
those of the nested class).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import draccus
from draccus import cfgparsing
from draccus.choice_types import CHOICE_TYPE_KEY
from draccus.utils import DraccusException, is_choice_type, is_union

from vla_opt.errors import ConfigError, nearest

Tree = dict[str, Any]
_CONFIG_KEY = "config_path"


def parse[T](config_class: type[T], argv: Sequence[str]) -> T:
    """Build a configuration from the words behind a verb.

    Args:
        config_class: A dataclass; nested dataclasses, draccus choice types and optional ones may
            occur.
        argv: ``--key=value``, ``--key value``, ``--flag`` and ``--config_path=FILE``; dots reach
            into nested keys. The command line wins over the file, the file over the defaults.

    Returns:
        An instance of ``config_class``.

    Raises:
        ConfigError: For an unknown key (naming the nearest valid one), a missing or malformed file,
            a value that does not fit its type, or one that the dataclass itself refuses.
        SystemExit: With code 0 after ``--help``.
    """
    if {"-h", "--help"} & set(argv):
        from vla_opt.cli._config_help import config_help

        print(config_help(config_class))
        raise SystemExit(0)
    flags = read_flags(argv)
    path = flags.pop(_CONFIG_KEY, None)
    tree = read_yaml(Path(path)) if path is not None else {}
    for key, raw in flags.items():
        _set(tree, key, _parse_value(key, raw))
    return from_tree(config_class, tree)


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file.

    Raises:
        ConfigError: If the file is missing, is no YAML, or holds something else than a mapping.
    """
    if not path.is_file():
        raise ConfigError(f"configuration file '{path}' does not exist.{_siblings(path)}")
    try:
        with path.open(encoding="utf-8") as stream:
            tree = cfgparsing.load_config(stream, file=path)
    except DraccusException as error:
        raise ConfigError(f"{path} is not valid YAML: {error.__cause__ or error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}.")
    return tree


def _siblings(path: Path) -> str:
    files = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return nearest(str(path), files) if files else ""


def from_tree[T](config_class: type[T], tree: Mapping[str, Any]) -> T:
    """Build ``config_class`` from nested mappings, as :func:`parse` does from a file."""
    built: T = _build(config_class, None, dict(tree), ())
    return built


def read_flags(argv: Sequence[str]) -> dict[str, str]:
    """The words behind a verb by key, values as they were given.

    Raises:
        ConfigError: For a word that is no flag.
    """
    flags: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"expected --key=value, got '{word}'.")
        key, separator, value = word[2:].partition("=")
        if not separator:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        flags[key] = value
    return flags


def _parse_value(key: str, raw: str) -> Any:
    try:
        return cfgparsing.parse_string(raw)
    except Exception as error:  # yaml's errors are many
        raise ConfigError(f"--{key}: '{raw}' is not a valid YAML value.") from error


def _set(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        inner = tree.get(name)
        tree[name] = tree = dict(inner) if isinstance(inner, dict) else {}
    tree[last] = value


def _build(declared: Any, default: Any, tree: Any, path: tuple[str, ...]) -> Any:
    """One value of the tree: a dataclass field by field, anything else through draccus."""
    cls, tree = _choose(declared, default, tree, path)
    if not isinstance(tree, dict) or not dataclasses.is_dataclass(cls):
        return _leaf(declared, tree, path)
    assert isinstance(cls, type)
    default = default if type(default) is cls else None
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    _refuse_unknown(cls, known, tree, path)
    values = {}
    for name, field in known.items():
        if name in tree:
            inherited = _default_of(field) if default is None else getattr(default, name)
            values[name] = _build(hints[name], inherited, tree[name], (*path, name))
        elif default is not None:
            values[name] = getattr(default, name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            key = _dotted(path, name)
            raise ConfigError(f"'{key}' has no default: give --{key}=...")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        where = f"{'.'.join(path)}: " if path else ""
        raise ConfigError(f"{where}{error}") from error


def _choose(declared: Any, default: Any, tree: Any, path: tuple[str, ...]) -> tuple[Any, Any]:
    """The class meant by a type annotation, and the tree without the key that chose it."""
    options = typing.get_args(declared) if is_union(declared) else ()
    cls = next((t for t in options if _has_fields(t)), declared)
    if not isinstance(tree, dict) or not _has_fields(cls) or not is_choice_type(cls):
        return cls, tree
    tree = dict(tree)
    name = tree.pop(CHOICE_TYPE_KEY, None)
    choices = cls.get_known_choices()
    if name is None:
        if type(default) in choices.values():
            return type(default), tree
        name = cls.default_choice_name()
    if name not in choices:
        key = _dotted(path, CHOICE_TYPE_KEY)
        raise ConfigError(f"--{key}={name} is not known.{nearest(str(name), choices)}")
    return choices[name], tree


def _has_fields(cls: Any) -> bool:
    return isinstance(cls, type) and (dataclasses.is_dataclass(cls) or is_choice_type(cls))


def _refuse_unknown(cls: type, known: Mapping[str, Any], tree: Tree, path: tuple[str, ...]) -> None:
    for key in tree:
        if key in known:
            continue
        elsewhere = [k for k in all_keys(cls) if k.rpartition(".")[2] == key]
        hint = (
            f" Did you mean '{_dotted(path, elsewhere[0])}'?" if elsewhere else nearest(key, known)
        )
        raise ConfigError(f"unknown key '{_dotted(path, key)}' of {cls.__name__}.{hint}")


def all_keys(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key of a dataclass and of the dataclasses nested in it."""
    keys = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.init:
            keys.append(prefix + field.name)
            inner = type(_default_of(field))
            inner = inner if dataclasses.is_dataclass(inner) else hints[field.name]
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                keys += all_keys(inner, f"{prefix}{field.name}.")
    return keys


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _leaf(declared: Any, value: Any, path: tuple[str, ...]) -> Any:
    key = ".".join(path)
    declared_types = typing.get_args(declared) if is_union(declared) else (declared,)
    for kind in declared_types:
        origin = typing.get_origin(kind) or kind
        if origin in {list, tuple, Sequence} and value is not None and not isinstance(value, list):
            value = _split(value)
        if origin is typing.Literal and value not in typing.get_args(kind) and value is not None:
            choices = map(str, typing.get_args(kind))
            raise ConfigError(f"--{key}={value} is not known.{nearest(str(value), choices)}")
    try:
        return draccus.decode(declared, value)
    except Exception as error:  # draccus lets the errors of constructors through
        kind = getattr(declared, "__name__", str(declared))
        raise ConfigError(f"--{key}={value} does not fit {kind}: {error}") from error


def _split(value: Any) -> list[Any]:
    """``0,3`` and ``3`` as lists, so that the command line needs no brackets."""
    if not isinstance(value, str):
        return [value]
    return [cfgparsing.parse_string(part) for part in value.split(",") if part.strip()]


def _dotted(path: Sequence[str], name: str) -> str:
    return ".".join((*path, name))
