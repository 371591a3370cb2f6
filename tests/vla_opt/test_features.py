"""Features are computed once, to the same bytes whatever happens in between."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_opt import features as features_module
from vla_opt.data import ChunkDataset, DataError, FrameCache, build_cache
from vla_opt.features import FeatureCache, build_feature_cache


class Encoder:
    """Means over 8x8 patches, and a count of how many frames it has seen."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.frames = 0
        self.fail_after = fail_after

    def __call__(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert images.dtype == torch.float32
        assert float(images.max()) <= 1.0
        if self.fail_after is not None and self.frames >= self.fail_after:
            raise KeyboardInterrupt
        self.frames += len(images)
        patches = torch.nn.functional.avg_pool2d(images.flatten(0, 1), 8)
        return patches.flatten(2).transpose(1, 2).unflatten(0, images.shape[:2])


def build(cache: FrameCache, path: Path, encode: Callable[[Tensor], Tensor], **options: Any) -> Any:
    arguments = {"fingerprint": "patches", "batch_size": 8, **options}
    return build_feature_cache(cache, encode, out_dir=path, **arguments)


def leftovers(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(autouse=True)
def sync_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_SYNC_EVERY", 2)


def test_features_are_what_the_encoder_gives(cache: FrameCache, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    features = build(cache, tmp_path / "f", Encoder(), on_frames=lambda *n: seen.append(n))
    assert features.values.shape == (70, 2, 16, 3)
    assert features.values.dtype == np.float16
    patches = cache.images.reshape(70, 2, 4, 8, 4, 8, 3).mean(axis=(3, 5)) / 255.0
    np.testing.assert_allclose(features.values, patches.reshape(70, 2, 16, 3), atol=1e-3)
    assert seen[0] == (8, 70)
    assert seen[-1] == (70, 70)
    features.verify()
    assert leftovers(tmp_path) == ["f"]


def test_features_are_not_computed_twice(cache: FrameCache, tmp_path: Path) -> None:
    build(cache, tmp_path / "f", Encoder())
    again = Encoder()
    build(cache, tmp_path / "f", again)
    build(cache, tmp_path / "f", again, batch_size=3)
    assert again.frames == 0


@pytest.mark.parametrize(
    "change", [{"fingerprint": "other"}, {"frame_stride": 2}], ids=["encoder", "stride"]
)
def test_other_features_replace_them(
    cache: FrameCache, tmp_path: Path, change: dict[str, Any]
) -> None:
    build(cache, tmp_path / "f", Encoder())
    encoder = Encoder()
    features = build(cache, tmp_path / "f", encoder, **change)
    assert encoder.frames == len(features)
    assert leftovers(tmp_path) == ["f"]


def test_features_of_other_frames_are_computed_again_and_never_mixed(
    cache: FrameCache, dataset: Path, tmp_path: Path
) -> None:
    features = build(cache, tmp_path / "f", Encoder())
    other = build_cache(dataset, tmp_path / "other", image_size=16)
    with pytest.raises(DataError, match="computed from other frames"):
        ChunkDataset(other, 8, features=features)
    encoder = Encoder()
    build(other, tmp_path / "f", encoder)
    assert encoder.frames == 70


def test_interrupted_computation_goes_on_to_the_same_bytes(
    cache: FrameCache, tmp_path: Path
) -> None:
    whole = build(cache, tmp_path / "whole", Encoder())
    for fail_after in (24, 16):
        with pytest.raises(KeyboardInterrupt):
            build(cache, tmp_path / "f", Encoder(fail_after))
        assert not (tmp_path / "f").exists()
    last = Encoder()
    features = build(cache, tmp_path / "f", last)
    assert last.frames == 70 - 32  # 16 were kept of the first 24, and 16 more of the next
    assert (features.path / "features.npy").read_bytes() == (
        whole.path / "features.npy"
    ).read_bytes()
    assert leftovers(tmp_path) == ["f", "whole"]


def test_leftovers_of_another_job_are_not_continued(cache: FrameCache, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(cache, tmp_path / "f", Encoder(fail_after=24))
    encoder = Encoder()
    build(cache, tmp_path / "f", encoder, fingerprint="other")
    assert encoder.frames == 70


KILLED = """
import os, signal, sys, torch
from vla_opt import features
from vla_opt.data import FrameCache
features._SYNC_EVERY = 2
calls = 0
def encode(images):
    global calls
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return images.flatten(3).transpose(2, 3)[:, :, :4].contiguous()
features.build_feature_cache(FrameCache(sys.argv[1]), encode, "e", sys.argv[2], batch_size=8)
"""


def test_killed_computation_goes_on(cache: FrameCache, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(cache.path), str(tmp_path / "f")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert leftovers(tmp_path) == [".f.lock", ".f.partial"]
    seen = []

    def encode(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.flatten(3).transpose(2, 3)[:, :, :4].contiguous()

    features = build(cache, tmp_path / "f", encode, fingerprint="e")
    assert sum(seen) == 70 - 32
    pixels = cache.images.reshape(70, 2, -1, 3)[:, :, :4] / 255.0
    np.testing.assert_allclose(features.values, pixels, atol=1e-3)
    features.verify()
    assert leftovers(tmp_path) == ["f"]


def test_stride_keeps_every_second_frame_of_each_episode(cache: FrameCache, tmp_path: Path) -> None:
    features = build(cache, tmp_path / "f", Encoder(), frame_stride=2)
    dataset = ChunkDataset(cache, 8, frame_stride=4, features=features)
    batch = dataset.to_policy_batch(dataset.collate([0, 6, 7]))  # rows 0, 23 (second episode), 27
    assert batch["index"].tolist() == [0, 23, 27]
    everything = build(cache, tmp_path / "all", Encoder())
    np.testing.assert_array_equal(batch["observation.features"], everything.values[[0, 23, 27]])
    assert "observation.images.image" not in batch
    with pytest.raises(DataError, match=r"cover every 2\. frame and lack 34 of 70 frames"):
        ChunkDataset(cache, 8, features=features)


@pytest.mark.parametrize("name", ["features.npy", "features.json"])
def test_truncated_features_are_computed_again(
    cache: FrameCache, tmp_path: Path, name: str
) -> None:
    build(cache, tmp_path / "f", Encoder())
    path = tmp_path / "f" / name
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(DataError, match="damaged"):
        FeatureCache(tmp_path / "f")
    encoder = Encoder()
    build(cache, tmp_path / "f", encoder).verify()
    assert encoder.frames == 70


def test_flipped_bit_is_found(cache: FrameCache, tmp_path: Path) -> None:
    features = build(cache, tmp_path / "f", Encoder())
    path = tmp_path / "f/features.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        features.verify()


def test_unfit_encoder_is_explained(cache: FrameCache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected .* \(n, V, T, C\) with n, V = \(8, 2\), got"):
        build(cache, tmp_path / "f", lambda images: images.flatten(0, 1))
    with pytest.raises(ValueError, match=r"frames 0\.\.7 do not fit fp16 \(largest \d{6}"):
        build(cache, tmp_path / "f", lambda images: images.flatten(3) * 1e6)
    with pytest.raises(DataError, match="holds no features"):
        FeatureCache(tmp_path / "f")
