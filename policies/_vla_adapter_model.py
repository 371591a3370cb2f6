"""The network of VLA-Adapter: projectors, language model with ActionQueries, bridge head."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies._embedded import ObservationModel
from policies._tokens import VisionProjector
from policies.configuration_vla_adapter import VLAAdapterConfig
from policies.heads import L1ActionHead
from policies.language_models import LanguageModelSize, build_language_model
from policies.text import TextFeatures


class VLAAdapterModel(ObservationModel):
    """Features, instruction and state to a chunk of actions.

    Args:
        config: with its features validated.
    """

    def __init__(self, config: VLAAdapterConfig) -> None:
        super().__init__(config)
        assert config.action_feature is not None
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.queries = nn.Parameter(0.02 * torch.randn(1, config.num_queries, width))
        self.language_model = build_language_model(
            config.language_model,
            LanguageModelSize(
                width=width, num_layers=config.num_layers, num_heads=config.num_heads, hidden=hidden
            ),
        )
        projectors = (cast(VisionProjector, projector) for projector in self.vision_projector)
        num_vision = sum(projector.num_tokens for projector in projectors)
        self.action_head = L1ActionHead(
            width=width,
            num_heads=config.num_heads,
            hidden=hidden,
            num_layers=config.num_layers,
            chunk_size=config.chunk_size,
            action_dim=config.action_feature.shape[0],
            task_to_adapter=num_vision / (config.num_queries + 1),
        )

    def forward(self, features: Tensor, text: TextFeatures, state: Tensor) -> Tensor:
        """Predict actions.

        Args:
            features: (B, V, T, C) of the backbone, any float dtype.
            text: B encoded instructions.
            state: (B, S), normalised.

        Returns:
            (B, chunk_size, action_dim).
        """
        task, task_mask = self.task_tokens(features, text)
        tokens = torch.cat([task, self.queries.expand(len(features), -1, -1)], dim=1)
        mask = F.pad(task_mask, (0, self.queries.shape[1]), value=True)
        states = self.language_model(tokens, mask)
        proprio = self.proprio_projector(state)[:, None]
        actions: Tensor = self.action_head(states, mask, task.shape[1], proprio)
        return actions
