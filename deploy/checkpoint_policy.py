"""A lerobot checkpoint behind openpi's protocol: the one module of a policy host with torch."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy._wire_map import IMAGE_PREFIX, PROMPT, STATE, WireMap, wire_map_for
from deploy.errors import ContractMismatchError
from deploy.metadata import ACTION_SPACES, GRIPPER_POLARITY, ServerMetadata, fit_findings
from deploy.realtime import LATENT, read_request
from deploy.spec_file import read_spec
from vla_opt.contracts import Finding, compare_chunk, compare_features
from vla_opt.evaluation.contract import Checkpoint, open_checkpoint, statistics_findings
from vla_opt.evaluation.inference import CheckpointPolicy

logger = logging.getLogger(__name__)


class ServedCheckpoint:
    """Answers requests of openpi's clients with a checkpoint's chunks.

    One inference is made at construction: it finds out the shape of a chunk, and pays for what a
    first inference costs.

    Args:
        path: Any checkpoint of `vla-opt train` or lerobot.
        stated: What the operator says of the actions where the checkpoint does not.
        device: As torch names it.
        num_threads: torch's threads; 0 leaves them.
        tokenizer: See `CheckpointPolicy`.
        images: See `wire_map_for`.
        state: See `wire_map_for`.
        realtime_chunking: Let a policy that can do so continue former chunks.
        seed: The n-th request samples with seed + n.

    Raises:
        CheckpointError: No checkpoint, or a damaged one.
        ContractMismatchError: The meaning of the actions is unknown or contradictory, or the policy
            does not do what was asked of it.
    """

    def __init__(
        self,
        path: Path,
        *,
        stated: ServerMetadata | None = None,
        device: str = "cpu",
        num_threads: int = 0,
        tokenizer: str | None = None,
        images: Mapping[str, str] | None = None,
        state: Sequence[str] | None = None,
        realtime_chunking: bool = False,
        seed: int = 0,
    ) -> None:
        checkpoint = open_checkpoint(Path(path))
        said = metadata_of(checkpoint, stated or ServerMetadata())
        self._policy = CheckpointPolicy(
            path, device=device, num_threads=num_threads, tokenizer=tokenizer
        )
        self._wire = wire_map_for(_input_shapes(checkpoint.config), images=images, state=state)
        self._realtime = realtime_chunking
        if realtime_chunking:
            _enable_realtime_chunking(self._policy.policy)
        self._seed = seed
        self._asked = 0
        horizon, dim = self.infer(_example(self._wire))["actions"].shape
        self.metadata = dataclasses.replace(
            said,
            action_horizon=horizon,
            action_dim=_agreed_dim(said.action_dim, dim),
            inputs=self._wire.inputs(),
            realtime_chunking=realtime_chunking,
        )

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Raises:
            ProtocolError: The request lacks something, or holds something else than expected.
        """
        started = time.perf_counter()
        request = dict(obs)
        former = read_request(request)
        observation = {**self._wire.read(request), "seed": self._seed + self._asked}
        self._asked += 1
        actions, raw = self._policy.infer_one(observation, self._options(former))
        answer: dict[str, Any] = {"actions": actions}
        if self._realtime:
            answer[LATENT] = raw
        answer["policy_timing"] = {"infer_ms": 1e3 * (time.perf_counter() - started)}
        return answer

    def _options(self, former: tuple[np.ndarray[Any, Any], int] | None) -> dict[str, Any]:
        if former is None or not self._realtime:
            return {}
        import torch

        left_over, delay = former
        device = next(self._policy.policy.parameters()).device
        return {
            "inference_delay": delay,
            "prev_chunk_left_over": torch.from_numpy(left_over)[None].to(device),
        }


def metadata_of(checkpoint: Checkpoint, stated: ServerMetadata) -> ServerMetadata:
    """Gather what is known of a checkpoint's actions without loading its weights.

    Raises:
        ContractMismatchError: Nobody says which action space it is, or two say different things.
    """
    known = read_spec(checkpoint.folder) or _libero(checkpoint) or ServerMetadata()
    known = known.completed_by(stated)
    if known.action_space not in ACTION_SPACES:
        raise ContractMismatchError(
            f"{checkpoint.folder} does not say what its actions mean (action space "
            f"{known.action_space}). State it: --action_space= one of {', '.join(ACTION_SPACES)}."
        )
    if known.gripper is None and known.action_space != "libero":
        known = dataclasses.replace(known, gripper=GRIPPER_POLARITY)
    return dataclasses.replace(
        known,
        policy=f"{checkpoint.config.get('type', 'unknown')} {_short(checkpoint.folder)}",
        statistics_sha256=statistics_sha256(checkpoint.folder),
        checkpoint_sha256=checkpoint.sha256,
    )


def _short(folder: Path) -> Path:
    """The end of a path: whoever asks need not learn how this machine's disk is laid out."""
    return Path(*folder.absolute().parts[-4:])


def robot_findings(
    checkpoint: Checkpoint,
    robot: ServerMetadata,
    *,
    stated: ServerMetadata | None = None,
    execute_steps: int | None = None,
) -> list[Finding]:
    """Every term of a checkpoint beside that of a robot, without loading its weights.

    Args:
        checkpoint: See `vla_opt.evaluation.contract.open_checkpoint`.
        robot: See `deploy.droid.robot_metadata`.
        stated: What the operator says of the actions where the checkpoint does not.
        execute_steps: Actions of a chunk that will be executed.

    Raises:
        ContractMismatchError: What is stated contradicts the checkpoint.
        CheckpointError: The checkpoint's statistics cannot be read.
    """
    config = checkpoint.config
    known = read_spec(checkpoint.folder) or _libero(checkpoint) or ServerMetadata()
    known = known.completed_by(stated or ServerMetadata())
    shape = ((config.get("output_features") or {}).get("action") or {}).get("shape")
    if known.action_dim is None and shape:
        known = dataclasses.replace(known, action_dim=int(shape[0]))
    found = [_action_space_finding(f) for f in fit_findings(known, robot)]
    sent = {key: list(size) for key, size in robot.inputs.items()}
    for key, size in wire_map_for(_input_shapes(config)).inputs().items():
        # Servers scale pictures themselves: their size need not fit.
        wanted = sent[key] if len(size) == 3 and key in sent else list(size)
        found += compare_features({key: wanted}, sent)
    found += compare_chunk(config.get("chunk_size"), execute_steps)
    return found + statistics_findings(checkpoint)


def _action_space_finding(finding: Finding) -> Finding:
    """An action space that nobody states is no gap but an obstacle: the server refuses it."""
    if finding.item != "action_space" or finding.verdict != "unknown":
        return finding
    remedy = "state what the actions mean: --action_space"
    return dataclasses.replace(finding, verdict="differs", remedy=remedy)


def statistics_sha256(folder: Path) -> str | None:
    """Hash of the normalisation statistics in a checkpoint; None if it has none of its own.

    Sixteen digits, over the files that lerobot's normalising steps load.
    """
    files = sorted(folder.glob("policy_p*_step_*normalizer_processor.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\n" + file.read_bytes())
    return digest.hexdigest()[:16]


def _libero(checkpoint: Checkpoint) -> ServerMetadata | None:
    """What a checkpoint trained on LIBERO's demonstrations means."""
    if checkpoint.spec is None:
        return None
    return ServerMetadata(
        action_space="libero",
        action_dim=len(checkpoint.spec.action_names),
        control_hz=float(checkpoint.spec.control_hz),
        gripper="-1 open, 1 closed",
    )


def _input_shapes(config: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    features = config.get("input_features") or {}
    return {
        name: feature["shape"]
        for name, feature in features.items()
        if name.startswith(IMAGE_PREFIX) or name == STATE
    }


def _example(wire: WireMap) -> dict[str, Any]:
    """A request of zeros."""
    shapes = wire.inputs()
    request: dict[str, Any] = {
        key: np.zeros(shape, np.uint8 if len(shape) == 3 else np.float32)
        for key, shape in shapes.items()
    }
    return {**request, PROMPT: "warm up"}


def _agreed_dim(stated: int | None, found: int) -> int:
    if stated not in (None, found):
        raise ContractMismatchError(f"The policy's actions have {found} numbers, stated: {stated}.")
    return found


def _enable_realtime_chunking(policy: Any) -> None:
    """Switch on lerobot's implementation.

    Raises:
        ContractMismatchError: The policy has none.
    """
    if not getattr(policy, "supports_rtc", lambda: False)():
        raise ContractMismatchError(
            f"{type(policy).__name__} cannot continue chunks: only policies with a flow-matching "
            "head of lerobot's can. Leave --realtime_chunking away."
        )
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    if policy.config.rtc_config is None:
        policy.config.rtc_config = RTCConfig()
    policy.config.rtc_config.enabled = True
    policy.init_rtc_processor()
