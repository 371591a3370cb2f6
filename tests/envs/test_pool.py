"""The pool under real faults: killed, hung, crashing and raising workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from envs._backlog import Backlog
from envs._ray_cluster import _local_cluster
from envs.pool import PoolError, run_pool


def make_worker_factory(folder: Path):
    """A worker with one behaviour per item. Defined inside, so that Ray sends it by value.

    An item "kill:3" misbehaves on its first 3 attempts; attempts are counted in files, which
    survive the process.
    """

    def make_worker():
        import os
        import signal
        import sys
        import time

        def attempt(name: str) -> int:
            path = folder / name.replace("/", "_")
            with path.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return len(path.read_text().splitlines())

        class Toy:
            def __init__(self) -> None:
                tries = attempt("constructor")
                crash = folder / "crash_constructor"
                if crash.exists() and tries <= int(crash.read_text()):
                    raise RuntimeError("no display here")

            def run(self, item):
                kind, _, times = item.partition(":")
                if attempt(item) <= int(times.split("/")[0] or 0):
                    if kind == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if kind == "hang":
                        while True:
                            time.sleep(60)
                    if kind == "raise":
                        raise ValueError(f"cannot do {item}")
                if kind == "env":
                    return os.environ.get("TOY_SETTING"), os.environ["OMP_NUM_THREADS"]
                if kind == "niceness":
                    return os.nice(0)
                if kind == "modules":
                    return sorted(sys.modules)
                return f"did {item}"

            def close(self) -> None:
                attempt("closed")

        return Toy()

    return make_worker


def run(folder, items, **options):
    return list(run_pool(items, make_worker_factory(folder), **{"num_workers": 2, **options}))


def results(outcomes):
    return {outcome.item: outcome.result for outcome in outcomes}


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_every_item_gives_exactly_one_outcome(backend, tmp_path, ray):
    items = [f"ok:{0}/{i}" for i in range(20)]
    outcomes = run(tmp_path, items, backend=backend)
    assert Counter(outcome.item for outcome in outcomes) == Counter(items)
    assert results(outcomes) == {item: f"did {item}" for item in items}
    assert all(outcome.error is None and outcome.retries == 0 for outcome in outcomes)


def test_no_items_need_no_workers(tmp_path):
    assert run(tmp_path, [], backend="ray") == []
    assert not (tmp_path / "constructor").exists()


def test_killed_worker_loses_no_item(tmp_path, ray):
    items = ["ok:0/a", "kill:1", "ok:0/b", "ok:0/c", "kill:2", "ok:0/d"]
    outcomes = run(tmp_path, items, backend="ray", max_retries=2)
    assert results(outcomes) == {item: f"did {item}" for item in items}
    assert {o.item: o.retries for o in outcomes if o.retries} == {"kill:1": 1, "kill:2": 2}


def test_item_that_kills_every_worker_ends_as_an_error_and_the_rest_is_done(tmp_path, ray):
    items = ["kill:99", *(f"ok:0/{i}" for i in range(6))]
    outcomes = {o.item: o for o in run(tmp_path, items, backend="ray", max_retries=1)}
    assert len(outcomes) == 7
    bad = outcomes.pop("kill:99")
    assert (bad.result, bad.retries) == (None, 1)
    assert "died" in bad.error
    assert all(outcome.error is None for outcome in outcomes.values())
    assert len((tmp_path / "kill:99").read_text().splitlines()) == 2


def test_hung_worker_is_killed_and_its_item_runs_again(tmp_path, ray):
    started = time.monotonic()
    outcomes = run(tmp_path, ["hang:1", "ok:0/a", "ok:0/b"], backend="ray", timeout_s=2)
    assert results(outcomes) == {i: f"did {i}" for i in ("hang:1", "ok:0/a", "ok:0/b")}
    assert time.monotonic() - started < 60
    hung = int((tmp_path / "hang:1").read_text().splitlines()[0])
    assert wait_until_gone([hung])


def test_item_that_always_hangs_ends_as_a_timeout(tmp_path, ray):
    (outcome,) = run(tmp_path, ["hang:9"], backend="ray", timeout_s=1, max_retries=0)
    assert outcome.result is None
    assert "within 1 s" in outcome.error


def test_crashed_constructor_is_tried_again(tmp_path, ray):
    (tmp_path / "crash_constructor").write_text("1")
    outcomes = run(tmp_path, ["ok:0/a", "ok:0/b"], backend="ray")
    assert results(outcomes) == {"ok:0/a": "did ok:0/a", "ok:0/b": "did ok:0/b"}
    assert all(outcome.retries == 0 for outcome in outcomes)


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_workers_that_never_start_stop_the_pool_with_the_reason(backend, tmp_path, ray):
    (tmp_path / "crash_constructor").write_text("99")
    with pytest.raises(PoolError, match="no display here"):
        run(tmp_path, ["ok:0/a", "ok:0/b"], backend=backend)


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_raising_item_is_retried_on_a_fresh_worker_then_recorded(backend, tmp_path, ray):
    outcomes = {o.item: o for o in run(tmp_path, ["raise:1", "raise:9", "ok:0"], backend=backend)}
    assert outcomes["ok:0"].error is None
    assert outcomes["raise:1"].result == "did raise:1"
    assert outcomes["raise:1"].retries == 1
    assert "cannot do raise:9" in outcomes["raise:9"].error
    assert outcomes["raise:9"].retries == 2
    assert len((tmp_path / "raise:9").read_text().splitlines()) == 3


def test_one_worker_keeps_a_group_and_two_share_the_groups(tmp_path, ray):
    items = [f"ok:0/{group}{i}" for i in range(6) for group in "ab"]
    outcomes = run(tmp_path, items, backend="serial", affinity=lambda item: item[5])
    assert [o.item[5] for o in outcomes] == ["a"] * 6 + ["b"] * 6


def test_backlog_prefers_own_group_then_an_idle_one_then_the_fullest():
    backlog = Backlog(["a1", "a2", "b1", "c1", "c2", "c3"], affinity=lambda item: item[0])
    assert backlog.take("a", Counter("c")).item == "a1"
    assert backlog.take("x", Counter("c")).item == "a2"  # a: idle and larger than b
    assert backlog.take("a", Counter("c")).item == "b1"
    assert backlog.take("b", Counter("c")).item == "c1"  # nothing else: help with c
    assert len(backlog) == 2


def test_worker_environment_is_set_before_the_worker_starts(tmp_path, ray):
    (outcome,) = run(tmp_path, ["env:0"], backend="ray", worker_env={"TOY_SETTING": "x"})
    assert outcome.result == ("x", "1")


def test_ray_workers_have_the_priority_of_their_driver(tmp_path, ray):
    [outcome] = run(tmp_path, ["niceness:0"], num_workers=1)
    assert outcome.result == os.nice(0)


def test_ray_workers_import_no_torch(tmp_path, ray):
    (outcome,) = run(tmp_path, ["modules:0"], backend="ray")
    assert "ray" in outcome.result
    assert not {"torch", "lerobot", "transformers"} & set(outcome.result)


def test_workers_are_closed_when_the_consumer_stops_early(tmp_path, ray):
    items = [f"ok:0/{i}" for i in range(20)]
    with contextlib.closing(run_pool(items, make_worker_factory(tmp_path), num_workers=2)) as pool:
        next(pool)
    pids = [int(pid) for pid in (tmp_path / "constructor").read_text().split()]
    assert pids
    assert wait_until_gone(pids)


def test_finished_pool_closes_its_workers(tmp_path, ray):
    run(tmp_path, [f"ok:0/{i}" for i in range(4)], backend="ray")
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "rya"}, "rya.*serial, ray"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"max_retries": -1}, "max_retries must be at least 0"),
        ({"timeout_s": 0}, "timeout_s must be positive"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_pool(["ok:0"], make_worker_factory(tmp_path), **options)


# -- a cluster that does not come up ------------------------------------------------------------


class SlowToStart:
    """Stands for the ray module on a crowded machine: the node misses its time a few times."""

    def __init__(self, misses):
        self.misses, self.folders, self.left = misses, [], []

    def init(self, **options):
        self.folders.append(Path(options["_temp_dir"]))
        code = "import time; time.sleep(600)"  # what a node that was given up leaves running
        self.left.append(subprocess.Popen([sys.executable, "-c", code, str(self.folders[-1])]))
        if len(self.folders) <= self.misses:
            raise RuntimeError("The current node timed out during startup.")

    def shutdown(self):
        pass


def test_cluster_that_misses_its_time_is_started_again_and_leaves_no_folder():
    slow = SlowToStart(misses=2)
    with _local_cluster(slow, num_cpus=1):
        assert len(set(slow.folders)) == 3
        assert slow.folders[-1].is_dir()
    assert not any(folder.exists() for folder in slow.folders)
    assert not any(alive(process.pid) for process in slow.left[:2])
    slow.left[2].kill()
    slow.left[2].wait()


def test_cluster_that_never_comes_up_is_an_error_that_says_what_to_do():
    slow = SlowToStart(misses=99)
    with (
        pytest.raises(PoolError, match=r"3 attempts: .*timed out.*backend=serial"),
        _local_cluster(slow, num_cpus=1),
    ):
        pytest.fail("there is no cluster")
    assert not any(folder.exists() for folder in slow.folders)


# -- a driver that ends badly: own process, own cluster -----------------------------------------

DRIVER = """
    import os, sys, time
    from pathlib import Path
    from envs.pool import run_pool

    def make_worker():
        class Slow:
            def run(self, item):
                (Path({folder!r}) / f"pid{{item}}").write_text(str(os.getpid()))
                time.sleep(0 if {quick} else 600)
                return item
            def close(self): pass
        return Slow()

    print(sorted(o.result for o in run_pool([1, 2], make_worker, num_workers=2)))
"""


def start_driver(folder: Path, quick: bool) -> subprocess.Popen:
    home, tmp = folder / "home", folder / "tmp"
    home.mkdir()
    tmp.mkdir()
    code = textwrap.dedent(DRIVER.format(folder=str(folder), quick=quick))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = set(), [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def wait_until_gone(pids) -> bool:
    return wait_until(lambda: not any(alive(pid) for pid in pids))


def test_driver_started_anywhere_leaves_no_process_and_no_file_in_home(tmp_path):
    driver = start_driver(tmp_path, quick=True)
    family: set[int] = set()
    while driver.poll() is None:
        family |= descendants(driver.pid)
        time.sleep(0.2)
    out, err = driver.communicate()
    assert out.strip() == "[1, 2]", err
    assert len(family) > 3  # the cluster was really seen
    assert wait_until_gone(family)
    assert list((tmp_path / "home").rglob("*")) == []


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=slow),
        pytest.param(signal.SIGKILL, marks=slow),  # Ray's own agents notice after 75 s
    ],
)
def test_interrupted_driver_leaves_no_orphans(how, tmp_path):
    driver = start_driver(tmp_path, quick=False)
    assert wait_until(lambda: len(list(tmp_path.glob("pid*"))) == 2)
    family = descendants(driver.pid)
    assert len(family) > 3
    driver.send_signal(how)
    driver.communicate(timeout=60)
    assert driver.returncode != 0
    assert wait_until(lambda: not any(alive(pid) for pid in family), seconds=180)
