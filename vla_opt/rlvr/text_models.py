"""Language models to train: a checkpoint, or a small random one with a tokenizer of characters.

The small one is Qwen3's architecture as transformers has it, so that everything of the large run
is exercised: grouped queries, per-head rules, generation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vla_opt.errors import ConfigError

CHARACTERS = "0123456789+-*/=() abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class SmallModelConfig:
    """Sizes of a random model.

    Attributes:
        hidden_size: width of the residual stream.
        layers: number of blocks.
        heads: of queries.
        kv_heads: of keys and values.
        head_size: of each head.
        mlp_size: inner width of the feed-forward layers.
        characters: what the tokenizer knows, one token each.
    """

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 16
    mlp_size: int = 128
    characters: str = CHARACTERS

    def __post_init__(self) -> None:
        """Check the values."""
        if self.heads % max(1, self.kv_heads):
            raise ValueError(
                f"model.small: heads={self.heads}, kv_heads={self.kv_heads}: expected a multiple."
            )
        if len(set(self.characters)) != len(self.characters) or not self.characters:
            raise ValueError("model.small.characters: expected each character once.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained.

    Attributes:
        path: folder or hub name of a causal language model; a random small one if not given.
        small: sizes of that one.
        dtype: of the weights; the optimizer keeps float32 copies of 16-bit ones.
        gradient_checkpointing: compute activations twice instead of keeping them.
        attention: implementation, such as "sdpa" or "flash_attention_2"; transformers' choice if
            not given.
    """

    path: str | None = None
    small: SmallModelConfig = SmallModelConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    attention: str | None = None


def build_model(config: ModelConfig) -> tuple[Any, Any]:
    """The model and its tokenizer, padding on the left as generation needs it.

    A random model is drawn from torch's global generator.

    Raises:
        ConfigError: the checkpoint cannot be loaded; names it and what to do.
    """
    if config.path is None:
        return small_model(config.small), character_tokenizer(config.small.characters)
    return load_model(config.path, config)


def load_model(path: str | Path, config: ModelConfig) -> tuple[Any, Any]:
    """Load a checkpoint with its tokenizer; see `build_model`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {} if config.attention is None else {"attn_implementation": config.attention}
    dtype = getattr(torch, config.dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path={str(path)!r} cannot be loaded: {str(error).splitlines()[0]} Give a "
            "folder with a model and its tokenizer, or a hub name that is in the local cache or "
            "can be reached (HF_HUB_OFFLINE unset)."
        ) from error
    return model, tokenizer


def small_model(config: SmallModelConfig) -> Any:
    """A random Qwen3 that knows nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = AutoConfig.for_model(
        "qwen3",
        vocab_size=len(config.characters) + len(_SPECIAL),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_size,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=_SPECIAL.index("<pad>"),
        eos_token_id=_SPECIAL.index("<eos>"),
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(sizes)


_SPECIAL = ("<pad>", "<eos>", "<unk>")


def character_tokenizer(characters: str = CHARACTERS) -> Any:
    """A tokenizer with one token per character, built here: no file, no hub.

    >>> character_tokenizer("01+=")("1+0=")["input_ids"]
    [4, 5, 3, 6]
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    words = {token: i for i, token in enumerate((*_SPECIAL, *characters))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    kind: Any = PreTrainedTokenizerFast
    return kind(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
