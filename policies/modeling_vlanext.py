"""The flow-matching policy at full size: Qwen3-VL, meta-queries, and a head that sees every layer.

    tokens: [proprioception | chat prompt with the images of all views, padded | meta-queries]
    head:   block i denoises the chunk with the i-th hidden state in view, all positions of it

Written from a description of VLANeXt's policy, whose code is not free: none of it is here.
Differences: padding is masked in the head, the state is the current frame's and normalised, and
actions beyond the end of an episode do not count instead of being zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policies._chunk_policy import resize
from policies._configuration import store_config
from policies._flow_head import FlowContext, FlowHead
from policies._flow_policy import FlowPolicy
from policies._pretrained import (
    PromptTokenizer,
    add_lora,
    centre_crop,
    hidden_states,
    load_into,
    pad_ids,
    read_safetensors,
)
from policies._qwen3_vl import (
    MERGE,
    VISION_END,
    VISION_START,
    build_qwen3_vl,
    patchify,
    rope_positions,
)
from policies.configuration_vlanext import VLANeXtConfig

_LORA_LAYERS = (
    r"vlm\.visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])|\w*merger\w*\.(\d+\.)?"
    r"linear_fc[12])|vlm\.language_model\.layers\.\d+\.\w+\."
    r"([qkvo]_proj|gate_proj|up_proj|down_proj)"
)
_ALWAYS_TRAINED = r"^(action_head|proprio_projector)\.|^meta_queries$"
_HEAD_POSITIONS = 256  # of the published policy, for chunks up to this length


def prompt_parts(instruction: str, views: int) -> list[str]:
    """Qwen's chat prompt, cut where the images go: one part more than there are views."""
    parts = [f"{VISION_END}{VISION_START}"] * (views - 1)
    end = f"{VISION_END}{instruction.strip()}<|im_end|>\n<|im_start|>assistant\n"
    return [f"<|im_start|>user\n{VISION_START}", *parts, end]


class VLANeXtModel(nn.Module):
    """Images, prompts and states to what the head attends to, and the head.

    Args:
        config: with its features validated.
    """

    def __init__(self, config: VLANeXtConfig) -> None:
        super().__init__()
        assert config.robot_state_feature is not None
        assert config.action_feature is not None
        self.config = config
        self.vlm = build_qwen3_vl(config)
        self.proprio_projector = nn.Linear(config.robot_state_feature.shape[0], config.width)
        self.meta_queries = nn.Parameter(torch.randn(config.num_queries, config.width))
        self.action_head = FlowHead(
            width=config.head_width,
            depth=config.num_layers + 1,
            num_heads=config.head_heads,
            mlp_ratio=config.head_mlp_ratio,
            context_width=config.width,
            action_dim=config.action_feature.shape[0],
            max_chunk=max(_HEAD_POSITIONS, config.chunk_size),
            normalize_context=False,
        )
        if config.gradient_checkpointing:
            self.vlm.gradient_checkpointing_enable({"use_reentrant": False})

    def context(
        self, images: Tensor, parts: Sequence[Tensor], last_mask: Tensor, state: Tensor
    ) -> FlowContext:
        """What the head attends to.

        Args:
            images: (B, V, 3, side, side), float in [0, 1].
            parts: V + 1 tensors (B, n) of token ids around the images; the last one is padded.
            last_mask: (B, n) bool, True for the real ones of the last part.
            state: (B, S), normalised.
        """
        batch, views = images.shape[:2]
        vision, deepstack, grid = self._look(images.flatten(0, 1))
        vision = vision.unflatten(0, (batch, views, -1))
        words = [self.vlm.language_model.embed_tokens(part) for part in parts]
        tokens, is_image = [self.proprio_projector(state)[:, None], words[0]], [False, False]
        layout: list[int | tuple[int, int]] = [1 + words[0].shape[1]]
        for v in range(views):
            tokens += [vision[:, v], words[v + 1]]
            is_image += [True, False]
            layout += [grid, words[v + 1].shape[1]]
        tokens.append(self.meta_queries.expand(batch, -1, -1))
        layout[-1] = tokens[-2].shape[1] + tokens[-1].shape[1]
        masks = [torch.ones(t.shape[:2], dtype=torch.bool, device=t.device) for t in tokens]
        masks[-2] = last_mask
        mask = torch.cat(masks, dim=1)
        images_at = [m & flag for m, flag in zip(masks, [*is_image, False], strict=True)]
        states = self._run(
            torch.cat(tokens, dim=1), mask, layout, torch.cat(images_at, dim=1), deepstack
        )
        return self.action_head.context(states, mask)

    def _look(self, images: Tensor) -> tuple[Tensor, list[Tensor], tuple[int, int]]:
        """Tokens of N images, features to be added after the first layers, and the tokens' grid."""
        patch, tower = self.config.patch, self.vlm.visual
        rows, columns = (side // patch for side in images.shape[-2:])
        grid = torch.tensor([[1, rows, columns]], device=images.device).expand(len(images), -1)
        seen = tower(patchify(images, patch).to(tower.dtype), grid_thw=grid)
        return seen.pooler_output, seen.deepstack_features, (rows // MERGE, columns // MERGE)

    def _run(
        self,
        tokens: Tensor,
        mask: Tensor,
        layout: list[int | tuple[int, int]],
        images_at: Tensor,
        deepstack: list[Tensor],
    ) -> list[Tensor]:
        model = self.vlm.language_model
        return hidden_states(
            model.layers,
            lambda: (
                model(
                    inputs_embeds=tokens,
                    attention_mask=mask,
                    position_ids=rope_positions(layout, mask),
                    visual_pos_masks=images_at,
                    deepstack_visual_embeds=deepstack,
                    use_cache=False,
                ).last_hidden_state
            ),
        )


class VLANeXtPolicy(FlowPolicy):
    """Flow matching on Qwen3-VL; a batch holds what `EmbeddedPolicy`'s does, but no features.

    Args:
        config: features declared; with vlm_path, pretrained weights are loaded.
        dataset_stats: given by lerobot's factory; not needed, normalisation is in the processors.
        dataset_meta: the same.

    Raises:
        ValueError: features that the policy cannot work with.
        PretrainedFileError: a pretrained file is missing.
        CheckpointMismatchError: a pretrained file does not fit.
    """

    config_class = VLANeXtConfig
    name = "vlanext"
    _no_split_modules = ("Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock", "FlowBlock")
    config: VLANeXtConfig

    def __init__(
        self,
        config: VLANeXtConfig,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: object | None = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.model = VLANeXtModel(config)
        if config.vlm_path:
            load_into(self.model.vlm, own_names(read_safetensors(config.vlm_path)), "",
                      config.vlm_path)  # fmt: skip
        if config.lora_rank:
            add_lora(self.model, _LORA_LAYERS, config.lora_rank, config.lora_alpha, _ALWAYS_TRAINED)
        self._tokenizer = PromptTokenizer(config.tokenizer)
        self.reset()

    def prepare(self, instructions: Sequence[str] = ()) -> None:
        """Load the tokenizer and encode ``instructions`` now rather than at the first call."""
        for text in list(instructions) or [""]:
            self._ids(text)

    @property
    def _head(self) -> FlowHead:
        return self.model.action_head

    def _ids(self, instruction: str) -> list[tuple[int, ...]]:
        parts = prompt_parts(instruction, len(self.config.views))
        return [self._tokenizer.ids(part) for part in parts]

    def _context(self, batch: Mapping[str, Any]) -> FlowContext:
        images = centre_crop(self._images(batch), self.config.centre_crop)
        images = resize(images, self.config.image_size, "bicubic")
        state, tasks = self._state_and_tasks(batch, len(images))
        columns = zip(*(self._ids(task) for task in tasks), strict=True)
        padded = [pad_ids(column, self._device) for column in columns]
        ids, masks = zip(*padded, strict=True)
        return self.model.context(images, ids, masks[-1], state)

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        store_config(self.config, save_directory, vlm_path="")  # all weights are in it now


def own_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a Qwen3-VL checkpoint under the names of its inner model; the output is tied."""
    return {
        key.removeprefix("model."): value
        for key, value in published.items()
        if not key.startswith("lm_head.")
    }
