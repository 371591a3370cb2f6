"""Other formats become data sets: written here as their makers write them, read back from disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla_opt._lerobot_read import DatasetFiles
from vla_opt.errors import ConfigError, DataError
from vla_opt.importing import ImportConfig, import_dataset, kept_rows
from vla_opt.importing.config import detect_format
from vla_opt.importing.tfrecord import masked_crc32c, parse_example, read_examples

SIZE = 32


def picture(number: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Dark below, light above on the left: tells its number by its brightness, and its way up."""
    image = np.full((height, width, 3), 40 + 8 * number, np.uint8)
    image[: height // 2, : width // 2] = 255
    return image


def actions_with_pauses(length: int = 12) -> np.ndarray:
    """Moves, except: rows 4 and 5 stand still; row 8 stands, too, but closes the gripper."""
    action = np.random.default_rng(0).uniform(0.1, 0.9, (length, 7)).astype(np.float32)
    action[[4, 5, 8], :6] = 0
    action[:, 6] = np.where(np.arange(length) < 8, -1, 1)
    return action


def numbers(root: Path) -> dict[str, np.ndarray]:
    return DatasetFiles(root).columns(["observation.state", "action", "episode_index"])


def seen(root: Path, camera: str) -> list[np.ndarray]:
    return list(DatasetFiles(root).pictures(f"observation.images.{camera}"))


def tells(frame: np.ndarray) -> int:
    """The number of a `picture`."""
    return round((float(frame[SIZE // 4 * 3 :, SIZE // 4 * 3 :].mean()) - 40) / 8)


def is_upright(frame: np.ndarray) -> bool:
    height, width = frame.shape[:2]
    return bool(frame[: height // 3, : width // 3].mean() > 240)


# -- no-ops ----------------------------------------------------------------------------------------


def test_pauses_are_left_out_and_grasps_stay() -> None:
    assert kept_rows(actions_with_pauses()).tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


def test_a_pause_after_a_grasp_is_one_although_the_step_before_it_moved_the_gripper() -> None:
    action = np.zeros((4, 7))
    action[0, 0], action[1:, 6] = 1, 1
    assert kept_rows(action).tolist() == [0, 1]


def test_the_rule_is_openvlas() -> None:
    """Its words in code: the norm of all but the gripper, the gripper as in the last kept step."""
    rng = np.random.default_rng(1)
    actions = rng.choice([0.0, 1e-5, 0.5], (200, 3)) * rng.choice([0, 1], (200, 1))
    actions[:, 2] = rng.choice([-1.0, 1.0], 200)
    expected: list[int] = []
    for t, a in enumerate(actions):
        still = np.sqrt((a[:2] ** 2).sum()) < 1e-4
        if not (still and (not expected or a[2] == actions[expected[-1]][2])):
            expected.append(t)
    assert kept_rows(actions).tolist() == expected


# -- LIBERO ----------------------------------------------------------------------------------------


def write_libero(path: Path, demos: dict[str, np.ndarray], **attributes: Any) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        words = {"language_instruction": "put the bowl on the plate"}
        data.attrs["problem_info"] = json.dumps(words)
        data.attrs.update(attributes)
        for name, action in demos.items():
            length = len(action)
            demo = data.create_group(name)
            demo.create_dataset("actions", data=action.astype(np.float64))
            observations = demo.create_group("obs")
            raw = np.stack([picture(t) for t in range(length)])[:, ::-1, ::-1]
            observations.create_dataset("agentview_rgb", data=raw)
            observations.create_dataset("eye_in_hand_rgb", data=raw)
            time = np.arange(length, dtype=np.float64)[:, None]
            observations.create_dataset("ee_states", data=np.repeat(time, 6, axis=1))
            observations.create_dataset("gripper_states", data=np.repeat(time / 100, 2, axis=1))


@pytest.fixture
def libero(tmp_path: Path) -> Path:
    folder = tmp_path / "libero_spatial"
    folder.mkdir()
    demos = {f"demo_{n}": actions_with_pauses() for n in (10, 2)}
    write_libero(folder / "put_the_bowl_on_the_plate_demo.hdf5", demos)
    return folder


def test_libero_becomes_a_data_set_with_its_contract(libero: Path, tmp_path: Path) -> None:
    summary = import_dataset(ImportConfig(source=libero, root=tmp_path / "out"))
    assert (summary.format, summary.episodes, summary.noops) == ("libero", 2, 4)
    files = DatasetFiles(tmp_path / "out")
    assert files.tasks == ("put the bowl on the plate",)
    assert [note["demo"] for note in files.notes] == ["demo_2", "demo_10"]
    spec = json.loads((files.root / "meta/env_spec.json").read_text())
    assert (spec["control_hz"], spec["render_profile"]) == (20, "exact")
    assert spec["images"]["image2"] == {"height": SIZE, "width": SIZE, "rotation_deg": 180}
    note = json.loads((files.root / "meta/import.json").read_text())
    assert (note["noops"], note["noop_threshold"], note["pairing"]) == (4, 1e-4, "before")
    from lerobot.datasets import LeRobotDataset

    stock = LeRobotDataset("local/x", root=files.root, video_backend="pyav")
    assert (stock.num_episodes, stock.num_frames) == (2, summary.frames)


def test_each_action_follows_the_observation_it_is_paired_with(
    libero: Path, tmp_path: Path
) -> None:
    import_dataset(ImportConfig(source=libero, root=tmp_path / "out", limit=1, drop_noops=False))
    table, stored = numbers(tmp_path / "out"), actions_with_pauses()
    np.testing.assert_array_equal(table["action"], stored[1:])
    np.testing.assert_array_equal(table["observation.state"][:, 0], np.arange(11))
    (frames,) = seen(tmp_path / "out", "image")
    assert [tells(frame) for frame in frames] == list(range(11))
    assert all(is_upright(frame) for frame in frames)


def test_as_stored_pairs_as_the_file_does(libero: Path, tmp_path: Path) -> None:
    config = ImportConfig(
        source=libero, root=tmp_path / "out", limit=1, drop_noops=False, pairing="as_stored"
    )
    import_dataset(config)
    table = numbers(tmp_path / "out")
    np.testing.assert_array_equal(table["action"], actions_with_pauses())
    np.testing.assert_array_equal(table["observation.state"][:, 0], np.arange(12))


def test_the_file_name_tells_the_instruction_where_the_file_does_not(tmp_path: Path) -> None:
    path = tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
    write_libero(path, {"demo_0": actions_with_pauses()}, problem_info="{}")
    import_dataset(ImportConfig(source=path, root=tmp_path / "out"))
    assert DatasetFiles(tmp_path / "out").tasks == ("turn on the stove",)


def test_a_broken_demonstration_stops_the_import_or_is_left_out(
    libero: Path, tmp_path: Path
) -> None:
    path = next(libero.glob("*.hdf5"))
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/gripper_states"]
    config = ImportConfig(source=libero, root=tmp_path / "out")
    with pytest.raises(DataError, match=r"demo_2 has no `gripper_states`, only agentview_rgb"):
        import_dataset(config)
    assert not (tmp_path / "out").exists()
    summary = import_dataset(ImportConfig(source=libero, root=tmp_path / "out", skip_broken=True))
    assert summary.episodes == 1
    assert "demo_2" in summary.skipped[0]


# -- TFRecord --------------------------------------------------------------------------------------


def example_class() -> type:
    """`tf.train.Example`, built with the protobuf library from the published definition."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="e", syntax="proto3")

    def message(parent: Any, name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        made = parent.add(name=name)
        for label, number, type_, repeated, type_name in fields:
            made.field.add(
                name=label, number=number, type=type_, label=repeated, type_name=type_name or None
            )
        return made

    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    message(file.message_type, "BytesList", ("value", 1, kind.TYPE_BYTES, many, ""))
    message(file.message_type, "FloatList", ("value", 1, kind.TYPE_FLOAT, many, ""))
    message(file.message_type, "Int64List", ("value", 1, kind.TYPE_INT64, many, ""))
    feature = message(
        file.message_type,
        "Feature",
        ("bytes_list", 1, kind.TYPE_MESSAGE, one, ".e.BytesList"),
        ("float_list", 2, kind.TYPE_MESSAGE, one, ".e.FloatList"),
        ("int64_list", 3, kind.TYPE_MESSAGE, one, ".e.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message(
        file.message_type,
        "Features",
        ("feature", 1, kind.TYPE_MESSAGE, many, ".e.Features.FeatureEntry"),
    )
    entry = message(
        features.nested_type,
        "FeatureEntry",
        ("key", 1, kind.TYPE_STRING, one, ""),
        ("value", 2, kind.TYPE_MESSAGE, one, ".e.Feature"),
    )
    entry.options.map_entry = True
    message(file.message_type, "Example", ("features", 1, kind.TYPE_MESSAGE, one, ".e.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))


EXAMPLE = example_class()


def serialised(values: dict[str, Any]) -> bytes:
    example = EXAMPLE()
    for name, value in values.items():
        feature = example.features.feature[name]
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            feature.bytes_list.value.extend(value)
        elif np.asarray(value).dtype.kind == "f":
            feature.float_list.value.extend(np.ravel(value).tolist())
        else:
            feature.int64_list.value.extend(np.ravel(value).tolist())
    return example.SerializeToString()


def write_records(path: Path, records: list[bytes]) -> None:
    """Framed by TensorBoard's writer."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)


@settings(max_examples=50, deadline=None)
@given(
    floats=st.lists(st.floats(width=32, allow_nan=False), max_size=20),
    integers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    texts=st.lists(st.binary(max_size=200), min_size=1, max_size=5),
)
def test_examples_are_read_as_protobuf_wrote_them(floats, integers, texts) -> None:
    data = serialised(
        {"f": np.array(floats, np.float32), "i": np.array(integers, np.int64), "b": texts}
    )
    read = parse_example(data)
    assert np.asarray(read["f"]).tolist() == floats
    assert np.asarray(read["i"]).tolist() == integers
    assert read["b"] == texts


@pytest.mark.parametrize("verify", [False, True])
def test_records_are_read_as_tensorboard_framed_them(verify: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    write_records(path, [serialised({"n": np.array([n])}) for n in range(3)])
    assert [int(e["n"][0]) for e in read_examples(path, verify=verify)] == [0, 1, 2]


def test_the_checksum_is_castagnolis() -> None:
    crc = ((masked_crc32c(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "big")
    rotated = int.from_bytes(crc, "big")
    assert ((rotated << 15) | (rotated >> 17)) & 0xFFFFFFFF == 0xE3069283  # RFC 3720, appendix B.4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], "record 0 is cut off"),
        (lambda data: data[:7], "record 0 is cut off"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "wrong length checksum"),
        (lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:], "wrong checksum"),
    ],
)
def test_damage_of_a_record_is_found(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.tfrecord"
    write_records(path, [serialised({"name": [b"x" * 50]})])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        list(read_examples(path, verify=True))


def jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_rlds_episodes_keep_their_pairing_and_their_way_up(tmp_path: Path) -> None:
    action = actions_with_pauses()
    state = np.repeat(np.arange(12, dtype=np.float32)[:, None], 8, axis=1)
    pictures = [jpeg(picture(t)) for t in range(12)]
    episode = {
        "steps/observation/image": pictures,
        "steps/observation/wrist_image": pictures,
        "steps/observation/state": state,
        "steps/action": action,
        "steps/language_instruction": [b"open the drawer"] * 12,
        "steps/is_first": (np.arange(12) == 0).astype(int),
        "episode_metadata/file_path": [b"/data/open_the_drawer_demo.hdf5"],
    }
    shard = tmp_path / "libero_goal-train.tfrecord-00000-of-00001"
    write_records(shard, [serialised(episode), serialised(episode)])
    summary = import_dataset(ImportConfig(source=tmp_path, root=tmp_path / "out", verify=True))
    assert (summary.format, summary.episodes, summary.noops) == ("rlds", 2, 4)
    rows = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    table = numbers(tmp_path / "out")
    np.testing.assert_array_equal(table["action"][:10], action[rows])
    np.testing.assert_array_equal(table["observation.state"][:10, 0], rows)
    frames = seen(tmp_path / "out", "image2")[0]
    assert [tells(frame) for frame in frames] == rows
    assert is_upright(frames[0])
    files = DatasetFiles(tmp_path / "out")
    assert files.tasks == ("open the drawer",)
    assert files.notes[0]["file_path"] == "open_the_drawer_demo.hdf5"


def test_rlds_of_another_robot_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    write_records(tmp_path / "x.tfrecord", [serialised({"steps/reward": np.ones(3, np.float32)})])
    with pytest.raises(DataError, match=r"no `steps/action`.*found steps/reward"):
        import_dataset(ImportConfig(source=tmp_path, root=tmp_path / "out"))


# -- DROID -----------------------------------------------------------------------------------------


def write_video(path: Path, frames: list[np.ndarray], fps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", fps, options={"crf": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, fps)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_droid(folder: Path, length: int = 8, **metadata: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    arrays = {
        "action/joint_velocity": rng.uniform(-1, 1, (length, 7)),
        "action/gripper_position": rng.uniform(0, 1, length),
        "observation/robot_state/joint_positions": rng.normal(size=(length, 7)),
        "observation/robot_state/gripper_position": rng.uniform(0, 1, length),
        "observation/controller_info/movement_enabled": np.arange(length) > 1,
    }
    kinds = {"20521388": 1, "14846828": 0, "29838012": 1}
    folder.mkdir(parents=True)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for key, values in arrays.items():
            file[key] = values
        for serial, kind in kinds.items():
            file[f"observation/camera_type/{serial}"] = np.full(length, kind)
    for serial in kinds:
        shade = 40 * sorted(kinds).index(serial)
        frames = [np.full((72, 128, 3), shade + 10 * t, np.uint8) for t in range(length)]
        write_video(folder / "recordings/MP4" / f"{serial}.mp4", frames, 15)
    if metadata:
        (folder / "metadata_IRIS+a1b2+2023.json").write_text(json.dumps(metadata))
    return arrays


def test_droid_becomes_velocities_with_their_controller(tmp_path: Path) -> None:
    arrays = write_droid(
        tmp_path / "raw/success/one", current_task="lid on pot", ext1_cam_serial="29838012"
    )
    summary = import_dataset(ImportConfig(source=tmp_path / "raw", root=tmp_path / "out"))
    assert (summary.format, summary.episodes, summary.frames, summary.noops) == ("droid", 1, 6, 2)
    table = numbers(tmp_path / "out")
    expected = np.column_stack([arrays["action/joint_velocity"], arrays["action/gripper_position"]])
    np.testing.assert_allclose(table["action"], expected[2:], atol=1e-6)
    files = DatasetFiles(tmp_path / "out")
    assert files.fps == 15
    assert files.tasks == ("lid on pot",)
    assert files.image_size("observation.images.wrist_left") == (180, 320)
    spec = json.loads((files.root / "meta/deploy_spec.json").read_text())
    assert spec["action_space"] == "joint_velocity"
    assert spec["controller_profile"] == "droid"
    # The metadata name the second serial as the first exterior camera.
    means = {
        view: float(seen(tmp_path / "out", view)[0][0].mean())
        for view in ("exterior_1_left", "exterior_2_left", "wrist_left")
    }
    shades = {"exterior_1_left": 100, "exterior_2_left": 60, "wrist_left": 20}
    assert means == pytest.approx(shades, abs=4)


def test_droid_names_are_those_its_policies_ask_for() -> None:
    from policies import droid
    from vla_opt.importing.droid import ACTION_NAMES, STATE_NAMES

    assert STATE_NAMES == droid.STATE_NAMES
    assert droid.ACTION_SPACES["joint_velocity"].names == ACTION_NAMES


def test_droid_without_an_instruction_asks_for_one(tmp_path: Path) -> None:
    write_droid(tmp_path / "raw/one", lab="IRIS")
    config = ImportConfig(source=tmp_path / "raw", root=tmp_path / "out")
    with pytest.raises(DataError, match=r"no instruction.*--annotations=FILE, or --task"):
        import_dataset(config)
    told = tmp_path / "annotations.json"
    told.write_text(json.dumps({"IRIS+a1b2+2023": {"language_instruction1": "close the box"}}))
    import_dataset(ImportConfig(source=tmp_path / "raw", root=tmp_path / "out", annotations=told))
    assert DatasetFiles(tmp_path / "out").tasks == ("close the box",)


def test_a_short_video_of_droid_is_found(tmp_path: Path) -> None:
    write_droid(tmp_path / "raw/one", current_task="x")
    video = tmp_path / "raw/one/recordings/MP4/14846828.mp4"
    write_video(video, [np.zeros((72, 128, 3), np.uint8)] * 5, 15)
    with pytest.raises(DataError, match="has 5 frames for 8 steps"):
        import_dataset(ImportConfig(source=tmp_path / "raw", root=tmp_path / "out"))


# -- LeRobot v2.1 ----------------------------------------------------------------------------------


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


# -- all -------------------------------------------------------------------------------------------


def test_a_folder_of_nothing_known_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither \*\.hdf5 .* trajectory\.h5"):
        detect_format(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        detect_format(tmp_path / "nothing")


def test_the_command_line_imports_and_tells(
    libero: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vla_opt.cli.main import main

    words = ["data", "import", f"--source={libero}", f"--root={tmp_path / 'out'}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "libero: 2 episodes, 18 frames" in out
    assert "4 no-ops left out" in out
    assert main([*words, "--format=hdf5"]) == 2
    assert "format" in capsys.readouterr().err


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="limit=-1"):
        ImportConfig(source=Path("x"), root=Path("y"), limit=-1)
    assert issubclass(ConfigError, ValueError)
