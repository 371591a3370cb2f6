"""The embedded flow-matching policy: VLANeXt's design on frozen encoders and a small transformer.

tokens: [proprioception | vision | words | meta-queries] -> language model -> hidden states
head:   block i denoises the chunk with the i-th hidden state in view, all positions of it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies._embedded import EmbeddedPolicy, ObservationModel
from policies._flow_head import FlowContext, FlowHead
from policies._flow_policy import FlowPolicy
from policies.configuration_vla_flow import VLAFlowConfig
from policies.language_models import LanguageModelSize, build_language_model
from policies.text import TextFeatures


class VLAFlowModel(ObservationModel):
    """Observation to the hidden states that the head attends to, and the head.

    Args:
        config: with its features validated.
    """

    def __init__(self, config: VLAFlowConfig) -> None:
        super().__init__(config)
        assert config.action_feature is not None
        self.meta_queries = nn.Parameter(0.02 * torch.randn(1, config.num_queries, config.width))
        self.language_model = build_language_model(
            config.language_model,
            LanguageModelSize(
                width=config.width,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                hidden=round(config.width * config.mlp_ratio),
            ),
        )
        self.action_head = FlowHead(
            width=config.width,
            depth=config.num_layers + 1,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            context_width=config.width,
            action_dim=config.action_feature.shape[0],
            max_chunk=config.chunk_size,
            normalize_context=True,
        )

    def context(self, features: Tensor, text: TextFeatures, state: Tensor) -> FlowContext:
        """What the head attends to; arguments as of `ObservationModel.task_tokens`."""
        task, mask = self.task_tokens(features, text)
        proprio = self.proprio_projector(state)[:, None]
        queries = self.meta_queries.expand(len(task), -1, -1)
        tokens = torch.cat([proprio, task, queries], dim=1)
        mask = F.pad(mask, (1, queries.shape[1]), value=True)
        states = [tokens, *self.language_model(tokens, mask)]
        return self.action_head.context(states, mask)


class VLAFlowPolicy(FlowPolicy, EmbeddedPolicy):
    """Images of all views, an instruction and the robot's state to a chunk of actions, by flow.

    What a batch holds is said in `EmbeddedPolicy`, where noise comes from in `FlowPolicy`.

    Args:
        config: features declared.
        dataset_stats: given by lerobot's factory; not needed, normalisation is in the processors.
        dataset_meta: the same.

    Raises:
        ValueError: features that the policy cannot work with.
        CheckpointMismatchError: the configuration comes from a policy trained on other encoders.
    """

    config_class = VLAFlowConfig
    name = "vla_flow"
    config: VLAFlowConfig
    model: VLAFlowModel

    def __init__(
        self,
        config: VLAFlowConfig,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: object | None = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.model = VLAFlowModel(config)
        self._check_fingerprints()
        self.reset()

    @property
    def _head(self) -> FlowHead:
        return self.model.action_head

    def _context(self, batch: Mapping[str, Any]) -> FlowContext:
        return self.model.context(*self._observe(batch))
