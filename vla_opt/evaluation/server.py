"""A policy behind openpi's protocol, evaluated by its address instead of a checkpoint."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.rollout import Observation
from envs.spec import EnvSpec
from vla_opt.contracts import compare, compare_chunk, lines
from vla_opt.evaluation.contract import Checkpoint, ContractError

if TYPE_CHECKING:
    from deploy.client import PolicyClient
    from deploy.metadata import ServerMetadata

IMAGE_KEYS = {"image": "observation/image", "image2": "observation/wrist_image"}
STATE_KEY, PROMPT_KEY = "observation/state", "prompt"
"""Where openpi's LIBERO policies look."""

_IMAGE_SIZE = 256  # what openpi's LIBERO client renders; servers scale pictures themselves
_CONNECT_S = 30.0
_ANSWER_S = 120.0  # a first inference may compile


def open_server(url: str) -> tuple[Checkpoint, "ServerMetadata"]:
    """Ask a server what it is.

    Args:
        url: See `deploy.client.ClientConfig`.

    Returns:
        What stands in for a checkpoint, its hash that of the weights if the server tells it, and
        what the server says about itself.

    Raises:
        DeployError: It cannot be reached, or does not speak the protocol.
    """
    with _client(url) as client:
        said = client.connect()
    notes = ["What a server samples is its own: the same episode need not come out alike again."]
    if said.action_space is None:
        notes.append(f"{url} does not say what its actions mean: they are taken for LIBERO's.")
    if said.checkpoint_sha256 is None:
        notes.append(f"{url} does not say which weights it serves: rows name its address instead.")
    stand_in = Checkpoint(
        folder=Path(_name(url)),
        config={
            "type": said.policy or "openpi server",
            "chunk_size": said.action_horizon,
            "input_features": _views(said),
        },
        spec=None,
        sha256=said.checkpoint_sha256 or hashlib.sha256(url.encode()).hexdigest()[:16],
        notes=tuple(notes),
    )
    return stand_in, said


def check_server(url: str, said: "ServerMetadata", env: EnvSpec, *, execute_steps: int) -> None:
    """Compare what a server says about itself with what the environment shows and takes.

    Args:
        url: For the message.
        said: See `open_server`.
        env: What the environment shows and takes.
        execute_steps: Actions of a chunk that are executed before the policy looks again.

    Raises:
        ContractError: They do not fit; lists every difference.
    """
    theirs = {
        "action_space": "libero",
        "action_dim": len(env.action_names),
        "control_hz": float(env.control_hz),
        "gripper": "-1 open, 1 closed",
    }
    found = compare({name: getattr(said, name) for name in theirs}, theirs)
    found += compare_chunk(said.action_horizon, execute_steps)
    sent = {*IMAGE_KEYS.values(), STATE_KEY, PROMPT_KEY}
    problems = lines(found, "differs")
    problems += [f"{key}: wanted against not shown" for key in said.inputs if key not in sent]
    if problems:
        raise ContractError(
            f"The policy server {url} does not fit the environment (server against environment):"
            "\n  " + "\n  ".join(problems)
        )


class ServerPolicy:
    """Asks a policy server, an `envs.rollout.Policy` without torch.

    Args:
        url: See `deploy.client.ClientConfig`.
        timeout_s: For one answer.
    """

    def __init__(self, url: str, timeout_s: float = _ANSWER_S) -> None:
        self._client = _client(url)
        self._timeout_s = timeout_s

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float64]]:
        """Return one chunk of actions (chunk, 7) per observation.

        Raises:
            DeployError: No answer, or one that is no chunk.
        """
        return [self._ask(observation) for observation in observations]

    def _ask(self, observation: Observation) -> NDArray[np.float64]:
        request: dict[str, Any] = {
            wire: observation["pixels"][key] for key, wire in IMAGE_KEYS.items()
        }
        request[STATE_KEY] = observation["agent_pos"]
        request[PROMPT_KEY] = observation["task"]
        answer = self._client.infer(request, timeout_s=self._timeout_s)
        return np.asarray(answer["actions"], dtype=np.float64)


def _client(url: str) -> "PolicyClient":
    from deploy.client import ClientConfig, PolicyClient

    return PolicyClient(ClientConfig(url=url, connect_timeout_s=_CONNECT_S))


def _views(said: "ServerMetadata") -> dict[str, Any]:
    """The pictures it takes, as a checkpoint's config.json names them."""
    size = (_IMAGE_SIZE, _IMAGE_SIZE, 3)
    return {
        f"observation.images.{name}": {"shape": [3, *said.inputs.get(key, size)[:2]]}
        for name, key in IMAGE_KEYS.items()
    }


def _name(url: str) -> str:
    """A name for its folder: "host_8000"."""
    return re.sub(r"\W+", "_", url.split("://")[-1]).strip("_")
