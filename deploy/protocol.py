"""openpi's wire format: msgpack with numpy arrays inside, byte for byte.

An array is a map with the byte-string keys `__ndarray__`, `data` (C order), `dtype` (numpy's
`dtype.str`) and `shape`; a numpy scalar one with `__npgeneric__`, `data`, `dtype`. Scalars that are
also Python numbers (float64) travel as such, because msgpack knows those.

A conversation: the server sends its metadata, then answers every binary frame with a binary frame.
An error is a text frame, after which the server closes with code 1011.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from deploy.errors import ProtocolError

BUSY = "ServerBusyError"
"""How the text of an error begins if asking again later may help."""
MAX_MESSAGE_BYTES = 32 * 2**20
"""Five raw 1080p pictures; a usual request has 0.3 MB."""
_REFUSED_KINDS = "VOc"  # structured, Python objects, complex: as openpi
_MAX_CONTAINERS = 10_000  # a request has about ten; each costs memory beyond its own byte
_MAX_DIMENSIONS = 32


def pack(value: Any) -> bytes:
    """Return the bytes of a message.

    Args:
        value: Dictionaries, lists, strings, bytes, numbers, None, numpy arrays and scalars.

    Raises:
        ProtocolError: Something in it cannot travel; names its type.
    """
    try:
        packed: bytes = msgpack.packb(value, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"This message cannot be sent: {error}") from error
    return packed


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """Return the value in a message. Arrays are views of `data` and read-only: copy to edit.

    Raises:
        ProtocolError: `data` is no message of this protocol, or an unreasonably nested one.
    """
    if isinstance(data, str):
        raise ProtocolError("Expected a binary frame, got a text frame.")
    decoder = _Decoder()
    try:
        return msgpack.unpackb(
            data, object_hook=decoder.map, list_hook=decoder.list, max_array_len=2**16
        )
    except ProtocolError:
        raise
    except Exception as error:  # msgpack's and numpy's are many; none may end a server
        raise ProtocolError(
            f"{len(data)} bytes that are no msgpack message: {type(error).__name__}: {error}"
        ) from error


def _encode(value: Any) -> Any:
    """What msgpack does not know by itself."""
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"cannot send a {type(value).__name__}, only numbers, text and arrays")
    if value.dtype.kind in _REFUSED_KINDS:
        raise ValueError(f"cannot send an array of dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


class _Decoder:
    """Turns maps back into arrays, and counts containers: a byte of input may ask for many."""

    def __init__(self) -> None:
        self._containers = 0

    def list(self, value: list[Any]) -> list[Any]:
        self._count()
        return value

    def map(self, value: dict[Any, Any]) -> Any:
        self._count()
        if b"__ndarray__" in value:
            return _decode_array(value)
        if b"__npgeneric__" in value:
            return _dtype(value).type(value[b"data"])
        return value

    def _count(self) -> None:
        self._containers += 1
        if self._containers > _MAX_CONTAINERS:
            raise ProtocolError(
                f"More than {_MAX_CONTAINERS} lists and maps in a message: send numbers as arrays."
            )


def _decode_array(value: dict[Any, Any]) -> NDArray[Any]:
    dtype, shape, data = _dtype(value), value[b"shape"], value[b"data"]
    if not isinstance(data, bytes):
        raise ProtocolError(f"The data of an array are of type {type(data).__name__}, not bytes.")
    sizes = shape if isinstance(shape, list) else [shape]
    if len(sizes) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in sizes):
        raise ProtocolError(f"{str(shape)[:80]} is no shape of an array.")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise ProtocolError(
            f"An array of shape {tuple(sizes)} and dtype {dtype} has "
            f"{math.prod(sizes) * dtype.itemsize} bytes, got {len(data)}."
        )
    return np.ndarray(shape=tuple(sizes), dtype=dtype, buffer=data)


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    name = value[b"dtype"]
    if not isinstance(name, str) or len(name) > 16:
        raise ProtocolError(f"{str(name)[:80]!r} is no dtype.")
    dtype = np.dtype(name)
    if dtype.kind in _REFUSED_KINDS:
        raise ProtocolError(f"Arrays of dtype {dtype} are refused.")
    return dtype
