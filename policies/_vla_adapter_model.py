"""The network of VLA-Adapter: projectors, language model with ActionQueries, bridge head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies._tokens import ProprioProjector, TextProjector, VisionProjector
from policies.backbones import Backbone, build_backbone
from policies.configuration_vla_adapter import VLAAdapterConfig
from policies.heads import L1ActionHead
from policies.language_models import LanguageModelSize, build_language_model
from policies.text import TextEncoder, TextFeatures, build_text_encoder


class VLAAdapterModel(nn.Module):
    """Features, instruction and state to a chunk of actions.

    The frozen encoders are plain attributes, not sub-modules: neither their parameters nor their
    weights belong to this model.

    Args:
        config: with its features validated.
    """

    text_encoder: TextEncoder
    vision_backbone: Backbone

    def __init__(self, config: VLAAdapterConfig) -> None:
        super().__init__()
        assert config.robot_state_feature is not None
        assert config.action_feature is not None
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.vision_backbone = build_backbone(config.backbone, config.image_size)
        self.text_encoder = build_text_encoder(config.text_encoder, config.max_text_tokens)
        grid, channels = self.vision_backbone.grid, self.vision_backbone.channels
        self.vision_projector = nn.ModuleList(
            VisionProjector(channels, width, grid, pooling)
            for _, pooling in zip(config.views, config.view_pooling, strict=False)
        )
        self.text_projector = TextProjector(self.text_encoder.channels, width)
        self.proprio_projector = ProprioProjector(config.robot_state_feature.shape[0], width)
        self.queries = nn.Parameter(0.02 * torch.randn(1, config.num_queries, width))
        self.language_model = build_language_model(
            config.language_model,
            LanguageModelSize(
                width=width, num_layers=config.num_layers, num_heads=config.num_heads, hidden=hidden
            ),
        )
        num_vision = sum(projector.num_tokens for projector in self.vision_projector)
        self.action_head = L1ActionHead(
            width=width,
            num_heads=config.num_heads,
            hidden=hidden,
            num_layers=config.num_layers,
            chunk_size=config.chunk_size,
            action_dim=config.action_feature.shape[0],
            task_to_adapter=num_vision / (config.num_queries + 1),
        )

    @property
    def features_shape(self) -> tuple[int, int, int]:
        """Views, positions per view, channels of the features that `forward` takes."""
        rows, columns = self.vision_backbone.grid
        return len(self.vision_projector), rows * columns, self.vision_backbone.channels

    def forward(self, features: Tensor, text: TextFeatures, state: Tensor) -> Tensor:
        """Predict actions.

        Args:
            features: (B, V, T, C) of the backbone, any float dtype.
            text: B encoded instructions.
            state: (B, S), normalised.

        Returns:
            (B, chunk_size, action_dim).
        """
        batch = len(features)
        vision = [project(features[:, v]) for v, project in enumerate(self.vision_projector)]
        words = self.text_projector(text.pooled, text.tokens)
        queries = self.queries.expand(batch, -1, -1)
        tokens = torch.cat([*vision, words, queries], dim=1)
        num_task = tokens.shape[1] - queries.shape[1]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask[:, num_task - text.mask.shape[1] : num_task] = text.mask
        states = self.language_model(tokens, mask)
        proprio = self.proprio_projector(state)[:, None]
        actions: Tensor = self.action_head(states, mask, num_task, proprio)
        return actions
