"""Samples never mix episodes, and their order depends on seed, step and rank alone."""

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_opt.data import (
    ChunkDataset,
    ChunkLoader,
    DataError,
    Episode,
    FrameCache,
    build_cache,
    epoch_order,
    to_policy_batch,
    write_dataset,
)

STARTS = (0, 23, 40, 70)  # of the episodes of the sample data set

shared_cache = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(chunk=st.integers(1, 40), stride=st.integers(1, 9))
@shared_cache
def test_chunks_stay_within_their_episode(cache: FrameCache, chunk: int, stride: int) -> None:
    dataset = ChunkDataset(cache, chunk, stride)
    spans = list(itertools.pairwise(STARTS))
    expected_rows = [row for start, stop in spans for row in range(start, stop, stride)]
    assert dataset.rows.tolist() == expected_rows
    batch = dataset.collate(range(len(dataset)))
    for number, row in enumerate(expected_rows):
        stop = next(stop for start, stop in spans if start <= row < stop)
        ahead = np.arange(row, row + chunk)
        np.testing.assert_array_equal(batch["action_is_pad"][number], ahead >= stop)
        np.testing.assert_array_equal(
            batch["action"][number], cache.action[np.minimum(ahead, stop - 1)]
        )


def test_a_batch_is_its_samples(cache: FrameCache) -> None:
    dataset = ChunkDataset(cache, chunk_size=8)
    chosen = [69, 0, 22, 23, 0]
    batch = dataset.collate(chosen)
    assert batch["index"].tolist() == chosen
    for place, number in enumerate(chosen):
        sample = dataset[number]
        assert sample.keys() == batch.keys()
        for key, value in sample.items():
            same = value == batch[key][place]
            assert same if isinstance(same, bool) else same.all()
    np.testing.assert_array_equal(batch["images"], cache.images[chosen])
    np.testing.assert_array_equal(batch["state"], cache.state[chosen])
    assert batch["task"][2:4] == ["put the soup into the basket", "open the drawer"]
    assert dataset[-1]["index"] == 69
    with pytest.raises(IndexError):
        dataset[70]


def test_policy_batch_has_the_agreed_format(cache: FrameCache) -> None:
    dataset = ChunkDataset(cache, chunk_size=8)
    batch = dataset.to_policy_batch(dataset.collate([0, 5, 69]))
    for view, name in enumerate(("observation.images.image", "observation.images.image2")):
        images = batch[name]
        assert (images.dtype, tuple(images.shape)) == (torch.float32, (3, 3, 32, 32))
        expected = torch.from_numpy(cache.images[[0, 5, 69], view]).permute(0, 3, 1, 2) / 255.0
        torch.testing.assert_close(images, expected, rtol=0, atol=0)
    assert tuple(batch["observation.state"].shape) == (3, 8)
    assert tuple(batch["action"].shape) == (3, 8, 7)
    assert batch["action_is_pad"].dtype == torch.bool
    assert batch["action_is_pad"][2].tolist() == [False] + [True] * 7
    assert batch["task"][0] == "put the soup into the basket"
    with pytest.raises(ValueError, match=r"1 names \['a'\] for 2 views"):
        to_policy_batch(dataset.collate([0]), "cpu", ["a"])


def test_episodes_can_be_chosen(cache: FrameCache) -> None:
    assert ChunkDataset(cache, 4, episodes=[1]).rows.tolist() == list(range(23, 40))
    with pytest.raises(DataError, match=r"no episodes \[3\] .* which has 0\.\.2"):
        ChunkDataset(cache, 4, episodes=[1, 3])


@pytest.mark.parametrize("arguments", [(0, 1), (8, 0)])
def test_impossible_chunks_are_refused(cache: FrameCache, arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ChunkDataset(cache, *arguments)


# ------------------------------------------------------------------- the order


@given(
    seed=st.integers(0, 2**63), batch=st.integers(1, 11), world=st.integers(1, 6), epoch=st.just(3)
)
@shared_cache
def test_an_epoch_gives_no_sample_twice_on_any_rank(
    cache: FrameCache, seed: int, batch: int, world: int, epoch: int
) -> None:
    dataset = ChunkDataset(cache, 8)
    ranks = [
        ChunkLoader(dataset, batch, seed=seed, rank=rank, world_size=world) for rank in range(world)
    ]
    steps = ranks[0].steps_per_epoch
    seen = [
        i for s in range(epoch * steps, (epoch + 1) * steps) for r in ranks for i in r.indices(s)
    ]
    assert len(set(seen)) == len(seen) == 70 // (batch * world) * batch * world


def test_ranks_share_the_batch_of_a_single_process(cache: FrameCache) -> None:
    dataset = ChunkDataset(cache, 8)
    alone = ChunkLoader(dataset, 12, seed=7)
    ranks = [ChunkLoader(dataset, 4, seed=7, rank=r, world_size=3) for r in range(3)]
    for step in (0, 3, 4, 5, 17):
        together = np.concatenate([rank.indices(step) for rank in ranks])
        np.testing.assert_array_equal(together, alone.indices(step))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_order(10, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert epoch_order(50, seed=-1, epoch=0).max() == 49


def test_a_step_is_the_same_whatever_was_asked_before(cache: FrameCache) -> None:
    dataset = ChunkDataset(cache, 8)
    forward = ChunkLoader(dataset, 16, seed=3)
    batches = [forward.indices(step).copy() for step in range(20)]
    backward = ChunkLoader(dataset, 16, seed=3)
    for step in reversed(range(20)):
        np.testing.assert_array_equal(backward.indices(step), batches[step])


def test_a_resumed_loader_goes_on_where_it_stopped(cache: FrameCache) -> None:
    dataset = ChunkDataset(cache, 8)
    whole = ChunkLoader(dataset, 16, seed=3)
    expected = [next(whole)["index"].tolist() for _ in range(9)]
    first = ChunkLoader(dataset, 16, seed=3)
    start = [next(first)["index"].tolist() for _ in range(5)]
    second = ChunkLoader(dataset, 16, seed=3)
    second.load_state_dict(first.state_dict())
    iterator = iter(second)
    assert start + [next(iterator)["index"].tolist() for _ in range(4)] == expected
    assert second.step == 9


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 4}, "seed 3 -> 4"),
    "batch size": ({"batch_size": 8}, "batch_size 16 -> 8"),
    "ranks": ({"world_size": 2}, "world_size 1 -> 2"),
}


@pytest.mark.parametrize(("change", "message"), CHANGED.values(), ids=CHANGED.keys())
def test_another_order_is_not_continued(
    cache: FrameCache, change: dict[str, Any], message: str
) -> None:
    dataset = ChunkDataset(cache, 8)
    state = ChunkLoader(dataset, 16, seed=3, step=5).state_dict()
    other = ChunkLoader(dataset, **{"batch_size": 16, "seed": 3, **change})
    with pytest.raises(DataError, match=f"cannot continue.*{message}"):
        other.load_state_dict(state)
    fewer = ChunkLoader(ChunkDataset(cache, 8, frame_stride=2), 16, seed=3)
    with pytest.raises(DataError, match="samples 70 -> 36"):
        fewer.load_state_dict(state)


def test_loader_refuses_what_it_cannot_do(cache: FrameCache) -> None:
    dataset = ChunkDataset(cache, 8)
    with pytest.raises(ValueError, match="rank=2, world_size=2"):
        ChunkLoader(dataset, 4, seed=0, rank=2, world_size=2)
    with pytest.raises(DataError, match="70 samples do not fill one step of 2 x 36"):
        ChunkLoader(dataset, 36, seed=0, world_size=2)


# -------------------------------------------------------------------- the price


def test_a_sample_costs_less_than_a_millisecond(tmp_path: Any) -> None:
    """Two views of 128 px and a chunk of 8, gathered and made float: at most 1 ms of CPU."""
    rng = np.random.default_rng(0)
    frames = {k: rng.integers(0, 256, (64, 128, 128, 3), dtype=np.uint8) for k in ("a", "b")}
    zeros = np.zeros((64, 8), np.float32)
    episode = Episode(frames=frames, state=zeros, action=zeros[:, :7], task="t")
    cache = build_cache(write_dataset([episode], tmp_path / "dataset"), tmp_path / "cache")
    dataset = ChunkDataset(cache, 8)
    loader = ChunkLoader(dataset, 32, seed=0)
    costs = []
    for step in range(10):
        start = time.process_time()
        dataset.to_policy_batch(loader.batch(step))
        costs.append((time.process_time() - start) / 32)
    assert np.median(costs) < 1e-3
