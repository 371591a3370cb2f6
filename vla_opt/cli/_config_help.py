"""What ``vla-opt VERB --help`` prints: every key with its default and its meaning."""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
from typing import Any

from draccus.wrappers.docstring import get_attribute_docstring, get_preferred_help_text


def config_help(cls: type) -> str:
    """The keys of a configuration dataclass, nested ones included, as indented text."""
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    lines = [summary, "", "  --config_path=FILE.yaml", "      read keys from a file first"]
    return "\n".join([*lines, *_keys(cls, None, "")])


def _keys(cls: type, instance: Any, prefix: str) -> list[str]:
    lines = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default = _default(field) if instance is None else getattr(instance, field.name)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            lines += _keys(type(default), default, f"{prefix}{field.name}.")
            continue
        shown = "(required)" if default is dataclasses.MISSING else default
        lines.append(f"  --{prefix}{field.name}={shown}")
        lines += textwrap.wrap(
            _meaning(cls, field.name), 94, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return lines


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _meaning(cls: type, name: str) -> str:
    """The field's entry in the docstring of its class, else the comment beside it."""
    found = _from_docstring(cls, name)
    if not found:
        # draccus's reader of sources stumbles over some layouts.
        with contextlib.suppress(IndexError, OSError):
            found = get_preferred_help_text(get_attribute_docstring(cls, name)) or ""
    return found


def _from_docstring(cls: type, name: str) -> str:
    """The entry ``name: text`` of a Google-style section, with its continuation lines."""
    found: list[str] = []
    depth = 0
    documents = [base.__dict__.get("__doc__") or "" for base in cls.__mro__]
    for line in "\n".join(documents).splitlines():
        indent = len(line) - len(line.lstrip())
        if found:
            if not line.strip() or indent <= depth:
                break
            found.append(line.strip())
        elif line.strip().startswith(f"{name}:"):
            depth = indent
            found.append(line.strip().removeprefix(f"{name}:").strip())
    return " ".join(found)
