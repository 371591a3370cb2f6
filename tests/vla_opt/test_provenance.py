"""Provenance names the code and machine of a run, and never fails where something is missing."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vla_opt import provenance


def test_metadata_is_json_and_names_versions_machine_and_command() -> None:
    found = json.loads(json.dumps(provenance.run_metadata()))
    assert found["versions"]["torch"] == metadata.version("torch")
    assert set(found["versions"]) == set(provenance.PACKAGES)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu_count"] >= 1
    assert found["time_utc"].endswith("Z")


def test_absent_packages_are_none_not_an_error() -> None:
    assert provenance.package_versions(["numpy", "no-such-distribution"])["numpy"]
    assert provenance.package_versions(["no-such-distribution"]) == {"no-such-distribution": None}


@pytest.fixture
def source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository that holds a copy of the module's path."""
    module = tmp_path / "vla_opt" / "provenance.py"
    module.parent.mkdir()
    module.write_text("# code\n")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def _git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_dirty_state_of_the_source_tree(source_tree: Path) -> None:
    _git(source_tree, "init", "-q")
    _git(source_tree, "add", ".")
    _git(source_tree, "commit", "-q", "-m", "first")
    assert provenance.git_commit() == _git(source_tree, "rev-parse", "HEAD")
    assert provenance.git_dirty() is False
    (source_tree / "untracked.txt").write_text("a run leaves files")
    assert provenance.git_dirty() is False
    (source_tree / "vla_opt" / "provenance.py").write_text("# changed\n")
    assert provenance.git_dirty() is True


def test_outside_a_repository_there_is_no_commit(source_tree: Path) -> None:
    assert provenance.git_commit() is None
    assert provenance.git_dirty() is None


def test_versions_in_one_line_name_the_commit_and_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provenance, "git_commit", lambda: "0123456789abcdef")
    monkeypatch.setattr(provenance, "git_dirty", lambda: True)
    monkeypatch.setattr(provenance, "package_versions", lambda: {"torch": "2.11.0", "ray": None})
    assert provenance.versions_line() == "0123456789ab changed, torch 2.11.0"
    monkeypatch.setattr(provenance, "git_commit", lambda: None)
    assert provenance.versions_line() == "torch 2.11.0"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_commit() is None


def test_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = str(Path(provenance.__file__).parent / "cli" / "main.py")
    for program in ("/opt/venv/bin/vla-opt", module):
        monkeypatch.setattr(sys, "argv", [program, "eval", "--note=two words"])
        assert provenance.command_line() == "vla-opt eval '--note=two words'"


def test_import_is_light() -> None:
    code = (
        "import sys, vla_opt.provenance, vla_opt.evaluation\n"
        "heavy = {'torch', 'lerobot', 'ray', 'mujoco', 'transformers', 'matplotlib', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
