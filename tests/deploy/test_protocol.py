"""The wire format against golden bytes, openpi's own code, and anything a network may bring."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.errors import ContractMismatchError, ProtocolError
from deploy.metadata import ServerMetadata, check_fits
from deploy.protocol import pack, unpack

GOLDEN_ARRAY = bytes.fromhex(
    "81a761 6374696f6e73"  # {"actions":
    "84 c40b5f5f6e6461727261795f5f c3"  # {b"__ndarray__": True,
    "c40464617461 c410 000000000000f03f 00000000000000c0"  # b"data": 1.0, -2.0
    "c4056474797065 a33c6638"  # b"dtype": "<f8"
    "c4057368617065 920102".replace(" ", "")  # b"shape": [1, 2]}}
)
GOLDEN_SCALAR = bytes.fromhex(
    "83 c40d5f5f6e7067656e657269635f5f c3"  # {b"__npgeneric__": True,
    "c40464617461 07"  # b"data": 7
    "c4056474797065 a33c6932".replace(" ", "")  # b"dtype": "<i2"}
)
DTYPES = st.sampled_from(["<f8", "<f4", ">f4", "<f2", "|u1", "<i8", ">i2", "|b1", "<U5", "|S3"])
ARRAYS = DTYPES.flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
    ARRAYS,
    st.sampled_from([np.float64(1.5), np.float32(2.5), np.int16(-3), np.bool_(True)]),
)
MESSAGES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Equal in type, dtype, shape and value; tuples come back as lists."""
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        equal = isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        return equal and a.tobytes() == b.tobytes()
    if isinstance(a, np.float64):
        return type(b) is float and a == b
    return type(a) is type(b) and bool(a == b)


def test_golden_frames() -> None:
    message = {"actions": np.array([[1.0, -2.0]])}
    assert pack(message) == GOLDEN_ARRAY
    assert same(unpack(GOLDEN_ARRAY), message)
    assert pack(np.int16(7)) == GOLDEN_SCALAR
    assert same(unpack(GOLDEN_SCALAR), np.int16(7))


def test_arrays_come_in_c_order_and_read_only() -> None:
    transposed = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    received = unpack(pack(transposed))
    np.testing.assert_array_equal(received, transposed)
    assert not received.flags.writeable


@settings(max_examples=80, deadline=None)
@given(message=MESSAGES)
def test_every_message_comes_back_the_same(message: Any) -> None:
    assert same(message, unpack(pack(message)))


@settings(max_examples=80, deadline=None)
@given(message=MESSAGES)
def test_bytes_are_openpis(openpi_numpy: ModuleType, message: Any) -> None:
    assert pack(message) == openpi_numpy.packb(message) == openpi_numpy.Packer().pack(message)
    assert same(message, openpi_numpy.unpackb(pack(message)))


@pytest.mark.parametrize(
    "value",
    [np.array([1j]), np.array([object()]), np.zeros(1, dtype=[("a", "<f4")]), object(), {1, 2}],
    ids=["complex", "object", "structured", "python object", "set"],
)
def test_what_cannot_travel_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(ProtocolError, match="cannot"):
        pack({"actions": value})


def array_map(**changes: Any) -> bytes:
    fields = {"__ndarray__": True, "data": bytes(16), "dtype": "<f8", "shape": [2], **changes}
    return bytes(msgpack.packb({key.encode(): value for key, value in fields.items()}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no msgpack message"),
        (b"\xc1", "no msgpack message"),
        (b"\x81", "no msgpack message"),
        (GOLDEN_ARRAY[:-1], "no msgpack message"),
        (GOLDEN_ARRAY + b"\x00", "no msgpack message"),
        (b"\x91" * 5000 + b"\x00", "no msgpack message"),
        (b"\x93" + b"\x90" * 3, None),
        (b"\xdc\xff\xff" + b"\x90" * 65535, "More than 10000 lists"),
        (b"\xdd\x00\x7f\xff\xff", "no msgpack message"),
        (array_map(dtype="|O"), "refused"),
        (array_map(dtype="<c16", shape=[1]), "refused"),
        (array_map(dtype="no dtype"), "no msgpack message"),
        (array_map(dtype=3), "no dtype"),
        (array_map(dtype="f8," * 100), "no dtype"),
        (array_map(data=bytes(15)), "has 16 bytes, got 15"),
        (array_map(data="text"), "not bytes"),
        (array_map(shape=[-2]), "no shape"),
        (array_map(shape=[2**40, 2**40]), "got 16"),
        (array_map(shape="two"), "no shape"),
        (array_map(shape=[True, 2]), "no shape"),
        (b"\x81\xc4\x0d__npgeneric__\xc3", "no msgpack message"),
    ],
)
def test_malformed_bytes_are_a_protocol_error(data: bytes, reason: str | None) -> None:
    if reason is None:
        assert unpack(data) == [[], [], []]
        return
    with pytest.raises(ProtocolError, match=reason):
        unpack(data)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=64))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack(data)


@settings(max_examples=150, deadline=None)
@given(message=MESSAGES, where=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_raises_nothing_else(message: Any, where: int, bit: int) -> None:
    data = bytearray(pack(message))
    data[where % len(data)] ^= 1 << bit
    with contextlib.suppress(ProtocolError):
        unpack(bytes(data))


DROID = ServerMetadata(
    policy="pi05",
    action_space="joint_velocity",
    action_dim=8,
    action_horizon=15,
    control_hz=15.0,
    gripper="0 open, 1 closed",
    controller_profile="droid",
    statistics_sha256="ab",
    inputs={"observation/wrist_image_left": (224, 224, 3), "prompt": ()},
)


def test_metadata_travel() -> None:
    assert ServerMetadata.from_wire(unpack(pack(DROID.to_wire()))) == DROID


def test_a_server_that_says_nothing_or_other_things_is_understood() -> None:
    assert ServerMetadata.from_wire({}) == ServerMetadata()
    assert ServerMetadata.from_wire({"reset_pose": [0, 1], "action_dim": 8}).action_dim == 8


@pytest.mark.parametrize(
    "wire",
    [[], "text", {"action_dim": "8"}, {"control_hz": None, "inputs": 3}, {"action_dim": True}],
)
def test_wrong_metadata_are_a_protocol_error(wire: Any) -> None:
    with pytest.raises(ProtocolError):
        ServerMetadata.from_wire(wire)


def test_the_operator_fills_gaps_but_contradicts_nothing() -> None:
    stated = ServerMetadata(action_space="joint_velocity", action_horizon=15)
    assert ServerMetadata().completed_by(stated) == stated
    with pytest.raises(ContractMismatchError, match="action_horizon: 15 against 10"):
        DROID.completed_by(ServerMetadata(action_horizon=10))


def test_an_unknown_action_space_is_refused() -> None:
    with pytest.raises(ContractMismatchError, match=r"--policy\.action_space"):
        check_fits(ServerMetadata(), DROID)


def test_another_controller_needs_an_override_and_another_action_space_has_none() -> None:
    robot = ServerMetadata(action_space="joint_velocity", controller_profile="stiff")
    with pytest.raises(ContractMismatchError, match="controller_profile: droid against stiff"):
        check_fits(DROID, robot)
    assert check_fits(DROID, robot, override=True) == ["controller_profile: droid against stiff"]
    with pytest.raises(ContractMismatchError, match="action_space"):
        check_fits(DROID, ServerMetadata(action_space="joint_position"), override=True)


def test_what_the_policy_does_not_say_is_a_warning() -> None:
    policy = ServerMetadata(action_space="joint_velocity")
    assert check_fits(policy, ServerMetadata(control_hz=15.0)) == [
        "control_hz: the policy server does not say"
    ]
