"""A checkpoint is whole or not there; a damaged one is noticed and an older one used."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from vla_opt import checkpoint
from vla_opt._training_state import load_optimizer, save_optimizer
from vla_opt.checkpoint import CheckpointError


def filler(value: float) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "pretrained_model").mkdir()
        save_file({"w": torch.full((64,), value)}, folder / "pretrained_model/model.safetensors")
        (folder / "cursor.json").write_text(json.dumps({"value": value}))

    return fill


def test_checkpoint_verifies_and_names_every_file(tmp_path: Path) -> None:
    path = checkpoint.write_checkpoint(tmp_path, 600, filler(1.0))
    assert path.name == "000600"
    manifest = checkpoint.verify_checkpoint(path)
    assert manifest["step"] == 600
    assert sorted(manifest["files"]) == ["cursor.json", "pretrained_model/model.safetensors"]
    assert (tmp_path / "last").resolve() == path


def test_only_the_last_k_stay(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4_000_000):
        checkpoint.write_checkpoint(tmp_path, step, filler(step), keep_last=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["000030", "4000000"]
    assert sorted(os.listdir(tmp_path)) == ["000030", "4000000", "last"]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("pretrained_model/model.safetensors", truncate, "bytes, expected"),
        ("pretrained_model/model.safetensors", flip_a_bit, "content of .* has changed"),
        ("cursor.json", os.unlink, r"cursor\.json is missing"),
        ("manifest.json", truncate, "not JSON"),
        ("manifest.json", os.unlink, "no checkpoint of vla-opt"),
    ],
)
def test_damaged_checkpoint_is_set_aside_and_the_last_good_one_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], complaint: str
) -> None:
    good = checkpoint.write_checkpoint(tmp_path, 1, filler(1.0))
    bad = checkpoint.write_checkpoint(tmp_path, 2, filler(2.0))
    damage(bad / name)
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.verify_checkpoint(bad)
    found, [damaged] = checkpoint.latest_checkpoint(tmp_path)
    assert found == good
    assert damaged.path == bad
    assert bad.exists()  # whoever only looks changes nothing
    assert "000002.damaged" in checkpoint.set_aside(damaged)
    assert checkpoint.latest_checkpoint(tmp_path) == (good, [])
    assert checkpoint.verify_checkpoint(checkpoint.write_checkpoint(tmp_path, 2, filler(2.0)))


def test_full_disk_while_filling_leaves_nothing_of_the_checkpoint(tmp_path: Path) -> None:
    good = checkpoint.write_checkpoint(tmp_path, 1, filler(1.0))

    def fill(folder: Path) -> None:
        filler(2.0)(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write checkpoint .*000002.*Free space") as info:
        checkpoint.write_checkpoint(tmp_path, 2, fill)
    assert info.value.errno == errno.ENOSPC
    assert checkpoint.latest_checkpoint(tmp_path) == (good, [])
    assert sorted(os.listdir(tmp_path)) == ["000001", "last"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_full_disk_while_sealing_leaves_nothing_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    good = checkpoint.write_checkpoint(tmp_path, 1, filler(1.0))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="cannot write"):
        checkpoint.write_checkpoint(tmp_path, 2, filler(2.0), keep_last=1)
    monkeypatch.undo()
    assert checkpoint.latest_checkpoint(tmp_path) == (good, [])


def test_full_disk_reported_by_safetensors_is_told_as_one(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="Free space") as info:
        checkpoint.write_checkpoint(tmp_path, 2, fill)
    assert info.value.errno == errno.ENOSPC


def test_leftovers_of_a_killed_writer_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".tmp-000005-123").mkdir()
    filler(5.0)(tmp_path / ".tmp-000005-123")
    assert checkpoint.latest_checkpoint(tmp_path) == (None, [])
    checkpoint.clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def trained(kind: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "adagrad": torch.optim.Adagrad,
    }
    optimizer = optimizers[kind](model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adagrad"])
def test_optimizer_state_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    _, optimizer = trained(kind)
    save_optimizer(optimizer, tmp_path)
    _, fresh = trained(kind)
    for group in fresh.param_groups:
        group["lr"] = 123.0
    load_optimizer(fresh, tmp_path)
    before, after = optimizer.state_dict(), fresh.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for index, state in before["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(after["state"][index][key], value, rtol=0, atol=0)


def test_awkward_optimizer_state_survives(tmp_path: Path) -> None:
    _, optimizer = trained("sgd")
    parameter = optimizer.param_groups[0]["params"][0]
    shared = torch.arange(6.0).reshape(2, 3)
    optimizer.state[parameter] = {
        "momentum_buffer": shared,
        "same": shared,
        "transposed": torch.arange(6.0).reshape(3, 2).T,
        "nested": {"deep": torch.ones(2), "count": 3},
        "step": 7,
        "none": None,
    }
    save_optimizer(optimizer, tmp_path)
    _, fresh = trained("sgd")
    load_optimizer(fresh, tmp_path)
    state = fresh.state[fresh.param_groups[0]["params"][0]]
    assert state["step"] == 7
    assert state["none"] is None
    assert state["nested"]["count"] == 3
    for key in ("momentum_buffer", "same", "transposed"):
        assert torch.equal(state[key], optimizer.state[parameter][key])


def test_optimizer_with_other_groups_is_refused(tmp_path: Path) -> None:
    _, optimizer = trained("adamw")
    save_optimizer(optimizer, tmp_path)
    other = torch.optim.AdamW(torch.nn.Linear(3, 2, bias=False).parameters())
    with pytest.raises(CheckpointError, match=r"1 groups of \[2\].*AdamW.*1 of \[1\]"):
        load_optimizer(other, tmp_path)


@given(st.integers(0, 10**7))
@settings(max_examples=50)
def test_names_sort_as_steps(step: int) -> None:
    assert int(checkpoint.checkpoint_name(step)) == step
