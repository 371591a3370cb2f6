"""Where a result comes from: code version, package versions, machine, command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "vla-opt",
    "torch",
    "lerobot",
    "transformers",
    "accelerate",
    "mujoco",
    "robosuite",
    "hf-libero",
    "ray",
    "numpy",
    "av",
)
"""Distributions whose version can change a result."""


def run_metadata() -> dict[str, Any]:
    """Return what identifies the code and the machine of a run, ready for JSON.

    Costs tens of milliseconds and imports none of the packages it names.
    """
    return {
        "time_utc": utc_now(),
        "git_commit": git_commit(),
        "git_dirty": git_dirty(),
        "versions": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "command": command_line(),
    }


def utc_now() -> str:
    """Return the present time in UTC as ISO 8601 with seconds, for example 2026-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each distribution, None for one that is absent."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def versions_line() -> str:
    """Return what code is running on one line: the commit, and the packages that are installed.

    A tree that differs from its commit says so, for example "1639c1cf2aa0 changed, torch 2.11.0".
    """
    commit = git_commit()
    parts = [f"{commit[:12]}{' changed' if git_dirty() else ''}"] if commit else []
    installed = package_versions().items()
    return ", ".join(parts + [f"{name} {version}" for name, version in installed if version])


def git_commit() -> str | None:
    """Return the commit of the source tree this package was imported from.

    None where there is none: an installed wheel, or no git program.
    """
    return _git("rev-parse", "HEAD")


def git_dirty() -> bool | None:
    """Return whether tracked files differ from the commit; None where there is no commit."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the name is not to be had."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """Return the command of this process as one could type it again."""
    program = Path(sys.argv[0] if sys.argv else "")
    is_ours = program.parent == Path(__file__).parent / "cli"  # python -m vla_opt.cli.main
    return shlex.join(["vla-opt" if is_ours else program.name or "python", *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    """Run git on this package's source tree; None if this file is not tracked there."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # do not climb into a repository that merely contains us
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
