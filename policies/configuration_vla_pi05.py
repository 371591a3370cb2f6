"""Configuration of pi_0.5 as it is trained here, registered with lerobot as ``vla_pi05``."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05.configuration_pi05 import PI05Config

from policies._pi05_sizes import FULL, SIZES
from policies.droid import ACTION_SPACES, CHUNKS, GRIPPER, STATE_NAMES

MINILM = "minilm_l6_v2"


@PreTrainedConfig.register_subclass("vla_pi05")
@dataclass
class VLAPi05Config(PI05Config):
    """lerobot's pi_0.5 with its traps closed; all keys of lerobot's ``pi05`` are valid too.

    Args:
        size: "full", the published one (`paligemma_variant` and `action_expert_variant` count for
            it alone), or a name in `policies._pi05_sizes.SIZES`: "embedded" trains on one CPU, from
            random weights, with tokenizer "minilm_l6_v2".
        openpi_path: pretrained openpi checkpoint converted to PyTorch, folder or hub name; "" =
            random weights.
        tokenizer: folder or hub name of PaliGemma's tokenizer; "minilm_l6_v2" is one that comes
            with the installation, for sizes without pretrained weights.
        lora_rank: adapters on all linear layers of language model and action expert; 0 = train
            everything.
        lora_alpha: scale of the adapters times their rank.
        droid_action_space: "joint_velocity" or "joint_position" for DROID robots (then chunk_size,
            features and use_relative_actions are checked); "" for other robots.
        push_to_hub: upload after stock lerobot training.

    Raises:
        ValueError: settings that do not fit together.
    """

    size: str = FULL
    openpi_path: str = ""
    tokenizer: str = "google/paligemma-3b-pt-224"
    lora_rank: int = 0
    lora_alpha: int = 16
    droid_action_space: str = ""
    push_to_hub: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in (FULL, *SIZES):
            raise ValueError(f"size is '{self.size}', expected one of {[FULL, *SIZES]}")
        if (self.size == FULL) == (self.tokenizer == MINILM):
            raise ValueError(
                f"size '{self.size}' does not go with tokenizer '{self.tokenizer}': the full size "
                f"has PaliGemma's words, the others those of '{MINILM}'"
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}, must not be negative")
        if self.droid_action_space:
            self._check_droid()

    def _check_droid(self) -> None:
        name = self.droid_action_space
        if name not in ACTION_SPACES:
            raise ValueError(
                f"droid_action_space is '{name}', expected one of {sorted(ACTION_SPACES)}"
            )
        if self.chunk_size not in CHUNKS:
            raise ValueError(
                f"chunk_size is {self.chunk_size}; pi_0.5 on DROID predicts {CHUNKS} actions "
                "(openpi, the Pion paper): set chunk_size and n_action_steps"
            )
        space = ACTION_SPACES[name]
        if self.use_relative_actions != space.relative:
            raise ValueError(
                f"use_relative_actions is {self.use_relative_actions}, but {name} needs "
                f"{space.relative}"
            )
        self.action_feature_names = list(space.names)
        self.relative_exclude_joints = [GRIPPER]

    def validate_features(self) -> None:
        """Check the declared features; on DROID, state and action have eight numbers.

        Raises:
            ValueError: another number.
        """
        super().validate_features()
        if not self.droid_action_space:
            return
        for feature, kind in ((self.robot_state_feature, "state"), (self.action_feature, "action")):
            if feature is None or feature.shape != (len(STATE_NAMES),):
                found = feature and feature.shape
                raise ValueError(
                    f"the {kind} has shape {found}, but DROID's has {(len(STATE_NAMES),)}: seven "
                    "joints and the gripper"
                )
