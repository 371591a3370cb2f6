"""What all comparisons have in common: arms are changes of one configuration, a folder holds all.

How runs are scheduled is theirs: processes side by side, budgets that are raised from mark to mark,
or one start that is evaluated for all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import draccus
from draccus.utils import DraccusException

from vla_opt._comparison import Comparison
from vla_opt._comparison_page import comparison_page
from vla_opt._curves import curves_csv
from vla_opt.config import to_tree, to_yaml
from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.provenance import run_metadata


def changed[C](base: C, changes: Mapping[str, Any], arm: str) -> C:
    """Return a configuration with other values at its first level, as an arm says.

    Raises:
        ValueError: A change does not exist or does not fit; names the arm.
    """
    tree = {**to_tree(base), **changes}
    try:
        found: C = draccus.decode(type(base), tree)
    except DraccusException as error:
        raise ValueError(f"arm {arm}: {error.__cause__ or error}") from error
    return found


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with changes, which go as deep as both have branches.

    >>> merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}})
    {'a': {'b': 1, 'c': 4}, 'd': 3}
    """
    found = dict(tree)
    for key, value in changes.items():
        inner = found.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            found[key] = merged(inner, value)
        else:
            found[key] = value
    return found


def describe(folder: Path, config: object) -> None:
    """Write what is compared, and with which code on which machine."""
    atomic_write_text(folder / "config.yaml", to_yaml(config))
    atomic_write_json(folder / "metadata.json", run_metadata())


def write_comparison(folder: Path, comparison: Comparison, shown: Path) -> None:
    """Write result.json, result.md, result.txt, result.html and curves.csv.

    Args:
        folder: Of the comparison.
        comparison: What came out.
        shown: One of its runs, whose protocol all share.
    """
    atomic_write_json(folder / "result.json", comparison.to_dict())
    atomic_write_text(folder / "result.md", comparison.markdown())
    atomic_write_text(folder / "result.txt", comparison.text() + "\n")
    atomic_write_text(folder / "curves.csv", curves_csv(comparison.curves))
    atomic_write_text(folder / "result.html", comparison_page(comparison, folder.name, shown))
