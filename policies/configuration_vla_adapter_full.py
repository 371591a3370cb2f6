"""Configuration of VLA-Adapter at full size, registered with lerobot as ``vla_adapter_full``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lerobot.configs import NormalizationMode, PreTrainedConfig

from policies._configuration import ChunkPolicyConfig


@PreTrainedConfig.register_subclass("vla_adapter_full")
@dataclass
class VLAAdapterFullConfig(ChunkPolicyConfig):
    """VLA-Adapter on Qwen2.5-0.5B with DINOv2-L and SigLIP-so400m (arXiv 2509.09372).

    Args:
        variant: "pro": projections of their own for the keys and values of chunk, ActionQueries
            and task; "base": the same for all three.
        published_compat: reproduce the published code with its oddities (docs/policies.md), which
            its checkpoints were trained with. Off: `policies.heads` with the right slices.
        vlm_path: pretrained Prismatic backbone, folder or hub name; "" = random weights.
        head_path: published VLA-Adapter checkpoint with its head, folder or hub name; needs
            published_compat; replaces vlm_path.
        tokenizer: folder or hub name.
        attention: of the language model. Qwen2.5's own is causal; whether the fork that the
            published code was trained with made it bidirectional could not be verified.
        lora_rank: adapters on all linear layers of the vision-language model; 0 = train it whole.
        lora_alpha: scale of the adapters times their rank.
        gradient_checkpointing: compute activations again in the backward pass.
        centre_crop: share of each side of an image that is looked at. The published evaluation
            looks at 0.9 of the area, that is 0.949 of a side.
        num_queries: ActionQueries.
        vision_width: channels of the two vision transformers, [1024, 1152] as published.
        vision_depth: their published number of blocks; one less is used.
        vision_heads: their attention heads.
        vision_hidden: their feed-forward channels.
        width: channels of the language model and the head.
        num_layers: layers of the language model, blocks of the head.
        num_heads: query heads of the language model.
        num_kv_heads: key and value heads.
        hidden: feed-forward channels.
        vocabulary: rows of the token table.

    Raises:
        ValueError: settings that do not fit together.
    """

    chunk_size: int = 8
    n_action_steps: int = 8
    image_size: int = 224
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.QUANTILES,
            "ACTION": NormalizationMode.QUANTILES,
        }
    )
    variant: Literal["pro", "base"] = "pro"
    published_compat: bool = False
    vlm_path: str = ""
    head_path: str = ""
    tokenizer: str = "Qwen/Qwen2.5-0.5B"
    attention: Literal["causal", "bidirectional"] = "causal"
    lora_rank: int = 0
    lora_alpha: int = 128
    gradient_checkpointing: bool = False
    centre_crop: float = 1.0
    num_queries: int = 64

    vision_width: tuple[int, int] = (1024, 1152)
    vision_depth: tuple[int, int] = (24, 27)
    vision_heads: tuple[int, int] = (16, 16)
    vision_hidden: tuple[int, int] = (4096, 4304)
    width: int = 896
    num_layers: int = 24
    num_heads: int = 14
    num_kv_heads: int = 2
    hidden: int = 4864
    vocabulary: int = 151_936

    optimizer_lr: float = 2e-4
    scheduler_warmup_steps: int = 0
    scheduler_decay_steps: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("num_queries", "num_layers", "num_heads", "num_kv_heads")
        if self.variant not in ("pro", "base"):
            raise ValueError(f"variant is '{self.variant}', expected 'pro' or 'base'")
        if self.attention not in ("causal", "bidirectional"):
            raise ValueError(f"attention is '{self.attention}', expected 'causal'/'bidirectional'")
        if self.width % self.num_heads or self.width % 8:
            raise ValueError(
                f"width {self.width} does not divide into {self.num_heads} and 8 heads"
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}, must not be negative")
        if self.head_path and not self.published_compat:
            raise ValueError(
                "head_path names a published checkpoint, and those were trained with the published "
                "head: set published_compat=true"
            )
