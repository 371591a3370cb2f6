"""Exceptions and results get whole into another process: pools and queues pickle them."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.client import ClientConfig
from deploy.droid import Views
from deploy.executor import ExecutorConfig
from deploy.metadata import ServerMetadata
from deploy.rehearsal import RehearsalConfig
from deploy.robot import RobotConfig
from deploy.safety import FULL, FilterState, filter_action
from deploy.server import ServerConfig
from deploy.sim.demos import DemosConfig

ROOT = Path(__file__).resolve().parents[2]
_CLASS = re.compile(r"^class (\w+)\((?:\w*\.)?\w*(?:Error|Exception)\):", re.MULTILINE)


def _exceptions() -> Iterator[type[BaseException]]:
    """Every exception class of the package; only modules that define one are imported."""
    for path in sorted((ROOT / "deploy").rglob("*.py")):
        for name in _CLASS.findall(path.read_text(encoding="utf-8")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield getattr(importlib.import_module(module), name)


def _made(kind: type[BaseException]) -> BaseException:
    """One of it, with a different value for each parameter."""
    own = inspect.isfunction(kind.__init__)  # else it is the built-in one, which takes anything
    count = len(inspect.signature(kind).parameters) if own else 1
    return kind(*(f"word {n}" for n in range(count)))


@pytest.mark.parametrize("kind", list(_exceptions()), ids=lambda kind: kind.__name__)
def test_an_exception_arrives_with_everything_it_said(kind: type[BaseException]) -> None:
    sent = _made(kind)
    arrived = pickle.loads(pickle.dumps(sent))
    assert type(arrived) is kind
    assert str(arrived) == str(sent)
    assert vars(arrived) == vars(sent)


def test_every_exception_class_is_looked_at() -> None:
    names = {kind.__name__ for kind in _exceptions()}
    assert {"DeployError", "ReflexError", "EpisodeEnd"} <= names


def test_what_the_safety_filter_returns_arrives() -> None:
    state = FilterState.at_rest(np.array(FULL.limits.lower + FULL.limits.upper) / 2)
    sent = filter_action(
        [9.0] * 8, state=state, measured=state.target, measured_gripper=0.0, profile=FULL
    )
    arrived = pickle.loads(pickle.dumps(sent))
    assert arrived.rejected == sent.rejected == "out_of_range"
    assert dict(arrived.interventions) == dict(sent.interventions)


CONFIGS = (
    Views(),
    RobotConfig(),
    ExecutorConfig(),
    ClientConfig(),
    ServerConfig(),
    ServerMetadata(),
    RehearsalConfig(),
    DemosConfig(),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_configurations_arrive(config: Any) -> None:
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(copy.deepcopy(config)) == config
