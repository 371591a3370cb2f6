import random
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from tiny_policy.configuration_tiny import TinyConfig


class TinyPolicy(PreTrainedPolicy):
    config_class = TinyConfig
    name = "tiny"

    def __init__(self, config: TinyConfig, **_: Any) -> None:
        super().__init__(config)
        self.config = config
        views, length = len(config.image_features), config.past + 1
        state = config.robot_state_feature.shape[0]
        actions = config.action_feature.shape[0]
        self.vision_projector = nn.Linear(3 * views * length, config.hidden)
        self.proprio_projector = nn.Linear(state * length, config.hidden)
        self.action_head = nn.ModuleDict(
            {
                "fc1": nn.Linear(2 * config.hidden, config.hidden),
                "fc2": nn.Linear(config.hidden, config.chunk_size * actions),
            }
        )
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    @property
    def features_fingerprint(self) -> str | None:
        return "mean/v1" if self.config.frozen_encoder else None

    def encode_images(self, images: Tensor) -> Tensor:  # (B, V, 3, H, W) -> (B, V, 1, 3)
        return images.mean(dim=(-2, -1))[:, :, None]

    def _predict(self, batch: dict[str, Any]) -> Tensor:
        state = batch["observation.state"].flatten(1)
        if "observation.features" in batch:
            pooled = batch["observation.features"].float().flatten(1)
        else:
            views = [batch[key].mean(dim=(-2, -1)) for key in sorted(self.config.image_features)]
            pooled = torch.stack(views, dim=-2).flatten(1)
        x = torch.cat([self.vision_projector(pooled), self.proprio_projector(state)], dim=-1)
        x = self.dropout(torch.relu(self.action_head["fc1"](torch.relu(x))))
        return self.action_head["fc2"](x).unflatten(1, (self.config.chunk_size, -1))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float] | None]:
        assert all(isinstance(task, str) for task in batch["task"])
        self.seen += len(batch["action"])
        self.calls += 1
        error = (self._predict(batch) - batch["action"]).abs().mean(-1)
        error = error + self.config.noise * (random.random() + np.random.rand() + torch.rand(()))  # noqa: NPY002
        loss = (error * ~batch["action_is_pad"]).mean()
        if self.calls - 1 == self.config.poison_step:
            loss = loss * float("nan")
        return loss, None

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        return self._predict(batch)

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        return self._predict(batch)[:, 0]

    def get_optim_params(self) -> Any:
        return self.parameters()

    def reset(self) -> None:
        pass
