"""Small policies and a small world for tests of reinforcement learning."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature

from envs.rollout import RolloutConfig
from policies.configuration_vla_adapter import VLAAdapterConfig
from policies.configuration_vla_flow import VLAFlowConfig
from policies.modeling_vla_adapter import VLAAdapterPolicy
from policies.modeling_vla_flow import VLAFlowPolicy
from policies.processor_vla_adapter import make_vla_adapter_pre_post_processors

SIZE = 64
VIEWS = ("observation.images.image", "observation.images.image2")
_CLASSES = {
    "adapter": (VLAAdapterConfig, VLAAdapterPolicy),
    "flow": (VLAFlowConfig, VLAFlowPolicy),
}


def tiny_policy(kind: str, **changes: Any) -> Any:
    """A policy of a few thousand weights on two views, in evaluation mode."""
    config_class, policy_class = _CLASSES[kind]
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE))
    state = PolicyFeature(type=FeatureType.STATE, shape=(8,))
    config = config_class(
        **{
            "backbone": "compact",
            "image_size": SIZE,
            "device": "cpu",
            "num_queries": 2,
            "width": 32,
            "num_layers": 1,
            "num_heads": 2,
            "chunk_size": 4,
            "n_action_steps": 2,
            "input_features": {**dict.fromkeys(VIEWS, image), "observation.state": state},
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = policy_class(config)
        for parameter in policy.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return policy.eval()


def batch(rows: int, seed: int = 0) -> dict[str, Any]:
    """What a policy takes, pre-processed."""
    source = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {v: torch.rand(rows, 3, SIZE, SIZE, generator=source) for v in VIEWS}
    found["observation.state"] = torch.randn(rows, 8, generator=source)
    found["task"] = ["go"] * rows
    return found


def fill_checkpoint(folder: Path, kind: str = "adapter") -> None:
    """Write a tiny policy as the trainer stores one, for `write_checkpoint`."""
    policy = tiny_policy(kind)
    stats = {
        key: {"mean": torch.zeros(size), "std": torch.ones(size)}
        for key, size in (("observation.state", 8), ("action", 7))
    }
    pretrained = folder / "pretrained_model"
    pretrained.mkdir()
    policy.save_pretrained(pretrained)
    for processor in make_vla_adapter_pre_post_processors(policy.config, stats):
        processor.save_pretrained(pretrained)
    spec = RolloutConfig(image_size=SIZE).env_spec.to_dict()
    (pretrained / "env_spec.json").write_text(json.dumps(spec))


class Reach:
    """A world whose seed hides a number; success is to have pushed far enough beyond it.

    The number is in the state and in the pictures' brightness; the first entry of each action
    pushes.
    """

    limit = 8

    def __init__(self, task: tuple[str, int], config: RolloutConfig) -> None:
        self.spec, self.task_description = config.env_spec, f"reach {task[1]}"
        self.seeds: list[int] = []

    def reset(self, *, seed: int, options: object = None) -> Any:
        self.seeds.append(seed)
        self._goal = float(np.random.default_rng(seed).uniform(-0.3, 0.3))
        self._place, self._steps = 0.0, 0
        return self._observe(), {"is_success": False, "steps": 0}

    def step_chunk(self, actions: Any) -> Any:
        for action in actions:
            self._place += 0.5 * float(np.clip(action[0], -1, 1))
            self._steps += 1
            if self._place > self._goal or self._steps >= self.limit:
                break
        done = self._place > self._goal
        over = not done and self._steps >= self.limit
        info = {"is_success": done, "steps": self._steps}
        return self._observe(), float(done), done, over, info

    def close(self) -> None:
        pass

    def _observe(self) -> dict[str, Any]:
        light = int(128 + 100 * np.clip(self._goal - self._place, -1, 1))
        view = np.full((SIZE, SIZE, 3), light, np.uint8)
        state = np.zeros(8, np.float32)
        state[:2] = self._goal, self._place
        return {"pixels": {"image": view, "image2": view}, "agent_pos": state}
