"""VLA-Adapter at full size: Qwen2.5-0.5B with fused vision, ActionQueries and a bridge head.

    tokens: [first prompt token | vision of all views | rest of the prompt, padded | ActionQueries]
    head:   block i reads the task tokens (vision) and the ActionQueries after layer i

Source: Wang et al., "VLA-Adapter", arXiv 2509.09372; what differs from the published code and the
switch that brings it back are in docs/policies.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policies._chunk_policy import resize
from policies._configuration import store_config
from policies._l1_policy import L1Policy
from policies._pretrained import (
    PromptTokenizer,
    add_lora,
    centre_crop,
    hidden_states,
    load_into,
    pad_ids,
)
from policies._prismatic import own_names, read_head, read_vlm
from policies._published_head import PublishedL1Head
from policies._tokens import ProprioProjector
from policies._vit import DINOV2_LARGE, SIGLIP_SO400M, FusedVisionBackbone, ViTSize
from policies.configuration_vla_adapter_full import VLAAdapterFullConfig
from policies.heads import L1ActionHead

_VLM = r"vision_backbone\.|projector\.|language_model\."
_LORA_LAYERS = (
    r"vision_backbone\.\w+\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])|projector\.fc[123]"
    r"|language_model\.layers\.\d+\.\w+\.([qkvo]_proj|gate_proj|up_proj|down_proj)"
)
_ALWAYS_TRAINED = r"^(action_head|proprio_projector|action_queries)\."
# Qwen's chat template with its own system line, written out: it must not change with the tokenizer.
_PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\nWhat action should the robot take to {}?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def prompt(instruction: str) -> str:
    """The published prompt for an instruction."""
    return _PROMPT.format(instruction.strip().lower())


class PrismaticProjector(nn.Module):
    """Fused vision features (..., C) to tokens (..., width): three layers, 4 C wide in between."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, width)
        self.fc3 = nn.Linear(width, width)
        self.act = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.fc3(self.act(self.fc2(self.act(self.fc1(features)))))
        return out


class VLAAdapterFullModel(nn.Module):
    """Images, prompts and states to a chunk of actions.

    Args:
        config: with its features validated.
    """

    def __init__(self, config: VLAAdapterFullConfig) -> None:
        super().__init__()
        assert config.robot_state_feature is not None
        self.config = config
        first, second = vision_sizes(config)
        self.vision_backbone = FusedVisionBackbone(first, second, config.image_size)
        self.projector = PrismaticProjector(self.vision_backbone.channels, config.width)
        self.language_model = build_qwen2(config)
        self.action_queries = nn.Embedding(config.num_queries, config.width)
        nn.init.normal_(self.action_queries.weight, std=0.02)
        self.proprio_projector = ProprioProjector(config.robot_state_feature.shape[0], config.width)
        rows, columns = self.vision_backbone.grid
        self.num_vision = len(config.views) * rows * columns
        self.action_head = build_head(config, self.num_vision)
        if config.gradient_checkpointing:
            self.vision_backbone.featurizer.gradient_checkpointing = True
            self.vision_backbone.fused_featurizer.gradient_checkpointing = True
            self.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, images: Tensor, ids: Tensor, ids_mask: Tensor, state: Tensor) -> Tensor:
        """Predict actions.

        Args:
            images: (B, V, 3, side, side), float in [0, 1].
            ids: (B, N) token ids of the prompts, padded on the right.
            ids_mask: (B, N) bool, True for real ones.
            state: (B, S), normalised.

        Returns:
            (B, chunk_size, action_dim).
        """
        vision = self.vision_backbone(images).flatten(1, 2)
        vision = self.projector(vision.to(self.projector.fc1.weight.dtype))
        words = self.language_model.embed_tokens(ids)
        queries = self.action_queries.weight.expand(len(ids), -1, -1)
        tokens = torch.cat([words[:, :1], vision, words[:, 1:], queries], dim=1)
        parts = (ids_mask[:, :1], _true(vision), ids_mask[:, 1:], _true(queries))
        states = self._run(tokens, torch.cat(parts, dim=1))
        last = self.num_vision + ids_mask.sum(1) - 1  # the last real token of the prompt
        seen = [self._select(state, last) for state in states[1:]]
        proprio = self.proprio_projector(state)[:, None]
        actions: Tensor = self.action_head(seen, _true(seen[0]), self.num_vision, proprio)
        return actions

    def _run(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        """Hidden states: the tokens, then those after every layer; the last one normalised."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        allowed = mask[:, None, None, :]
        if self.config.attention == "causal":
            size = tokens.shape[1]
            ones = torch.ones(size, size, dtype=torch.bool, device=tokens.device)
            # A padded row attends to itself, or its softmax would be over nothing.
            allowed = (allowed & ones.tril()) | torch.eye(size, dtype=torch.bool).to(ones.device)
        allowed = allowed.expand(-1, 1, tokens.shape[1], -1)
        bias = torch.zeros(allowed.shape, device=tokens.device, dtype=tokens.dtype)
        bias = bias.masked_fill_(~allowed, torch.finfo(tokens.dtype).min)
        return hidden_states(
            self.language_model.layers,
            lambda: (
                self.language_model(
                    inputs_embeds=tokens,
                    attention_mask={"full_attention": bias},
                    position_ids=positions,
                    use_cache=False,
                ).last_hidden_state
            ),
        )

    def _select(self, state: Tensor, last: Tensor) -> Tensor:
        """Task tokens, then ActionQueries, (B, T + Q, width)."""
        count = self.config.num_queries
        if not self.config.published_compat:
            return torch.cat([state[:, 1 : 1 + self.num_vision], state[:, -count:]], dim=1)
        # Published: everything one position early.
        before = state[torch.arange(len(state), device=state.device), last][:, None]
        return torch.cat([state[:, : self.num_vision], before, state[:, -count:-1]], dim=1)


class VLAAdapterFullPolicy(L1Policy):
    """VLA-Adapter at full size; a batch holds what `EmbeddedPolicy`'s does, but no features.

    Args:
        config: features declared; with vlm_path or head_path, pretrained weights are loaded.
        dataset_stats: given by lerobot's factory; not needed, normalisation is in the processors.
        dataset_meta: the same.

    Raises:
        ValueError: features that the policy cannot work with.
        PretrainedFileError: a pretrained file is missing.
        CheckpointMismatchError: a pretrained file does not fit.
    """

    config_class = VLAAdapterFullConfig
    name = "vla_adapter_full"
    _no_split_modules = ("Qwen2DecoderLayer", "_Block", "BridgeBlock", "PublishedProBlock")
    config: VLAAdapterFullConfig

    def __init__(
        self,
        config: VLAAdapterFullConfig,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: object | None = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.model = VLAAdapterFullModel(config)
        self._load_published()
        if config.lora_rank:
            add_lora(self.model, _LORA_LAYERS, config.lora_rank, config.lora_alpha, _ALWAYS_TRAINED)
        self._tokenizer = PromptTokenizer(config.tokenizer)
        self.reset()

    def prepare(self, instructions: Sequence[str] = ()) -> None:
        """Load the tokenizer and encode ``instructions`` now rather than at the first call."""
        for text in list(instructions) or [""]:
            self._tokenizer.ids(prompt(text))

    def _predict(self, batch: Mapping[str, Any]) -> Tensor:
        images = centre_crop(self._images(batch), self.config.centre_crop)
        images = resize(images, self.config.image_size, "bicubic")
        state, tasks = self._state_and_tasks(batch, len(images))
        ids, mask = pad_ids([self._tokenizer.ids(prompt(t)) for t in tasks], self._device)
        actions: Tensor = self.model(images, ids, mask, state)
        return actions

    def _load_published(self) -> None:
        config = self.config
        source = config.head_path or config.vlm_path
        if not source:
            return
        weights = own_names(read_vlm(source), config.vision_depth)
        parts = _VLM
        if config.head_path:
            weights |= own_names(read_head(source), config.vision_depth)
            parts = r""
        load_into(self.model, weights, parts, source)

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        # All weights are in this checkpoint now.
        store_config(self.config, save_directory, vlm_path="", head_path="")


def vision_sizes(config: VLAAdapterFullConfig) -> tuple[ViTSize, ...]:
    """Sizes of the two vision transformers."""
    return tuple(
        ViTSize(
            width=config.vision_width[i],
            depth=config.vision_depth[i],
            num_heads=config.vision_heads[i],
            hidden=config.vision_hidden[i],
            patch=kind.patch,
            num_prefix=kind.num_prefix,
            layer_scale=kind.layer_scale,
            mean=kind.mean,
            std=kind.std,
        )
        for i, kind in enumerate((DINOV2_LARGE, SIGLIP_SO400M))
    )


def build_qwen2(config: VLAAdapterFullConfig) -> Any:
    """Qwen2.5 without its output layer, which is tied to the token table and not needed."""
    from transformers import Qwen2Config, Qwen2Model

    return Qwen2Model(
        Qwen2Config(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            rms_norm_eps=1e-6,
            attn_implementation="sdpa",
        )
    )


def build_head(config: VLAAdapterFullConfig, num_vision: int) -> nn.Module:
    """The published head, or ours with one set of projections ("base") or three ("pro")."""
    assert config.action_feature is not None
    sizes = {
        "width": config.width,
        "num_layers": config.num_layers,
        "chunk_size": config.chunk_size,
        "action_dim": config.action_feature.shape[0],
    }
    if config.published_compat:
        return PublishedL1Head(**sizes, pro=config.variant == "pro")
    return L1ActionHead(
        **sizes,
        num_heads=8,
        hidden=config.width,
        task_to_adapter=num_vision / (config.num_queries + 1),
        share_keys=config.variant == "base",
    )


def _true(tokens: Tensor) -> Tensor:
    """A mask (B, S) for tokens (B, S, W) that are all real."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
