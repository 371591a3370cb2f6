"""Recipes of the Pion paper: each parses, builds without weights, and says what the paper says."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

from vla_opt._activations import working_bytes
from vla_opt._dry_run import meta_policy, run_features
from vla_opt.cli._config import parse
from vla_opt.cli._plugins import load_policies
from vla_opt.config import TrainConfig, to_yaml
from vla_opt.optim import OptimizerConfig, assign_parameters, published_options

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "paper"
# Those of `vla-opt rlvr` train no policy: tests/test_configs.py has them.
PATHS = [path for path in sorted(FOLDER.glob("*.yaml")) if not path.stem.startswith("rlvr_")]
RECIPES = {path.stem: path for path in PATHS}
# Steps, samples per update, peak learning rate, scale of Muon's and Pion's updates.
PUBLISHED = {
    "vla_adapter_object": (1_500, 64, 1e-4, 0.2),
    "vla_adapter_spatial": (15_000, 64, 1e-4, 0.2),
    "vla_adapter_goal": (15_000, 64, 1e-4, 0.2),
    "vla_adapter_long": (15_000, 64, 1e-4, 0.2),
    "vlanext_libero": (10_000, 256, 1e-4, 0.2),
    "pi05_droid": (20_000, 32, 2.5e-5, 2.0),
}
PROCESSES = 8
PION = {"vision": "muon", "language": "muon", "other": "muon", "action": "pion"}


@functools.cache
def recipe(stem: str) -> TrainConfig:
    return parse(TrainConfig, load_policies([f"--config_path={RECIPES[stem]}"]))


@functools.cache
def built(policy: str) -> Any:
    """Recipes that differ in the optimizer alone share a policy."""
    config = next(c for c in map(recipe, RECIPES) if to_yaml(c.policy) == policy)
    return meta_policy(config.policy, run_features(config)[0])


def test_every_experiment_has_its_recipes() -> None:
    for stem in PUBLISHED:
        assert {f"{stem}_{name}" for name in ("adamw", "muon", "pion")} <= RECIPES.keys()


@pytest.mark.parametrize("stem", RECIPES)
def test_recipe_says_that_it_was_not_run_and_on_what_it_would(stem: str) -> None:
    first, second = RECIPES[stem].read_text().splitlines()[:2]
    assert "NOT RUN HERE: it needs 8 GPUs" in first
    assert f"--num_processes={PROCESSES}" in second
    assert second.endswith(f"configs/paper/{stem}.yaml")


@pytest.mark.parametrize("stem", [s for s in RECIPES if s.rpartition("_")[0] in PUBLISHED])
def test_numbers_are_the_papers(stem: str) -> None:
    family, _, optimizer = stem.rpartition("_")
    config, (steps, samples, rate, scale) = recipe(stem), PUBLISHED[family]
    assert (config.steps, config.optimizer.lr) == (steps, rate)
    assert config.batch_size * config.gradient_accumulation * PROCESSES == samples
    assert (config.optimizer.name, config.optimizer.update_scale) == (optimizer, scale)
    if optimizer == "pion":
        chosen = config.optimizer
        assert (chosen.promotion_steps, chosen.suppression_steps) == (0, 5)


@pytest.mark.parametrize("stem", RECIPES)
def test_recipe_builds_and_routes_every_parameter(stem: str) -> None:
    config = recipe(stem)
    policy = built(to_yaml(config.policy))
    assert {p.device.type for p in policy.parameters()} == {"meta"}
    algorithms: dict[str, set[str]] = {}
    for route in assign_parameters(policy, config.optimizer.rules(policy)):
        algorithms.setdefault(route.rule.role, set()).add(route.rule.algorithm)
    assert algorithms.pop("excluded") == {"adamw"}
    name = config.optimizer.name
    expected = PION if name == "pion" else dict.fromkeys(PION, name)
    expected = {**expected, **config.optimizer.roles}
    assert algorithms == {role: {expected[role]} for role in algorithms}
    assert {"language", "action"} <= algorithms.keys()
    # Where a policy names layers to be gathered one at a time, they are there.
    named = set(getattr(policy, "_no_split_modules", None) or ())
    layers = {type(module).__name__ for module in policy.modules()} & named
    assert len(layers) == (0 if "pi05" in stem else 3), layers


@pytest.mark.slow
@pytest.mark.parametrize(
    "stem", ["vla_adapter_object_pion", "vlanext_libero_pion", "pi05_droid_pion"]
)
def test_memory_of_a_batch_is_foretold_at_full_size(stem: str) -> None:
    config = recipe(stem)
    policy = built(to_yaml(config.policy))
    gradients = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    assert gradients < working_bytes(policy, config) < 80 * 2**30  # of the GPU they are for


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_published_options_of_the_library_are_the_recipes(path: Path) -> None:
    chosen = {**vars(OptimizerConfig()), **yaml.safe_load(path.read_text())["optimizer"]}
    for key, value in published_options(chosen["preset"])[chosen["name"]].items():
        stated = tuple(chosen[key]) if isinstance(chosen[key], list) else chosen[key]
        assert stated == value, key
