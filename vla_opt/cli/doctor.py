"""``vla-opt doctor``: does this machine have what the rest needs, and if not, what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_opt.doctor import Check

HELP = "check this machine: rendering, assets, encoders, disk, memory; say what mends it"

_MARKS = {"ok": "ok  ", "warning": "warn", "failure": "FAIL"}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check this machine.

    Attributes:
        output_dir: Where results will be written.
    """

    output_dir: Path = Path("runs")


def main(argv: Sequence[str]) -> int:
    """Print one line per check; 1 if any failed."""
    from vla_opt.cli._config import parse

    return report(parse(DoctorConfig, argv).output_dir)


def show(check: Check) -> None:
    """Print one check, and what mends it."""
    print(f"{_MARKS[check.status]}  {check.name:<10} {check.found}", flush=True)
    if check.remedy:
        print(f"      {'':<10} -> {check.remedy}", flush=True)


def report(output_dir: Path) -> int:
    """Run and print the checks; 0 if the machine will do, else 1."""
    from vla_opt.doctor import examine, healthy

    checks = []
    for check in examine(output_dir):
        checks.append(check)
        show(check)
    if not healthy(checks):
        print("\nMend what failed, then run `vla-opt doctor` again.")
        return 1
    return 0
