"""Evaluating a policy by the address of its server."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deploy.errors import PolicyConnectionError
from deploy.metadata import ServerMetadata
from deploy.server import PolicyServer, ServerConfig
from vla_opt.evaluation.config import EvalConfig
from vla_opt.evaluation.contract import ContractError
from vla_opt.evaluation.records import load_records
from vla_opt.evaluation.runner import evaluate

KEYS = {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
LIBERO = ServerMetadata(
    policy="small",
    action_space="libero",
    action_dim=7,
    action_horizon=8,
    control_hz=20.0,
    checkpoint_sha256="0123456789abcdef",
    inputs={"observation/image": (96, 96, 3), "observation/wrist_image": (96, 96, 3)},
)


class Watching:
    """Answers with zeros and remembers what it was asked."""

    def __init__(self):
        self.requests = []

    def infer(self, obs):
        self.requests.append(obs)
        return {"actions": np.zeros((8, 7), np.float32)}


@pytest.fixture
def policy():
    return Watching()


@pytest.fixture
def serve(policy):
    """`serve(metadata)` -> url."""
    running = []

    def start(metadata):
        running.append(
            PolicyServer(policy, metadata=metadata, config=ServerConfig(port=0)).running()
        )
        return running[-1].__enter__().url

    yield start
    for server in running:
        server.__exit__(None, None, None)


def config_of(url, folder, **changes):
    defaults = {"task_ids": (0,), "episodes": 2, "backend": "serial", "videos": "none"}
    return EvalConfig(**{"server": url, "output_dir": folder, **defaults, **changes})


def test_a_server_is_evaluated_like_a_checkpoint(serve, policy, quick, tmp_path):
    url = serve(LIBERO)
    summary = evaluate(config_of(url, tmp_path))
    assert (summary.successes, summary.scored) == (1, 2)
    assert {record.checkpoint_hash for record in load_records(tmp_path / "episodes.jsonl")} == {
        LIBERO.checkpoint_sha256
    }
    request = policy.requests[0]
    assert set(request) == KEYS
    assert request["observation/image"].shape == (96, 96, 3)
    assert request["observation/state"].shape == (8,)
    assert request["prompt"] == "pick up the soup"
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert metadata["checkpoint"] == url
    assert any("need not come out alike" in note for note in summary.notes)


def test_a_server_that_says_nothing_gets_openpis_pictures_and_a_note(
    serve, policy, quick, tmp_path
):
    url = serve(ServerMetadata())
    summary = evaluate(config_of(url, tmp_path))
    assert policy.requests[0]["observation/image"].shape == (256, 256, 3)
    assert any("taken for LIBERO's" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"action_space": "joint_velocity"}, "action_space: joint_velocity against libero"),
        ({"action_horizon": 2}, "chunk_size: 2 against execute_steps 4"),
        ({"inputs": {"observation/joint_position": (7,)}}, "observation/joint_position"),
    ],
)
def test_a_server_that_means_something_else_is_refused(serve, quick, tmp_path, says, message):
    with pytest.raises(ContractError, match=message):
        evaluate(config_of(serve(ServerMetadata(**says)), tmp_path))
    assert quick == []


def test_no_server_at_the_address_is_said_at_once(tmp_path):
    with pytest.raises(PolicyConnectionError):
        evaluate(config_of("ws://127.0.0.1:9", tmp_path))


def test_a_checkpoint_and_a_server_are_one_too_many(tmp_path):
    with pytest.raises(ValueError, match="one of the two"):
        config_of("ws://x", tmp_path, checkpoint=tmp_path)
