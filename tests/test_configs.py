"""Every file in configs/ names only keys that exist, and says what a person would run."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

from vla_opt.cli._config import parse

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").rglob("*.yaml"))


def config_class(path: Path) -> type:
    """By the verb that the file is for: `make TARGET` runs these."""
    import vla_opt.cli._plugins as plugins

    plugins.load_policies([f"--config_path={path}"])
    if path.stem.startswith("rlvr_"):
        return getattr(importlib.import_module("vla_opt.rlvr"), "RLVRConfig")  # noqa: B009
    if path.parent.name == "paper" or path.stem.startswith(("fr3_", "start_")):
        return getattr(importlib.import_module("vla_opt.config"), "TrainConfig")  # noqa: B009
    if path.stem == "zo_compare":
        return getattr(importlib.import_module("vla_opt.zo_training.compare"), "ZOCompareConfig")  # noqa: B009
    if path.stem == "rl_compare":
        return getattr(importlib.import_module("vla_opt.rl.compare"), "RLCompareConfig")  # noqa: B009
    if path.stem.startswith("zo_"):
        return getattr(importlib.import_module("vla_opt.zo_training"), "ZOTrainConfig")  # noqa: B009
    if path.stem.startswith("rl_"):
        return getattr(importlib.import_module("vla_opt.rl.config"), "RLConfig")  # noqa: B009
    verb = "compare" if path.stem.startswith("compare") else "quickstart"
    return getattr(importlib.import_module(f"vla_opt.{verb}"), f"{verb.capitalize()}Config")


def test_the_files_that_make_names_are_there() -> None:
    stems = {path.stem for path in CONFIGS}
    assert stems >= {"quickstart", "libero_object", "libero_spatial", "compare_quickstart"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configuration_is_valid(path: Path) -> None:
    config = parse(config_class(path), [f"--config_path={path}"])
    assert config is not None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configuration_says_what_it_is_for(path: Path) -> None:
    start = "# Pion paper (arXiv 2605.19282), " if path.parent.name == "paper" else "# make "
    start = "# vla-opt zo " if path.stem.startswith("zo_") else start
    start = "# vla-opt rlvr " if path.stem == "rlvr_tiny" else start
    start = "# vla-opt rl " if path.stem.startswith("rl_") else start
    start = "# vla-opt train " if path.stem.startswith(("start_", "fr3_")) else start
    start = "# make " if path.stem in ("zo_compare", "rl_compare") else start
    text = path.read_text()
    assert text.startswith(start), "the first line names the target, verb or paper"
    assert path.parent.name != "paper" or "NOT RUN HERE: it needs " in text


SUITES = ["libero_object", "libero_spatial", "libero_goal", "libero_10"]


@pytest.mark.parametrize("name", ["quickstart", *SUITES])
def test_policy_is_tested_on_the_tasks_it_was_trained_on(name: str) -> None:
    path = next(p for p in CONFIGS if p.stem == name)
    tree = yaml.safe_load(path.read_text())
    for key in ("suites", "task_ids"):
        assert tree["demos"].get(key) == tree["eval"].get(key)
    assert (
        tree["eval"].get("render_profile", tree["demos"]["render_profile"])
        == (tree["demos"]["render_profile"])
    )
