"""LeRobot data sets of format v2.1 become ones of v3."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(PLUGIN))

from foreign import SIZE, numbers, picture, seen, tells, write_video  # noqa: E402

from vla_opt.errors import DataError  # noqa: E402
from vla_opt.importing import ImportConfig, import_dataset  # noqa: E402


def write_v21(root: Path, lengths: tuple[int, ...] = (7, 5)) -> np.ndarray:
    import pyarrow
    import pyarrow.parquet

    rng, first, all_actions = np.random.default_rng(5), 0, []
    camera = "observation.images.image"
    rows: dict[str, list[dict[str, Any]]] = {"episodes": [], "episodes_stats": []}
    for number, length in enumerate(lengths):
        action = rng.normal(number, 1, (length, 2)).astype(np.float32)
        all_actions.append(action)
        frame = np.arange(length)
        columns = {
            "observation.state": list(action + 1),
            "action": list(action),
            "timestamp": (frame / 10).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, number),
            "index": first + frame,
            "task_index": np.zeros(length, np.int64),
        }
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        frames = [picture(t + 5 * number) for t in range(length)]
        write_video(root / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4", frames, 10)
        stats = {
            key: {
                **{s: getattr(np.stack(columns[key]), s)(0).tolist() for s in ("min", "max")},
                **{s: getattr(np.stack(columns[key]), s)(0).tolist() for s in ("mean", "std")},
                "count": [length],
            }
            for key in ("observation.state", "action")
        }
        rows["episodes"].append({"episode_index": number, "tasks": ["push"], "length": length})
        rows["episodes_stats"].append({"episode_index": number, "stats": stats})
        first += length
    rows["tasks"] = [{"task_index": 0, "task": "push"}]
    vector = {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "panda",
        "total_episodes": len(lengths),
        "total_frames": first,
        "total_tasks": 1,
        "total_videos": len(lengths),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": 10,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": {
            camera: {
                "dtype": "video",
                "shape": [SIZE, SIZE, 3],
                "names": ["height", "width", "channels"],
                "info": {"video.fps": 10},
            },
            "observation.state": vector,
            "action": vector,
            "timestamp": {**scalar, "dtype": "float32"},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar),
        },
    }
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    for name, values in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in values)
        (root / f"meta/{name}.jsonl").write_text(text)
    return np.concatenate(all_actions)


def test_v21_is_converted_by_lerobot_and_gets_exact_quantiles(tmp_path: Path) -> None:
    action = write_v21(tmp_path / "old")
    summary = import_dataset(ImportConfig(source=tmp_path / "old", root=tmp_path / "out"))
    assert (summary.format, summary.episodes, summary.frames) == ("lerobot_v21", 2, 12)
    np.testing.assert_array_equal(numbers(tmp_path / "out")["action"], action)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(action, 0.99, axis=0), rtol=1e-6)
    told = [tells(frame) for frames in seen(tmp_path / "out", "image") for frame in frames]
    assert told == [*range(7), *range(5, 10)]
    assert (tmp_path / "old/meta/tasks.jsonl").is_file()  # the original stays
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["old", "out"]


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    write_v21(tmp_path / "old")
    (tmp_path / "old/meta/episodes.jsonl").unlink()
    with pytest.raises((DataError, OSError), match="episodes"):
        import_dataset(ImportConfig(source=tmp_path / "old", root=tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["old"]
