"""Files of other formats, written as their makers write them, and what tells their frames apart."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
from PIL import Image

from vla_opt._lerobot_read import DatasetFiles

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


def jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95)
    return file.getvalue()
