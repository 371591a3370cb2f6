"""How much memory a forward and a backward pass need, found out without memory or weights.

The policy runs on fake tensors: they have shapes, types and the device of real ones, and no
numbers. So torch chooses the operations it would choose on a CPU, gradient checkpointing and
autocast included, and what they return is counted while it lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call

from policies._pretrained import PromptTokenizer
from policies.text import TextFeatures
from vla_opt._live_bytes import LiveBytes
from vla_opt._policy import PolicyError
from vla_opt.config import TrainConfig

_TASK = "pick up the alphabet soup and place it in the basket"  # an instruction of usual length
_LETTERS_PER_TOKEN = 4  # of English text, with any usual vocabulary
_CPU = torch.device("cpu")
_ITEM = torch.ops.aten._local_scalar_dense.default
_PICKING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


def working_bytes(policy: nn.Module, config: TrainConfig) -> int:
    """Bytes that one forward and backward pass holds beside the weights, at their most.

    That is the batch, what is kept for the backward pass, what operations return on the way, and
    gradients as they come. Buffers inside kernels and the allocator's losses are not in it.

    Args:
        policy: On the meta device; its tokenizer and text encoder are replaced by guesses.
        config: Of the run: batch size, precision, whether features are cached.

    Raises:
        PolicyError: The policy cannot run on shapes alone, because what it does depends on numbers.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    step = _Step(policy)
    weights = {
        name: _fake(mode, tensor).requires_grad_(tensor.requires_grad)
        for name, tensor in [*step.named_parameters(), *step.named_buffers()]
    }
    batch = {
        key: _fake(mode, value) if isinstance(value, Tensor) else value
        for key, value in _batch(policy, config).items()
    }
    _guess_words(policy)
    inputs = [value for value in batch.values() if isinstance(value, Tensor)]
    held = sum({t.untyped_storage()._cdata: _bytes(t) for t in weights.values()}.values())
    live = _ShapesOnly([*weights.values(), *inputs])
    with torch.random.fork_rng(devices=()), live:
        try:
            functional_call(step, weights, (batch, _autocast(config)))
        except Exception as error:  # whatever a policy of another author raises here
            raise PolicyError(
                f"'{config.policy.type}' cannot run on shapes alone: {error!r}"
            ) from error
    return live.peak - held


class _Step(nn.Module):
    """Forward and backward in one call: checkpointed layers run again in the latter."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: dict[str, Any], precision: AbstractContextManager[Any]) -> None:
        with precision:
            loss, _ = self.policy(batch)
        loss.backward()


class _ShapesOnly(LiveBytes):
    """Lets real and fake tensors meet; a number asked of a fake one is 0.

    Masks and positions that a policy makes itself are real. A real mask that picks from a fake
    tensor says how much, but as a fake one it could not.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ITEM and isinstance(args[0], FakeTensor):
            return torch.empty((), dtype=args[0].dtype).zero_().tolist()
        if func.overloadpacket in _PICKING:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        return super().__torch_dispatch__(func, types, args, kwargs)


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    """An index as whole numbers: a real mask becomes the places where it is true."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return (index,)
    return index.nonzero(as_tuple=True)


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    converter: Any = mode.fake_tensor_converter
    found: Tensor = converter.from_meta_and_device(mode, meta, _CPU)
    return found


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _autocast(config: TrainConfig) -> AbstractContextManager[Any]:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(config.mixed_precision)
    return torch.autocast("cpu", kind) if kind else nullcontext()


def _batch(policy: Any, config: TrainConfig) -> dict[str, Any]:
    """A batch as the pre-processor hands it over, on the meta device."""
    wanted: PreTrainedConfig = policy.config
    size, past = config.batch_size, wanted.observation_delta_indices
    rows = (size,) if past is None else (size, len(past))
    steps = len(wanted.action_delta_indices or [0])
    assert wanted.action_feature is not None

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    batch: dict[str, Any] = {
        "action": empty(size, steps, *wanted.action_feature.shape),
        "action_is_pad": empty(size, steps, dtype=torch.bool),
        "task": [_TASK] * size,
    }
    if wanted.robot_state_feature is not None:
        batch["observation.state"] = empty(*rows, *wanted.robot_state_feature.shape)
    features = getattr(policy, "features_shape", None)
    if features is not None and config.data.cache_features:
        batch["observation.features"] = empty(size, *features, dtype=torch.float16)
    else:
        for key, feature in wanted.image_features.items():
            batch[key] = empty(*rows, *feature.shape)
    tokens = getattr(wanted, "tokenizer_max_length", None)
    if tokens is not None:
        batch["observation.language.tokens"] = empty(size, tokens, dtype=torch.long)
        batch["observation.language.attention_mask"] = empty(size, tokens, dtype=torch.bool)
    return batch


def _guess_words(policy: Any) -> None:
    """Replace what reads files to make tokens of words."""
    for value in vars(policy).values():
        if isinstance(value, PromptTokenizer):
            tokenizer: Any = value
            tokenizer.ids = _guessed_ids
    model: Any = getattr(policy, "model", None)
    if hasattr(model, "text_encoder"):
        model.text_encoder = _GuessedText(model.text_encoder.channels)


def _guessed_ids(text: str) -> tuple[int, ...]:
    return (0,) * -(-len(text) // _LETTERS_PER_TOKEN)


class _GuessedText:
    """A `policies.text.TextEncoder` without a model."""

    fingerprint = "guessed"

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, instructions: Sequence[str], device: torch.device) -> TextFeatures:
        rows, words = len(instructions), max(len(_guessed_ids(text)) for text in instructions)
        return TextFeatures(
            tokens=torch.zeros(rows, words, self.channels, device=device),
            mask=torch.ones(rows, words, dtype=torch.bool, device=device),
            pooled=torch.zeros(rows, self.channels, device=device),
        )
