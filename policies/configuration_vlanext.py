"""Configuration of the full-size flow-matching policy, registered with lerobot as ``vlanext``."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig

from policies._flow_config import FlowConfig


@PreTrainedConfig.register_subclass("vlanext")
@dataclass
class VLANeXtConfig(FlowConfig):
    """A flow-matching policy on Qwen3-VL-2B, after VLANeXt.

    The head has num_layers + 1 blocks: one for the tokens that enter the language model, one for
    each layer.

    Args:
        vlm_path: pretrained Qwen3-VL, folder or hub name such as "Qwen/Qwen3-VL-2B-Instruct"; "" =
            random weights. Sizes below must be its sizes.
        tokenizer: folder or hub name.
        lora_rank: adapters on all linear layers of Qwen3-VL; 0 = train it whole.
        lora_alpha: scale of the adapters times their rank.
        gradient_checkpointing: compute activations again in the backward pass.
        centre_crop: share of each side of an image that is looked at; the published evaluation
            looks at 0.9.
        num_queries: meta-queries.
        head_width: channels of the flow head.
        head_heads: its attention heads.
        head_mlp_ratio: its feed-forward channels per channel.
        vision_width: channels of the vision tower.
        vision_depth: its blocks.
        vision_heads: its attention heads.
        vision_hidden: its feed-forward channels.
        vision_positions: its learned positions.
        deepstack: its blocks whose features are added after the first layers of the language model.
        patch: pixels per patch side; a token is 2 x 2 patches.
        width: channels of the language model.
        num_layers: its layers.
        num_heads: its query heads.
        num_kv_heads: its key and value heads.
        head_dim: channels of a head.
        mrope_section: how many pairs of these turn with time, row and column.
        hidden: its feed-forward channels.
        vocabulary: rows of its token table.

    Raises:
        ValueError: settings that do not fit together.
    """

    chunk_size: int = 8
    n_action_steps: int = 8
    image_size: int = 256
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )
    vlm_path: str = ""
    tokenizer: str = "Qwen/Qwen3-VL-2B-Instruct"
    lora_rank: int = 0
    lora_alpha: int = 128
    gradient_checkpointing: bool = False
    centre_crop: float = 1.0
    num_queries: int = 16

    head_width: int = 1024
    head_heads: int = 16
    head_mlp_ratio: float = 4.0

    vision_width: int = 1024
    vision_depth: int = 24
    vision_heads: int = 16
    vision_hidden: int = 4096
    vision_positions: int = 2304
    deepstack: tuple[int, ...] = (5, 11, 17)
    patch: int = 16
    width: int = 2048
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    hidden: int = 6144
    vocabulary: int = 151_936

    optimizer_lr: float = 1e-4
    scheduler_warmup_steps: int = 500
    scheduler_decay_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("num_queries", "num_layers", "head_heads", "patch")
        if self.image_size % (2 * self.patch):
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of 2 * patch = "
                f"{2 * self.patch}"
            )
        if self.head_width % self.head_heads:
            raise ValueError(
                f"head_width {self.head_width} does not divide by {self.head_heads} heads"
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"mrope_section {self.mrope_section} must add up to half of head_dim="
                f"{self.head_dim}"
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}, must not be negative")
