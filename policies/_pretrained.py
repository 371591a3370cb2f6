"""What pretrained language models need: hidden states, tokens of a prompt, adapters, errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from policies._chunk_policy import check_state


class PretrainedFileError(RuntimeError):
    """A pretrained file or tokenizer cannot be found, or is not what it should be."""


def hidden_states(layers: nn.ModuleList, run: Callable[[], Tensor]) -> list[Tensor]:
    """The input of every layer of a model while ``run`` runs, and then its result.

    Unlike transformers' own recording it includes what is added between layers, as Qwen3-VL does
    with features of the vision tower.

    Args:
        layers: called once each, in order, with the hidden state first.
        run: calls the model and returns its last hidden state (B, S, W).

    Returns:
        len(layers) + 1 tensors (B, S, W).
    """
    states: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        states.append(run())
    finally:
        for handle in handles:
            handle.remove()
    return states


class PromptTokenizer:
    """Token ids of prompts, each computed once.

    Args:
        name: a folder with tokenizer files, or a hub name whose files are in the local cache or
            can be downloaded. Loaded when first used.

    Raises:
        PretrainedFileError: from `ids`, when there is no such tokenizer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ids = functools.lru_cache(maxsize=4096)(self._ids)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            raise tokenizer_error(self.name, error) from error

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)


def tokenizer_error(name: str, error: Exception) -> PretrainedFileError:
    """The error to raise when transformers finds no tokenizer ``name``."""
    return PretrainedFileError(
        f"no tokenizer '{name}': it is neither a folder with tokenizer files nor in the hub's "
        "cache, and cannot be downloaded. Give a folder with --policy.tokenizer=/path, or run "
        f"`hf download {name}` where there is a network. ({error})"
    )


def pad_ids(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids as one tensor (B, N), padded with 0 on the right, and the mask of real ones."""
    longest = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows], device=device)
    padded = [[*row, *[0] * (longest - len(row))] for row in rows]
    ids = torch.tensor(padded, dtype=torch.long, device=device)
    return ids, torch.arange(longest, device=device) < lengths[:, None]


def centre_crop(images: Tensor, share: float) -> Tensor:
    """The middle of images (..., H, W): ``share`` of each side.

    Raises:
        ValueError: a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"centre_crop is {share}, must be in (0, 1]")
    height, width = (round(side * share) for side in images.shape[-2:])
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def add_lora(model: nn.Module, pattern: str, rank: int, alpha: int, trained: str) -> None:
    """Put low-rank adapters on linear layers, and train these instead of the layers.

    Args:
        model: changed in place.
        pattern: regular expression that the full name of a layer must match.
        rank: of the adapters. alpha: their scale times the rank.
        trained: regular expression; parameters whose name it matches are trained as a whole.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern, bias="none"), model
    )
    for name, parameter in model.named_parameters():
        if re.search(trained, name):
            parameter.requires_grad_(True)


def locate(source: str, patterns: Sequence[str]) -> Path:
    """The folder of a checkpoint given by path or hub name; downloads only what is asked for.

    Raises:
        PretrainedFileError: neither a folder nor to be had from the hub.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise PretrainedFileError(
            f"no checkpoint '{source}': it is neither a folder here nor in the hub's cache, and "
            f"cannot be downloaded. Run `hf download {source}` where there is a network and give "
            f"the folder. ({error})"
        ) from error


def read_safetensors(source: str) -> dict[str, Tensor]:
    """All weights of a checkpoint in transformers' layout, one file or several.

    Args:
        source: folder or hub name.

    Raises:
        PretrainedFileError: no such checkpoint, or a damaged one.
    """
    folder = locate(source, ("*.safetensors",))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PretrainedFileError(f"{folder} holds no *.safetensors")
    try:
        return {k: v for file in files for k, v in safetensors.torch.load_file(file).items()}
    except safetensors.SafetensorError as error:
        raise PretrainedFileError(f"{folder} holds a damaged safetensors file: {error}") from error


def load_into(model: nn.Module, weights: Mapping[str, Tensor], parts: str, source: str) -> None:
    """Load the parts of a model whose names match, all of them or none.

    Args:
        model: changed in place.
        weights: under the model's names.
        parts: regular expression for the names that must all be loaded.
        source: for the message.

    Raises:
        CheckpointMismatchError: weights are missing, left over or of another shape.
    """
    own = {k: v for k, v in model.state_dict().items() if re.match(parts, k)}
    given = {k: v for k, v in weights.items() if re.match(parts, k)}
    check_state(own, given, source)
    model.load_state_dict(given, strict=False)
