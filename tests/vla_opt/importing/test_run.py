"""Imports, whatever the format."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_opt.errors import ConfigError, DataError
from vla_opt.importing import ImportConfig
from vla_opt.importing.config import detect_format


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
