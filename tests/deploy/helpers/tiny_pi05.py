"""lerobot's pi05 with a thousandth of its weights, and a tokenizer that needs no hub.

The code that runs is lerobot's; only sizes that it has written down as constants are smaller.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

VOCABULARY = 320


def _small(config: Any) -> Any:
    """The vision tower and the vocabulary of a PaliGemma configuration, in small."""
    vision, text = config.vision_config, config.text_config
    vision.num_hidden_layers, vision.num_attention_heads = 1, 2
    vision.hidden_size, vision.intermediate_size = 16, 32
    vision.projection_dim = text.hidden_size
    config.projection_dim = text.hidden_size
    text.vocab_size = VOCABULARY
    config.image_token_index = config._vocab_size = VOCABULARY - 1
    return config


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make lerobot build tiny pi05 policies from now on."""
    from lerobot.policies.pi05 import modeling_pi05 as module

    whole = module.PaliGemmaForConditionalGenerationWithPiGemma
    monkeypatch.setattr(
        module,
        "PaliGemmaForConditionalGenerationWithPiGemma",
        lambda config: whole(config=_small(config)),
    )
    monkeypatch.setattr(
        module,
        "get_gemma_config",
        lambda variant: module.GemmaConfig(
            width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16
        ),
    )


def save_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer in the format of the hub."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    return folder


def save_checkpoint(
    folder: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Path:
    """A pi05 checkpoint for DROID as lerobot writes it, which names the hub's tokenizer."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.pi05 import processor_pi05
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy

    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 56, 56))
    config = PI05Config(
        device="cpu",
        chunk_size=15,
        n_action_steps=15,
        num_inference_steps=2,
        image_resolution=(56, 56),
        tokenizer_max_length=96,
        input_features={
            "observation.images.base_0_rgb": image,
            "observation.images.left_wrist_0_rgb": image,
            "observation.images.right_wrist_0_rgb": image,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(8,))},
        **changes,
    )
    torch.manual_seed(0)
    PI05Policy(config).save_pretrained(folder)
    step = processor_pi05.TokenizerProcessorStep
    monkeypatch.setattr(
        processor_pi05,
        "TokenizerProcessorStep",
        lambda tokenizer_name, **given: step(tokenizer_name=str(tokenizer), **given),
    )
    rng = np.random.default_rng(0)
    low, high = -rng.uniform(0.5, 1, 8), rng.uniform(0.5, 1, 8)
    stats = {
        key: {"q01": torch.tensor(low).float(), "q99": torch.tensor(high).float()}
        for key in ("observation.state", "action")
    }
    for processor in processor_pi05.make_pi05_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    monkeypatch.setattr(processor_pi05, "TokenizerProcessorStep", step)
    file = folder / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    for entry in pipeline["steps"]:
        if entry.get("registry_name") == "tokenizer_processor":
            entry["config"]["tokenizer_name"] = "google/paligemma-3b-pt-224"
    file.write_text(json.dumps(pipeline))
    return folder
