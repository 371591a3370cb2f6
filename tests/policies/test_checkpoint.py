"""Saving and loading a policy: everything fits, or an error says what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from policies import CheckpointMismatchError, VLAAdapterPolicy

WEIGHTS = "model.safetensors"


@pytest.fixture
def saved(policy: VLAAdapterPolicy, tmp_path: Path) -> Path:
    policy.save_pretrained(tmp_path)
    return tmp_path


def _edit(folder: Path, change: Any) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    change(state)
    safetensors.torch.save_file(state, folder / WEIGHTS)


def test_loaded_policy_predicts_bit_for_bit_the_same(
    policy: VLAAdapterPolicy, saved: Path, batch: dict[str, Any]
) -> None:
    loaded = VLAAdapterPolicy.from_pretrained(saved)
    assert torch.equal(loaded.predict_action_chunk(batch), policy.predict_action_chunk(batch))
    assert loaded.config.fingerprints == policy.fingerprints
    assert loaded.config.views == policy.config.views


def test_checkpoint_holds_no_frozen_weights(policy: VLAAdapterPolicy, saved: Path) -> None:
    stored = safetensors.torch.load_file(saved / WEIGHTS)
    assert stored.keys() == dict(policy.named_parameters()).keys()
    assert (saved / WEIGHTS).stat().st_size < 12e6


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("model.action_head.fc2.bias"), "missing model.action_head.fc2.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"model.queries": torch.zeros(1, 9, 128)}), r"shape \(1, 9, 128\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved: Path, change: Any, complaint: str) -> None:
    _edit(saved, change)
    with pytest.raises(CheckpointMismatchError, match=complaint):
        VLAAdapterPolicy.from_pretrained(saved)


def test_missing_or_truncated_weights_are_refused(saved: Path) -> None:
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointMismatchError, match="is not a readable safetensors file"):
        VLAAdapterPolicy.from_pretrained(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        VLAAdapterPolicy.from_pretrained(saved)


def test_checkpoint_of_other_frozen_encoders_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["fingerprints"]["text_encoder"] = "minilm_l6_v2/other"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match="text_encoder 'minilm_l6_v2/other'"):
        VLAAdapterPolicy.from_pretrained(saved)


def test_image_size_of_a_checkpoint_cannot_be_changed_unnoticed(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["image_size"] = 224
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match="128px"):
        VLAAdapterPolicy.from_pretrained(saved)
