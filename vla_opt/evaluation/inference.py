"""A trained policy that answers observations with chunks of actions, bitwise repeatably."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from numpy.typing import NDArray
from torch import Tensor

from envs.rollout import Observation
from envs.spec import EnvSpec
from vla_opt._policy import WEIGHTS, check_loaded
from vla_opt.evaluation.contract import ContractError, open_checkpoint

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class CheckpointPolicy:
    """Any lerobot checkpoint as an `envs.rollout.Policy`.

    The answer to an observation depends on that observation alone, not on what was asked before or
    at the same time: forward passes always have `batch_size` rows (the last ones repeated where
    fewer were asked for), and what a policy samples is drawn from the observation's seed. torch's
    own random state and thread count are left as they were.

    Args:
        path: See `vla_opt.evaluation.contract.open_checkpoint`.
        device: As torch names it.
        num_threads: torch's threads during inference; 0 leaves them.
        batch_size: Rows of every forward pass. A policy that samples and does not heed the batch's
            "noise_seed" (ours do) draws one noise per batch, so it needs 1.
        tokenizer: Folder or hub name to take the words' tokenizer from, instead of the one the
            checkpoint names: pi05 names one on a hub that asks for a licence first.

    Raises:
        CheckpointError: No checkpoint, or a damaged one.
        ContractError: A type of policy that lerobot does not know.
        PolicyError: A weight was not loaded from the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        num_threads: int = 1,
        batch_size: int = 1,
        tokenizer: str | None = None,
    ) -> None:
        checkpoint = open_checkpoint(Path(path))
        self.spec: EnvSpec | None = checkpoint.spec
        self.folder = checkpoint.folder
        self._device = device
        self._num_threads = num_threads
        self._batch_size = batch_size
        with self._quarantine(seed=0):
            self._policy = _load_policy(checkpoint.folder, device)
            self._pre, self._post = _load_processors(
                self._policy.config, checkpoint.folder, device, tokenizer
            )

    @property
    def policy(self) -> Any:
        """The lerobot policy."""
        return self._policy

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float64]]:
        """Return one chunk of actions (chunk, action_dim) per observation, in the action's units.

        Args:
            observations: See `envs.rollout.Observation`.
        """
        chunks: list[NDArray[np.float64]] = []
        for start in range(0, len(observations), self._batch_size):
            part = list(observations[start : start + self._batch_size])
            padded = part + [part[-1]] * (self._batch_size - len(part))
            with self._quarantine(seed=part[0].get("seed", 0)):
                chunks.extend(self._predict(padded, {})[0][: len(part)])
        return chunks

    def infer_one(
        self, observation: Observation, options: Mapping[str, Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return one chunk (chunk, action_dim), and the same before post-processing.

        Args:
            observation: See `infer`.
            options: Arguments of the policy's `predict_action_chunk`; real-time chunking has some.
        """
        with self._quarantine(seed=observation.get("seed", 0)):
            actions, raw = self._predict([observation], options)
        return actions[0], raw[0]

    def _predict(
        self, observations: Sequence[Observation], options: Mapping[str, Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        # lerobot's real-time chunking takes a gradient, which inference mode forbids for good
        with torch.no_grad() if options else torch.inference_mode():
            batch = self._pre(to_batch(observations))
            batch["noise_seed"] = [observation.get("seed", 0) for observation in observations]
            chunk: Tensor = self._policy.predict_action_chunk(batch, **options)
            rows, length = chunk.shape[:2]
            actions: Tensor = self._post(chunk.reshape(rows * length, -1))  # lerobot's take (N, D)
        arranged = actions.reshape(rows, length, -1).to("cpu", torch.float64).numpy()
        return arranged, chunk.to("cpu", torch.float32).numpy()

    @contextlib.contextmanager
    def _quarantine(self, seed: int) -> Iterator[None]:
        """Own random state and threads: a policy may be evaluated in the middle of a training."""
        threads = torch.get_num_threads()
        devices = [self._device] if self._device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            if self._num_threads:
                torch.set_num_threads(self._num_threads)
            try:
                yield
            finally:
                torch.set_num_threads(threads)


def to_batch(observations: Sequence[Observation]) -> Batch:
    """Return observations as lerobot's policies take them.

    Returns:
        "observation.images.<key>" (B, 3, H, W) float32 in [0, 1], "observation.state" (B, D)
        float32, "task" list of B strings.
    """
    batch: Batch = {"task": [observation["task"] for observation in observations]}
    batch["observation.state"] = torch.from_numpy(
        np.stack([np.asarray(observation["agent_pos"]) for observation in observations])
    )
    for key in observations[0]["pixels"]:
        images = np.stack([observation["pixels"][key] for observation in observations])
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        batch[f"observation.images.{key}"] = channels_first.float() / 255
    return batch


def _load_policy(folder: Path, device: str) -> Any:
    register_policies()
    try:
        config = PreTrainedConfig.from_pretrained(folder)
    except Exception as error:  # draccus' errors are many
        raise ContractError(
            f"{folder / 'config.json'} is no policy configuration that lerobot can read: {error}"
        ) from error
    if (folder / "adapter_config.json").exists():
        raise ContractError(
            f"{folder} holds a PEFT adapter. Merge it into its base first: "
            f"vla-opt merge {folder} --out=DIR"
        )
    config.device = device
    with contextlib.redirect_stdout(io.StringIO()):  # lerobot prints
        policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    check_loaded(policy, folder / WEIGHTS)
    policy.eval()
    return policy


def register_policies() -> None:
    """Make our policies and installed plug-ins known to lerobot."""
    from lerobot.utils.import_utils import register_third_party_plugins

    import policies

    policies.register_all()
    register_third_party_plugins()


def _load_processors(
    config: PreTrainedConfig, folder: Path, device: str, tokenizer: str | None
) -> tuple[Any, Any]:
    pre_file = folder / "policy_preprocessor.json"
    if not pre_file.exists():
        raise ContractError(
            f"{folder} has no {pre_file.name}: it was written by lerobot before 0.4. Convert it "
            "with `python -m lerobot.processor.migrate_policy_normalization`."
        )
    steps = {step.get("registry_name") for step in json.loads(pre_file.read_bytes())["steps"]}
    overrides = {"device_processor": {"device": device}} if "device_processor" in steps else {}
    if tokenizer is not None and "tokenizer_processor" in steps:
        overrides["tokenizer_processor"] = {"tokenizer_name": tokenizer}
    pre, post = make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=overrides
    )
    return pre, post
