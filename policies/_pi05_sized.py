"""pi_0.5's network at sizes that lerobot does not offer; what it computes is lerobot's."""

from __future__ import annotations

from typing import Any

from lerobot.policies.pi05.modeling_pi05 import PaliGemmaWithExpertModel, PI05Pytorch
from lerobot.policies.pi_gemma import (
    PaliGemmaForConditionalGenerationWithPiGemma,
    PiGemmaForCausalLM,
)
from torch import nn
from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

from policies._pi05_sizes import SIZES, Pi05Size
from policies.configuration_vla_pi05 import VLAPi05Config


class SizedTowers(PaliGemmaWithExpertModel):
    """Vision tower, language model and action expert of given sizes.

    Args:
        size: of the towers. config: image size, type of the weights, what is frozen.
    """

    def __init__(self, size: Pi05Size, config: VLAPi05Config) -> None:
        nn.Module.__init__(self)
        self.freeze_vision_encoder = config.freeze_vision_encoder
        self.train_expert_only = config.train_expert_only
        self.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(config=_vlm(size, config))
        expert = _gemma(size, size.expert_width, size.expert_hidden)
        expert.use_adarms, expert.adarms_cond_dim = True, size.expert_width
        self.gemma_expert = PiGemmaForCausalLM(config=expert)
        self.gemma_expert.model.embed_tokens = None
        self.to_bfloat16_for_selected_params(config.dtype)
        self._set_requires_grad()


class SizedPi05(PI05Pytorch):
    """Towers, projections of actions and time.

    Args:
        config: `size` names an entry of `SIZES`. rtc_processor: lerobot's, or None.
    """

    def __init__(self, config: VLAPi05Config, rtc_processor: Any = None) -> None:
        nn.Module.__init__(self)
        self.config, self.rtc_processor = config, rtc_processor
        size = SIZES[config.size]
        self.paligemma_with_expert = SizedTowers(size, config)
        self.action_in_proj = nn.Linear(config.max_action_dim, size.expert_width)
        self.action_out_proj = nn.Linear(size.expert_width, config.max_action_dim)
        self.time_mlp_in = nn.Linear(size.expert_width, size.expert_width)
        self.time_mlp_out = nn.Linear(size.expert_width, size.expert_width)
        self.gradient_checkpointing_enabled = False


def _gemma(size: Pi05Size, width: int, hidden: int) -> GemmaConfig:
    made = GemmaConfig(
        vocab_size=size.vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        hidden_activation="gelu_pytorch_tanh",
        dtype="float32",
    )
    made.use_adarms, made.adarms_cond_dim = False, None
    return made


def _vlm(size: Pi05Size, config: VLAPi05Config) -> PaliGemmaConfig:
    vision = SiglipVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=size.vision_hidden,
        num_hidden_layers=size.vision_depth,
        num_attention_heads=size.vision_heads,
        patch_size=size.patch,
        image_size=config.image_resolution[0],
        projection_dim=size.width,
        vision_use_head=False,
        dtype="float32",
    )
    return PaliGemmaConfig(
        vision_config=vision,
        text_config=_gemma(size, size.width, size.hidden),
        image_token_index=size.vocabulary,
        projection_dim=size.width,
    )
