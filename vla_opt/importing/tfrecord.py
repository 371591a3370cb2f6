"""Reads TFRecord files of `tf.train.Example` without TensorFlow.

Written from the formats' public definitions: TFRecord is length, its checksum, data, their checksum
(https://www.tensorflow.org/tutorials/load_data/tfrecord); an Example is a protocol-buffer message
(https://protobuf.dev/programming-guides/encoding) of a map from names to lists of bytes, floats or
integers (tensorflow/core/example/feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt.errors import DataError

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
Example = Mapping[str, Feature]

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_CASTAGNOLI = 0x82F63B78  # polynomial of CRC-32C, reflected
_MASK = 0xA282EAD8
_LONGEST = 1 << 32  # bytes; more is a damaged length


def read_examples(path: Path, *, verify: bool = False) -> Iterator[Example]:
    """The examples of one file.

    Args:
        path: The file.
        verify: Compare the checksums of the data; about a second per MB. Those of the lengths are
            always compared, so a truncated or shifted file is found either way.

    Raises:
        DataError: The file is damaged; says at which record.
    """
    for number, record in enumerate(read_records(path, verify=verify)):
        try:
            yield parse_example(record)
        except (ValueError, IndexError, struct.error) as error:
            raise DataError(f"{path}: record {number} is no tf.train.Example: {error}") from error


def read_records(path: Path, *, verify: bool = False) -> Iterator[bytes]:
    """The records of one file as bytes; see `read_examples`."""
    with path.open("rb") as file:
        number = 0
        while header := file.read(_HEADER.size):
            where = f"{path}: record {number}"
            if len(header) < _HEADER.size:
                raise DataError(f"{where} is cut off: copy the file again.")
            length, checksum = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum or length > _LONGEST:
                raise DataError(f"{where} has a wrong length checksum: no TFRecord, or damaged.")
            data, end = file.read(length), file.read(_CHECKSUM.size)
            if len(data) < length or len(end) < _CHECKSUM.size:
                raise DataError(f"{where} is cut off: copy the file again.")
            if verify and masked_crc32c(data) != _CHECKSUM.unpack(end)[0]:
                raise DataError(f"{where} has a wrong checksum: copy the file again.")
            yield data
            number += 1


def parse_example(data: bytes) -> dict[str, Feature]:
    """One serialised `tf.train.Example`: name -> list of bytes, or an array of numbers.

    Raises:
        ValueError: It is none.
    """
    found: dict[str, Feature] = {}
    for number, features in _fields(memoryview(data)):
        if number != 1:
            continue
        for entry_number, entry in _fields(_bytes(features)):
            if entry_number == 1:
                parts = dict(_fields(_bytes(entry)))
                found[bytes(_bytes(parts[1])).decode()] = _feature(_bytes(parts.get(2, b"")))
    return found


def _feature(data: memoryview) -> Feature:
    """The one list that a Feature holds; an empty list of bytes if it holds none."""
    for kind, value in _fields(data):
        values = [item for number, item in _fields(_bytes(value)) if number == 1]
        if kind == 1:
            return [bytes(_bytes(item)) for item in values]
        if kind == 2:
            packed = [_floats(item) for item in values]
            return np.concatenate(packed) if packed else np.empty(0, np.float32)
        if kind == 3:
            numbers = [n for item in values for n in _integers(item)]
            return np.array(numbers, dtype=np.uint64).astype(np.int64)
    return []


def _floats(item: Any) -> NDArray[np.float32]:
    return np.frombuffer(item, dtype="<f4").astype(np.float32)  # packed, or one of four bytes


def _integers(item: Any) -> Iterator[int]:
    if isinstance(item, int):
        yield item
        return
    position = 0
    while position < len(item):
        value, position = _varint(item, position)
        yield value


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: an integer, or a view of bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} of field {number} is not used there")
        if position + size > len(data):
            raise ValueError(f"field {number} reaches beyond its end")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _bytes(value: Any) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer where a message was expected")
    return memoryview(value)


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_CASTAGNOLI if value & 1 else 0)
    return value


_TABLE = [_table_entry(byte) for byte in range(256)]
