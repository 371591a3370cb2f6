"""Published checkpoints turned into checkpoints of this project, so that every verb takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature

from policies._prismatic import published_stats
from policies.configuration_vla_adapter_full import VLAAdapterFullConfig
from policies.modeling_vla_adapter_full import VLAAdapterFullPolicy
from policies.processor_vla_adapter_full import make_vla_adapter_full_pre_post_processors

VIEWS = ("observation.images.image", "observation.images.image2")
"""LIBERO's third-person and wrist camera, in the order of the published policy."""
_CENTRE_CROP = 0.9**0.5  # the published evaluation looks at 0.9 of the area


def import_vla_adapter(
    source: str, folder: str | Path, *, key: str = "", picture_size: int = 256, **changes: Any
) -> VLAAdapterFullPolicy:
    """Write a published VLA-Adapter checkpoint as one that ``vla-opt eval`` and ``serve`` take.

    Args:
        source: folder or hub name, with weights, head, proprioception projector and statistics.
        folder: where the policy, its configuration and its processors go.
        key: of the statistics, such as "libero_object_no_noops"; "" if there is only one.
        picture_size: side in pixels of what the cameras give; the policy resizes it itself.
        changes: fields of `VLAAdapterFullConfig`, such as variant="base" or tokenizer="/path".

    Returns:
        the policy.

    Raises:
        PretrainedFileError: a file is missing.
        CheckpointMismatchError: weights that do not fit, for example those of the other variant.
    """
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, picture_size, picture_size))
    config = VLAAdapterFullConfig(
        device="cpu",
        input_features={
            **dict.fromkeys(VIEWS, image),
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
        **{"centre_crop": _CENTRE_CROP, "published_compat": True, "head_path": source, **changes},
    )
    stats = published_stats(source, key)
    policy = VLAAdapterFullPolicy(config).eval()
    policy.save_pretrained(folder)
    for pipeline in make_vla_adapter_full_pre_post_processors(config, stats):
        pipeline.save_pretrained(folder)
    return policy
