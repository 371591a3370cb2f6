"""pi_0.5: lerobot's policy, with loud errors where it is silent.

What lerobot 0.6 does and this does not: return random weights when loading fails; train on actions
beyond the end of an episode; hand output layers that are never used (790 M parameters) to the
optimizer; draw one noise for a whole batch from a generator that others use too; name LoRA targets
that pi_0.5 does not have.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from policies._chunk_policy import ACTION_IS_PAD, reduce_steps
from policies._configuration import store_config
from policies._flow_policy import NOISE_SEED
from policies._openpi import own_names
from policies._pi05_sized import SizedPi05
from policies._pi05_sizes import FULL
from policies._pretrained import add_lora, load_into, read_safetensors
from policies.configuration_vla_pi05 import VLAPi05Config
from policies.flow import seeded_noise

_LORA_LAYERS = (
    r"paligemma_with_expert\.(paligemma\.model\.language_model|gemma_expert\.model)\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
)
_PROJECTIONS = r"^(action_in_proj|action_out_proj|time_mlp_in|time_mlp_out)\."


class VLAPi05Policy(PI05Policy):
    """lerobot's pi_0.5; a batch holds what that one's does.

    Args:
        config: features declared; with openpi_path, pretrained weights are loaded.
        dataset_stats: given by lerobot's factory; not needed, normalisation is in the processors.
        dataset_meta: the same.

    Raises:
        ValueError: features that the policy cannot work with.
        PretrainedFileError: a pretrained file is missing, or belongs to pi_0.
        CheckpointMismatchError: a pretrained file does not fit.
    """

    config_class = VLAPi05Config
    name = "vla_pi05"
    config: VLAPi05Config

    def __init__(
        self,
        config: VLAPi05Config,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: object | None = None,
    ) -> None:
        if config.size == FULL:
            super().__init__(config)
        else:
            self._build_sized(config)
        if config.openpi_path:
            load_into(self, own_names(read_safetensors(config.openpi_path)), "", config.openpi_path)
        if config.lora_rank:
            add_lora(self.model, _LORA_LAYERS, config.lora_rank, config.lora_alpha, _PROJECTIONS)
        self._freeze_outputs()

    def _build_sized(self, config: VLAPi05Config) -> None:
        """What lerobot's constructor does, around a network of another size."""
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.init_rtc_processor()
        self.model = SizedPi05(config, self.rtc_processor)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.to(config.device)
        self.reset()

    def _freeze_outputs(self) -> None:
        """The output layers over words are never used; the one of the VLM may be tied."""
        towers = self.model.paligemma_with_expert
        table = towers.paligemma.model.language_model.embed_tokens.weight
        for tower in (towers.paligemma, towers.gemma_expert):
            if tower.lm_head.weight is not table:
                tower.lm_head.weight.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint, every weight of it, or raise.

        Args:
            pretrained_name_or_path: folder or hub name.
            config: default: that of the checkpoint.
            kwargs: lerobot's options for downloads; not used, downloads go through the hub's cache.

        Raises:
            PretrainedFileError: no weights there.
            CheckpointMismatchError: weights are missing, left over or of another shape.
        """
        del kwargs
        source = str(pretrained_name_or_path)
        chosen = config or PreTrainedConfig.from_pretrained(source)
        assert isinstance(chosen, VLAPi05Config)
        chosen = copy.copy(chosen)
        chosen.openpi_path = ""  # all weights come from the checkpoint
        policy = cls(chosen)
        load_into(policy, own_names(read_safetensors(source)), "", source)
        policy.eval()
        return policy

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """The trainable parameters."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(
        self, batch: dict[str, Tensor], reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the velocity; padded actions do not count.

        Args:
            batch: see lerobot's `PI05Policy`; with ``action_is_pad`` (B, chunk) bool.
            reduction: "mean" over all real actions, or "none" for one loss per sample, (B,).
        """
        images, image_masks = self._preprocess_images(batch)
        actions = self.prepare_action(batch)
        noise = self.model.sample_noise(actions.shape, actions.device)
        time = self.model.sample_time(actions.shape[0], actions.device)
        tokens, masks = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        losses = self.model(images, image_masks, tokens, masks, actions, noise, time)
        assert self.config.action_feature is not None
        error = losses[..., : self.config.action_feature.shape[0]].mean(-1)
        real = torch.ones_like(error)
        if ACTION_IS_PAD in batch:
            real = (~batch[ACTION_IS_PAD].to(error.device)).to(error.dtype)
        loss = reduce_steps(error, real, reduction)
        return loss, {"flow_loss": loss.detach().mean().item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Actions (B, chunk, A); noise as of `policies._flow_policy.FlowPolicy`."""
        if kwargs.get("noise") is None:
            rows = len(batch[OBS_LANGUAGE_TOKENS])
            seeds = batch.get(NOISE_SEED)
            if seeds is None:
                seeds = torch.randint(2**62, (rows,)).tolist()
            shape = (self.config.chunk_size, self.config.max_action_dim)
            like = self.model.action_in_proj.weight
            kwargs["noise"] = seeded_noise(shape, seeds).to(like.device)
        actions: Tensor = super().predict_action_chunk(batch, **kwargs)
        return actions

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Targets for ``lerobot-train --peft``: lerobot's own name parts that pi_0.5 lacks."""
        return {
            "target_modules": rf"model\.({_LORA_LAYERS}|action_in_proj|action_out_proj"
            r"|time_mlp_in|time_mlp_out)",
            "modules_to_save": [],
        }

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        store_config(self.config, save_directory, openpi_path="")  # all weights are in it now
