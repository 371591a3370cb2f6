"""Who may import whom, read from the sources, and what an import must not drag in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vla_opt", "envs", "policies", "deploy")
OTHERS = ("envs", "policies", "deploy")
HEAVY = ("torch", "lerobot", "ray", "transformers", "mujoco", "robosuite", "libero")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, inside functions and for typing too."""
    own = module_name(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# Importer, with everything below it -> what it must not import.
FORBIDDEN = {
    "vla_opt.spectral": (*OTHERS, "lerobot", "ray", "transformers", "mujoco", "gymnasium", "numpy"),
    "vla_opt.optim": (*OTHERS, "lerobot", "ray", "transformers", "mujoco", "gymnasium", "numpy"),
    "envs": ("vla_opt", "policies", "deploy", "torch", "lerobot", "transformers", "accelerate"),
    "policies": ("vla_opt", "envs", "deploy", "ray", "mujoco", "robosuite", "libero", "gymnasium"),
}
# Of deploy only these may load torch: everything else runs on a robot's computer without it.
DEPLOY_WITH_TORCH = (
    "deploy.checkpoint_policy",
    "deploy.lerobot_robot_fr3",
    "deploy.recording",
)
# Modules of ours that vla_opt.optim may use.
OPTIM_MAY_USE = ("vla_opt.spectral", "vla_opt.optim")


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 20
    assert {p.relative_to(ROOT).parts[0] for p in FILES} >= {"vla_opt", "envs", "policies"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_arrows(path: Path) -> None:
    own = module_name(path)
    for imported in imported_modules(path):
        for importer, forbidden in FORBIDDEN.items():
            if within(own, importer):
                assert not within(imported, *forbidden), f"{own} may not import {imported}"
        if within(own, *OPTIM_MAY_USE) and within(imported, "vla_opt"):
            assert imported == "vla_opt" or within(imported, *OPTIM_MAY_USE), (
                f"{own} may not import {imported}: vla_opt.optim is a drop-in for other projects"
            )
        if within(own, "deploy") and not within(own, *DEPLOY_WITH_TORCH):
            assert not within(imported, "torch", "lerobot", "transformers", "policies", "ray"), (
                f"{own} may not import {imported}: it runs on a robot's computer"
            )
        if within(imported, "vla_opt.cli"):
            assert within(own, "vla_opt.cli"), f"{own} imports {imported}, but the roof is the roof"


def prints(path: Path) -> list[int]:
    calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
    return [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_prints(path: Path) -> None:
    if not within(module_name(path), "vla_opt.cli"):
        assert not prints(path), f"{path} prints on lines {prints(path)}: use a logger"


def loaded_after(code: str) -> tuple[set[str], float]:
    """Top-level modules loaded by ``code`` in a fresh interpreter, and its seconds."""
    report = "\nimport json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1])), time.perf_counter() - start


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import vla_opt", set()),
        ("from vla_opt.optim import Pion", {"torch"}),
        ("from vla_opt.spectral import spectral_map", {"torch"}),
        ("import envs", set()),
        ("from envs.pool import run_pool", set()),
        ("from envs.tasks import list_tasks; list_tasks('libero_object')", set()),
        ("import vla_opt.cli.main as m; m.main(['--help'])", set()),
        ("import vla_opt.evaluation.statistics", set()),
        ("import deploy.executor, deploy.fetcher, deploy.client, deploy.server", set()),
        ("import deploy.robot_env, deploy.drivers.franka_rs, deploy.sim.link", set()),
    ],
)
def test_import_stays_light(
    code: str, allowed: set[str], record_property: pytest.RecordProperty
) -> None:
    loaded, seconds = loaded_after(code)
    record_property("seconds", seconds)
    print(f"{code}: {seconds:.2f} s")
    assert not loaded & (set(HEAVY) - allowed)


@pytest.mark.sim
def test_a_simulator_process_holds_no_torch() -> None:
    code = "from envs.libero import LiberoEnv; import envs._libero_setup as s; s.import_libero()"
    loaded, _ = loaded_after(code)
    assert "robosuite" in loaded
    assert not loaded & {"torch", "lerobot", "transformers"}


def test_help_of_a_training_verb_imports_no_policy_of_lerobot() -> None:
    """They take many seconds; `import policies` registers ours without them."""
    code = """
import contextlib, io, sys
from vla_opt.cli.main import main
for verb in ("train", "compare", "quickstart"):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([verb, "--help"])
    assert "policy.type" in out.getvalue() or "policy.chunk_size" in out.getvalue(), verb
print([name for name in sys.modules if name.startswith("lerobot.policies")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"
