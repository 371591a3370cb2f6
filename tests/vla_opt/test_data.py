"""Data sets and caches: right to the pixel, whole or absent, rebuilt when they are damaged."""

import contextlib
import dataclasses
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from vla_opt import _cache_build, _lerobot_write
from vla_opt.data import DataError, Episode, FrameCache, build_cache, write_dataset

MakeEpisode = Callable[..., Episode]

NAMES = ("observation.images.image", "observation.images.image2")


def leftovers(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def psnr(reference: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Per frame, dB."""
    error = ((reference.astype(np.float64) - other) ** 2).mean(axis=(1, 2, 3))
    return np.asarray(10.0 * np.log10(255.0**2 / np.maximum(error, 1e-10)))


def open_with_lerobot(root: Path, backend: str = "pyav") -> Any:
    from lerobot.datasets import LeRobotDataset

    chunk = {"action": [i / 20 for i in range(8)]}
    return LeRobotDataset(
        "local/sample", root=root, delta_timestamps=chunk, video_backend=backend, return_uint8=True
    )


@pytest.fixture(params=["pyav", "torchcodec"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            pytest.skip(f"torchcodec does not load here: {str(error).splitlines()[0]}")
    return str(request.param)


# ---------------------------------------------------------------- the data set


def test_stock_lerobot_reads_what_was_written(
    dataset: Path, cache: FrameCache, make_episode: MakeEpisode, backend: str
) -> None:
    stock = open_with_lerobot(dataset, backend)
    assert (stock.num_episodes, len(stock), stock.fps) == (3, 70, 20)
    assert stock.meta.robot_type == "panda"
    first_rows = {0: 0, 1: 23, 2: 40}
    for number, start in first_rows.items():
        episode = make_episode(number)
        for frame in (0, len(episode) // 2, len(episode) - 1):
            item, row = stock[start + frame], start + frame
            assert item["task"] == episode.task
            assert (int(item["episode_index"]), int(item["frame_index"])) == (number, frame)
            np.testing.assert_array_equal(item["observation.state"], episode.state[frame])
            ahead = np.minimum(frame + np.arange(8), len(episode) - 1)
            np.testing.assert_array_equal(item["action"], episode.action[ahead])
            assert item["action_is_pad"].tolist() == (frame + np.arange(8) >= len(episode)).tolist()
            for view, name in enumerate(NAMES):
                decoded = item[name].permute(1, 2, 0).numpy()
                difference = np.abs(decoded.astype(int) - cache.images[row, view])
                assert difference.max() <= (0 if backend == "pyav" else 2)


def test_video_is_visually_lossless(tmp_path: Path, make_episode: MakeEpisode) -> None:
    """Where lerobot's default encoder is far off: colours of objects a few pixels wide."""
    from lerobot.configs import RGBEncoderConfig

    episode = make_episode(2, size=128)
    quality = {}
    for name, encoder in (("ours", None), ("lerobot", RGBEncoderConfig())):
        root = write_dataset([episode], tmp_path / name, encoder=encoder)
        images = build_cache(root, tmp_path / f"{name}-cache").images
        decibel = [psnr(episode.frames[k], images[:, v]) for v, k in enumerate(episode.frames)]
        quality[name] = min(d.min() for d in decibel)
    assert quality["ours"] > 42
    assert quality["lerobot"] < quality["ours"] - 8


def test_same_episodes_give_the_same_bytes(
    dataset: Path, tmp_path: Path, make_episode: MakeEpisode
) -> None:
    root = write_dataset(map(make_episode, range(3)), tmp_path / "again", robot_type="panda")
    files = [p.relative_to(root) for p in root.rglob("*") if p.is_file()]
    assert files
    assert all((root / f).read_bytes() == (dataset / f).read_bytes() for f in files)


def test_long_datasets_are_cut_into_files(
    tmp_path: Path, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lerobot_write, "FRAMES_PER_FILE", 45)  # 23 + 17 | 30
    root = write_dataset(map(make_episode, range(3)), tmp_path / "dataset")
    assert len(list(root.glob("videos/*/*/*.mp4"))) == 2 * 2
    assert len(list(root.glob("data/*/*.parquet"))) == 2
    cache, stock = build_cache(root, tmp_path / "cache"), open_with_lerobot(root)
    for row in (22, 23, 39, 40, 69):
        decoded = stock[row][NAMES[1]].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(decoded, cache.images[row, 1])
        np.testing.assert_array_equal(stock[row]["observation.state"], cache.state[row])
    assert psnr(make_episode(2).frames["image"], cache.images[40:, 0]).min() > 40


def test_lerobots_tools_accept_the_dataset(dataset: Path, tmp_path: Path) -> None:
    from lerobot.datasets import delete_episodes

    shorter = delete_episodes(open_with_lerobot(dataset), [1], output_dir=tmp_path / "shorter")
    cache = build_cache(shorter.root, tmp_path / "cache")
    whole = build_cache(dataset, tmp_path / "whole")
    assert np.diff(cache.episode_starts).tolist() == [23, 30]
    np.testing.assert_array_equal(cache.action[23:], whole.action[40:])
    assert psnr(np.asarray(whole.images[40:, 0]), np.asarray(cache.images[23:, 0])).min() > 30


def test_files_for_the_meta_folder_come_along(tmp_path: Path, make_episode: MakeEpisode) -> None:
    root = write_dataset([make_episode(1)], tmp_path / "d", meta_files={"spec.json": {"hz": 20}})
    assert (root / "meta/spec.json").read_text() == '{\n  "hz": 20\n}\n'


def test_encoders_do_not_chatter(
    tmp_path: Path, make_episode: MakeEpisode, capfd: pytest.CaptureFixture[str]
) -> None:
    write_dataset([make_episode(1)], tmp_path / "first")  # lerobot turns the chatter on
    capfd.readouterr()
    write_dataset([make_episode(1)], tmp_path / "second")
    assert "libx264" not in capfd.readouterr().err


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "no frames": (
        {"state": np.zeros((0, 8)), "action": np.zeros((0, 7))},
        "episode 1 has no frames",
    ),
    "no instruction": ({"task": " "}, "episode 1 has no instruction"),
    "lost a state": ({"state": np.zeros((16, 8))}, r"expected state \(17, D\), got \(16, 8\)"),
    "nan": ({"action": np.full((17, 7), np.nan)}, "action is not finite at frame 0"),
    "float pictures": (
        {"frames": {"image": np.zeros((17, 32, 32, 3)), "image2": np.zeros((17, 32, 32, 3))}},
        r"camera 'image' \(T, H, W, 3\) uint8, got .* float64",
    ),
    "lost a picture": (
        {"frames": {k: np.zeros((9, 32, 32, 3), np.uint8) for k in ("image", "image2")}},
        "camera 'image' has 9 frames for 17 actions",
    ),
    "other camera": ({"frames": {"wrist": np.zeros((17, 32, 32, 3), np.uint8)}}, "the first one"),
    "other state": ({"state": np.zeros((17, 9), np.float32)}, "the first one is"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_malformed_episode_is_named_and_nothing_is_written(
    tmp_path: Path, make_episode: MakeEpisode, change: dict[str, Any], message: str
) -> None:
    bad = dataclasses.replace(make_episode(1), **change)
    with pytest.raises(DataError, match=message):
        write_dataset([make_episode(0), bad], tmp_path / "dataset")
    assert leftovers(tmp_path) == []


def test_wrong_arguments_are_explained(tmp_path: Path, make_episode: MakeEpisode) -> None:
    with pytest.raises(DataError, match="there are no episodes"):
        write_dataset([], tmp_path / "d")
    with pytest.raises(DataError, match="expected pictures of 128x128, the first episode has 32"):
        write_dataset([make_episode(0)], tmp_path / "d", image_size=128)
    with pytest.raises(DataError, match="expected 7 names for the action's dimensions"):
        write_dataset([make_episode(0)], tmp_path / "d", action_names=["a", "b"])
    (tmp_path / "d").mkdir()
    (tmp_path / "d/precious").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        write_dataset([make_episode(0)], tmp_path / "d")
    assert leftovers(tmp_path) == ["d"]
    assert leftovers(tmp_path / "d") == ["precious"]


def test_interrupted_source_leaves_nothing(tmp_path: Path, make_episode: MakeEpisode) -> None:
    def source() -> Iterator[Episode]:
        yield make_episode(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(source(), tmp_path / "dataset")
    assert leftovers(tmp_path) == []


WRITER = """
import sys, numpy as np
from pathlib import Path
from vla_opt.data import Episode, write_dataset, build_cache
target, root = Path(sys.argv[1]), sys.argv[2]
noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
zeros = np.zeros((20, 7), np.float32)
def source():
    while True:
        yield Episode(frames={"image": noise}, state=zeros, action=zeros, task="t")
def tell(*_):
    print("writing", flush=True)
if root:
    build_cache(root, target, on_frames=tell)
else:
    write_dataset(source(), target, on_episode=tell)
"""


def start_writer(target: Path, root: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(target), root]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)


@contextlib.contextmanager
def full_disk_after(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: fails like a full disk, in the middle of a write."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_killed_writer_leaves_nothing_that_looks_valid(
    tmp_path: Path, make_episode: MakeEpisode
) -> None:
    target = tmp_path / "dataset"
    writer = start_writer(target)
    assert writer.stdout is not None
    assert [writer.stdout.readline() for _ in range(3)] == ["writing\n"] * 3
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert leftovers(tmp_path) == [".dataset.lock", ".dataset.tmp"]
    write_dataset([make_episode(1)], target)  # is not in its way, and is cleaned up
    assert leftovers(tmp_path) == ["dataset"]
    assert len(open_with_lerobot(target)) == 17


@pytest.mark.parametrize("size", [60_000, 3_000])
def test_full_disk_is_an_error_and_leaves_no_dataset(
    tmp_path: Path, make_episode: MakeEpisode, size: int
) -> None:
    with full_disk_after(size), pytest.raises(OSError, match=f"cannot write {tmp_path / 'd'}"):
        write_dataset(map(make_episode, range(9)), tmp_path / "d")
    assert leftovers(tmp_path) == []


# ------------------------------------------------------------------- the cache


def test_cache_holds_the_dataset(cache: FrameCache, make_episode: MakeEpisode) -> None:
    assert cache.images.shape == (70, 2, 32, 32, 3)
    assert cache.camera_keys == NAMES
    assert cache.episode_starts.tolist() == [0, 23, 40, 70]
    assert cache.tasks == ("put the soup into the basket", "open the drawer")
    assert [m["seed"] for m in cache.episode_meta] == [1000, 1001, 1002]
    assert cache.fps == 20
    for number, start in enumerate((0, 23, 40)):
        episode = make_episode(number)
        rows = slice(start, start + len(episode))
        np.testing.assert_array_equal(cache.state[rows], episode.state)
        np.testing.assert_array_equal(cache.action[rows], episode.action)
        assert (cache.episode_index[rows] == number).all()
        np.testing.assert_array_equal(cache.frame_index[rows], np.arange(len(episode)))
        assert cache.tasks[cache.task_index[start]] == episode.task
        for view, frames in enumerate(episode.frames.values()):
            assert psnr(frames, cache.images[rows, view]).min() > 40
    pixels = cache.images[:, 1].reshape(-1, 3) / 255.0
    np.testing.assert_allclose(
        cache.stats[NAMES[1]]["q99"].ravel(), np.quantile(pixels, 0.99, 0), atol=1e-12
    )
    q01 = np.quantile(cache.action.astype(np.float64), 0.01, axis=0)
    np.testing.assert_array_equal(cache.stats["action"]["q01"], q01)
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 0


def test_cache_becomes_a_dataset_again(cache: FrameCache, tmp_path: Path) -> None:
    again = build_cache(cache.to_lerobot(tmp_path / "back"), tmp_path / "cache")
    np.testing.assert_array_equal(again.state, cache.state)
    np.testing.assert_array_equal(again.action, cache.action)
    assert again.tasks == cache.tasks
    assert again.episode_meta == cache.episode_meta
    assert again.state_names == cache.state_names
    assert psnr(np.asarray(cache.images[:, 0]), np.asarray(again.images[:, 0])).min() > 42


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A data set of one's own, whose cache is built beside it."""
    root = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    build_cache(root, tmp_path / "cache")
    return root


def built_again(root: Path, **options: Any) -> bool:
    """Whether opening the cache writes it."""
    target = root.parent / "cache"
    before = target.stat().st_ino
    calls: list[int] = []
    build_cache(root, target, on_frames=lambda done, _: calls.append(done), **options).verify()
    assert leftovers(root.parent) == ["cache", "dataset"]
    assert bool(calls) == (target.stat().st_ino != before)
    return bool(calls)


def test_whole_cache_is_not_built_again(copy: Path) -> None:
    assert not built_again(copy)
    (copy / "meta/stats.json").unlink()  # the cache has its own
    assert not built_again(copy)


def test_cache_follows_dataset_and_options(copy: Path, make_episode: MakeEpisode) -> None:
    assert built_again(copy, image_size=16)
    assert not built_again(copy, image_size=(16, 16))
    assert built_again(copy, cameras=NAMES[1:])
    shutil.rmtree(copy)
    write_dataset([make_episode(1)], copy)
    assert built_again(copy)
    assert len(FrameCache(copy.parent / "cache")) == 17


@pytest.mark.parametrize("name", ["images.npy", "state.npy", "cache.json"])
def test_truncated_cache_is_built_again(copy: Path, name: str) -> None:
    path = copy.parent / "cache" / name
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(DataError, match="damaged"):
        FrameCache(path.parent)
    assert built_again(copy)


@pytest.mark.parametrize("name", ["action.npy", "images.npy"])
def test_flipped_bit_is_found(copy: Path, name: str) -> None:
    path = copy.parent / "cache" / name
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        FrameCache(path.parent).verify()


def test_missing_cache_file_is_found(copy: Path) -> None:
    (copy.parent / "cache/task_index.npy").unlink()
    assert built_again(copy)
    with pytest.raises(DataError, match="holds no frame cache"):
        FrameCache(copy.parent / "nowhere")


def test_whole_cache_can_be_read_where_nothing_can_be_written(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache_build, "exclusive", lambda _: pytest.fail("wants to write"))
    assert len(build_cache(copy, copy.parent / "cache")) == 70


def test_cache_travels_to_another_process_as_its_path(cache: FrameCache) -> None:
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).images, cache.images)


def test_killed_cache_builder_leaves_nothing_that_looks_valid(copy: Path) -> None:
    target = copy.parent / "cache"
    shutil.rmtree(target)
    (copy.parent / ".cache.tmp").mkdir()
    (copy.parent / ".cache.tmp/cache.json").write_text("{}")
    builder = start_writer(target, str(copy))
    assert builder.stdout is not None
    builder.stdout.readline()
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert not target.exists() or len(FrameCache(target)) == 70
    build_cache(copy, target).verify()
    assert leftovers(copy.parent) == ["cache", "dataset"]


def test_full_disk_while_caching_is_an_error(dataset: Path, tmp_path: Path) -> None:
    target = tmp_path / "cache"
    with full_disk_after(200_000), pytest.raises(OSError, match=f"cannot write {target}"):
        build_cache(dataset, target)
    assert leftovers(tmp_path) == []


def test_cache_that_will_not_fit_is_refused_at_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"the frame cache .* needs 0 MB .* 0 MB are free"):
        build_cache(dataset, tmp_path / "cache")
    assert leftovers(tmp_path) == []


def test_processes_that_ask_at_once_build_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def slowly(*args: Any) -> None:
        time.sleep(0.3)
        built.append(args[1])
        original(*args)

    original = _cache_build._write_cache
    monkeypatch.setattr(_cache_build, "_write_cache", slowly)
    threads = [
        threading.Thread(target=build_cache, args=(dataset, tmp_path / "cache")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert leftovers(tmp_path) == ["cache"]


# ------------------------------------------------------- data sets from elsewhere


def test_dataset_of_stored_images_is_read_exactly(tmp_path: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    picture = {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (3,), "names": None}
    recorder = LeRobotDataset.create(
        "local/images",
        10,
        {"observation.images.front": picture, "observation.state": vector, "action": vector},
        tmp_path / "dataset",
        use_videos=False,
    )
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 24, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        zeros = np.zeros(3, np.float32)
        recorder.add_frame(
            {"observation.images.front": frame, "observation.state": zeros, "action": zeros}
            | {"task": "t"}
        )
        if number in (4, 11):
            recorder.save_episode()
    recorder.finalize()
    cache = build_cache(tmp_path / "dataset", tmp_path / "cache")
    np.testing.assert_array_equal(cache.images[:, 0], frames)
    assert cache.episode_starts.tolist() == [0, 5, 12]
    assert cache.fps == 10
    halved = build_cache(tmp_path / "dataset", tmp_path / "halved", image_size=(8, 12)).images
    mean = frames.reshape(12, 8, 2, 12, 2, 3).mean((2, 4))
    np.testing.assert_allclose(halved[:, 0], mean, atol=1.01)  # it rounds twice


def damage_version(root: Path) -> None:
    path = root / "meta/info.json"
    path.write_text(path.read_text().replace('"v3.0"', '"v2.1"'))


def damage_video(root: Path) -> None:
    path = next(root.glob("videos/*image2/*/*.mp4"))
    os.truncate(path, path.stat().st_size // 2)


def damage_table(root: Path) -> None:
    path = next(root.glob("data/*/*.parquet"))
    os.truncate(path, path.stat().st_size // 2)


def swap_videos(root: Path) -> None:
    """A video with fewer frames than the table promises."""
    other = root.parent / "other"
    rng = np.random.default_rng(0)
    frames = {"image": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)}
    zeros = np.zeros((20, 7), np.float32)
    write_dataset([Episode(frames=frames, state=zeros, action=zeros, task="t")], other)
    os.replace(next(other.glob("videos/*/*/*.mp4")), next(root.glob("videos/*image2/*/*.mp4")))
    shutil.rmtree(other)


def reorder_episodes(root: Path) -> None:
    """Episode metadata of another data set with as many frames."""
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pyarrow.parquet.read_table(path)
    lengths = pyarrow.array([17, 23, 30])
    table = table.set_column(table.column_names.index("length"), "length", lengths)
    pyarrow.parquet.write_table(table, path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no dataset": (lambda root: (root / "meta/info.json").unlink(), "is not a LeRobotDataset"),
    "info": (lambda root: (root / "meta/info.json").write_text("{"), "is damaged"),
    "version": (damage_version, r"is a LeRobotDataset v2.1, expected v3: convert it with"),
    "video": (damage_video, "not a readable video|ends before"),
    "no video": (lambda root: next(root.glob("videos/*/*/*.mp4")).unlink(), r"\.mp4 is missing"),
    "short video": (swap_videos, r"ends before 1\.\d+ s"),
    "table": (damage_table, "cannot be read"),
    "episodes": (reorder_episodes, "not in the order of its episodes"),
    "no table": (lambda root: next(root.glob("data/*/*.parquet")).unlink(), "no parquet file"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_dataset_is_explained(
    dataset: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    root = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    damage(root)
    with pytest.raises(DataError, match=message):
        build_cache(root, tmp_path / "cache")
    assert leftovers(tmp_path) == ["dataset"]


def test_unknown_camera_is_answered_with_the_nearest(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'observation\.images\.image2'"):
        build_cache(dataset, tmp_path / "cache", cameras=["observation.images.imag2"])


def test_reading_needs_no_lerobot() -> None:
    code = "import sys, vla_opt.data, vla_opt.features; sys.exit('lerobot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
