"""Statistics are those of all rows, as numpy computes them, and lerobot's are made so."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vla_opt._stats import PixelHistogram, stats_from_json, stats_to_json
from vla_opt.data import QUANTILES, DataError, check_stats, exact_stats, fix_stats


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 300), columns=st.integers(1, 5))
def test_exact_stats_are_numpys(seed: int, rows: int, columns: int) -> None:
    values = np.random.default_rng(seed).standard_t(2, (rows, columns))
    stats = exact_stats(values)
    for name, q in QUANTILES.items():
        np.testing.assert_array_equal(stats[name], np.quantile(values, q, axis=0))
    np.testing.assert_allclose(stats["mean"], values.mean(0))
    np.testing.assert_allclose(stats["std"], values.std(0))
    np.testing.assert_array_equal(stats["min"], values.min(0))
    np.testing.assert_array_equal(stats["max"], values.max(0))
    assert stats["count"].tolist() == [rows]


def test_a_value_that_is_not_finite_is_named() -> None:
    values = np.zeros((5, 2))
    values[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 holds a value that is not finite"):
        exact_stats(values)
    with pytest.raises(ValueError, match="at least one row"):
        exact_stats(np.zeros((0, 2)))


@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 4), peak=st.integers(1, 256))
def test_pixel_statistics_are_those_of_all_pixels(seed: int, frames: int, peak: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, peak, (frames, 5, 7, 3), dtype=np.uint8)
    histogram = PixelHistogram()
    for image in images:  # in pieces
        histogram.add(image[None])
    stats = histogram.stats()
    pixels = images.reshape(-1, 3) / 255.0
    assert stats["q01"].shape == (3, 1, 1)
    for name, q in QUANTILES.items():
        np.testing.assert_allclose(stats[name].ravel(), np.quantile(pixels, q, axis=0), atol=1e-12)
    for name in ("mean", "std", "min", "max"):
        expected = getattr(pixels, name)(axis=0)
        np.testing.assert_allclose(stats[name].ravel(), expected, atol=1e-7)
    assert stats["count"].tolist() == [frames]


def test_statistics_survive_json() -> None:
    stats = {"action": exact_stats(np.random.default_rng(0).normal(size=(50, 7)))}
    again = stats_from_json(json.loads(json.dumps(stats_to_json(stats))))
    for name, value in stats["action"].items():
        np.testing.assert_array_equal(again["action"][name], value)


def record_with_lerobot(root: Path) -> NDArray[np.float64]:
    """Two episodes that visit different ranges, written by lerobot's own recorder."""
    from lerobot.datasets import LeRobotDataset

    vector = {"dtype": "float32", "shape": (2,), "names": ["a", "b"]}
    recorder = LeRobotDataset.create(
        "local/stock", 20, {"action": vector, "observation.state": vector}, root, use_videos=False
    )
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.normal(m, s, (100, 2)) for m, s in ((0, 1), (8, 3))])
    actions = actions.astype(np.float32)
    for row, action in enumerate(actions):
        recorder.add_frame({"action": action, "observation.state": action, "task": "t"})
        if row in (99, 199):
            recorder.save_episode()
    recorder.finalize()
    return actions.astype(np.float64)


def test_lerobots_wrong_quantiles_are_found_and_made_exact(tmp_path: Path) -> None:
    from lerobot.datasets import LeRobotDatasetMetadata

    root = tmp_path / "stock"
    actions = record_with_lerobot(root)
    true_q99 = np.quantile(actions, 0.99, axis=0)
    stock = LeRobotDatasetMetadata("local/stock", root).stats["action"]
    assert (stock["q99"] < 0.8 * true_q99).all()  # the reason why this module exists

    report = {r.feature: r for r in check_stats(root)}["action"]
    assert not report.agrees
    assert report.worst in QUANTILES
    assert report.outside > 0.04  # twice the 2 % that [q01, q99] should leave out

    fix_stats(root)
    fixed = LeRobotDatasetMetadata("local/stock", root).stats["action"]
    for name, q in QUANTILES.items():
        np.testing.assert_allclose(fixed[name], np.quantile(actions, q, axis=0), rtol=1e-12)
    assert all(r.agrees for r in check_stats(root))
    assert max(r.outside for r in check_stats(root)) <= 0.02


def test_a_written_dataset_has_exact_statistics(dataset: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    assert all(report.agrees for report in check_stats(dataset))
    stock = LeRobotDataset("local/sample", root=dataset, video_backend="pyav")
    actions = np.array(stock.hf_dataset["action"], dtype=np.float64)
    np.testing.assert_allclose(stock.meta.stats["action"]["q01"], np.quantile(actions, 0.01, 0))
    pixels = np.stack([stock[i]["observation.images.image"].numpy() for i in range(len(stock))])
    stats = stock.meta.stats["observation.images.image"]
    assert stats["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(stats["mean"].ravel(), pixels.mean((0, 2, 3)), atol=2e-3)
    np.testing.assert_allclose(stats["std"].ravel(), pixels.std((0, 2, 3)), atol=2e-3)


def test_damaged_statistics_are_said_to_be(dataset: Path, tmp_path: Path) -> None:
    import shutil

    root = Path(shutil.copytree(dataset, tmp_path / "copy"))
    (root / "meta/stats.json").write_text('{"action": ')
    with pytest.raises(DataError, match=r"stats\.json is damaged"):
        check_stats(root)
    (root / "meta/stats.json").unlink()
    assert not any(report.agrees for report in check_stats(root))
