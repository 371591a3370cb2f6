"""TFRecords are read as their makers wrote them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PLUGIN = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(PLUGIN))

from foreign import serialised, write_records  # noqa: E402

from vla_opt.errors import DataError  # noqa: E402
from vla_opt.importing.tfrecord import masked_crc32c, parse_example, read_examples  # noqa: E402


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
