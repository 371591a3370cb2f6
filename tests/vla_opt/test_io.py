"""Files are whole or absent, whatever happens while they are written."""

import errno
import os
from pathlib import Path

import pytest

from vla_opt import io


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_atomic_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    io.atomic_write_json(path, {"x": 1, "name": "é"})
    io.atomic_write_json(path, {"x": 2})
    assert path.read_text() == '{\n  "x": 2\n}\n'
    assert os.listdir(path.parent) == ["b.json"]


def test_full_disk_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    io.atomic_write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: No space left.*Free space") as info:
        io.atomic_write_text(path, "new")
    assert info.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"step": n, "text": "a\nb"} for n in range(3)]
    for row in rows:
        io.append_jsonl(path, row)
    assert io.read_jsonl(path) == rows
    assert io.read_jsonl(tmp_path / "absent.jsonl") == []


def test_half_last_line_is_ignored_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    io.append_jsonl(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert io.read_jsonl(path) == [{"step": 1}]
    io.append_jsonl(path, {"step": 2})
    assert io.read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_half_line_longer_than_one_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    io.append_jsonl(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b"x" * 200_000)
    io.append_jsonl(path, {"step": 2})
    assert io.read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_damaged_earlier_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2.*nonsense"):
        io.read_jsonl(path)


def test_row_that_does_not_fit_on_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    io.append_jsonl(path, {"step": 1})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="cannot append to"):
        io.append_jsonl(path, {"step": 2})
    assert path.read_bytes() == before


def test_filter_keeps_bytes_of_the_rows_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step":1}\n{"step": 2 }\n{"step":3}\n{"ste')
    assert io.filter_jsonl(path, lambda row: row["step"] <= 2) == 1
    assert path.read_bytes() == b'{"step":1}\n{"step": 2 }\n'


def test_error_within_an_error_names_the_outer_path_once(tmp_path: Path) -> None:
    with (
        pytest.raises(io.StorageError) as info,
        io.explain_os_errors("write", tmp_path / "outer"),
        io.explain_os_errors("write", tmp_path / "inner"),
    ):
        full_disk()
    assert str(info.value) == (
        f"cannot write {tmp_path / 'outer'}: No space left on device. "
        "Free space on that disk or choose another folder, then run again."
    )
