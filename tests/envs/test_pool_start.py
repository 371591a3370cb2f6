"""What workers do while the pool waits for something else: they start, and prepare."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from envs.pool import PoolError, run_pool
from envs.rollout import EpisodeKey, EpisodeWorker, RolloutConfig
from envs.standing_pool import standing_pool


def make_worker_factory(folder: Path, kill: str = "", fail: str = ""):
    """Workers that write down what they do; an item named `kill` or `fail` goes wrong once."""

    def make_worker():
        class Careful:
            def _note(self, what: str) -> None:
                with (folder / "notes").open("a") as file:
                    file.write(f"{os.getpid()} {what}\n")

            def prepare(self, item: str) -> None:
                self._note(f"prepare {item}")
                if item == kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                if item == fail:
                    raise ValueError("not prepared")

            def run(self, item: str) -> int:
                self._note(f"run {item}")
                return os.getpid()

            def close(self) -> None:
                pass

        return Careful()

    return make_worker


def notes(folder: Path) -> list[list[str]]:
    file = folder / "notes"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_notes(folder: Path, count: int) -> None:
    end = time.monotonic() + 60
    while len(notes(folder)) < count:
        assert time.monotonic() < end, "the workers did not prepare"
        time.sleep(0.05)


def run(items, make_worker, wait_for, **options):
    return list(
        run_pool(
            items,
            make_worker,
            num_workers=2,
            affinity=lambda item: item[0],
            wait_for=wait_for,
            **options,
        )
    )


def test_workers_prepare_for_the_groups_they_will_work_on(tmp_path, ray):
    before = []

    def wait_for():
        wait_for_notes(tmp_path, 2)
        before.extend(notes(tmp_path))

    outcomes = run(["a1", "a2", "b1", "b2"], make_worker_factory(tmp_path), wait_for)
    prepared = {pid: item for pid, what, item in before}
    assert sorted(prepared.values()) == ["a1", "b1"]
    assert [what for _, what, _ in before] == ["prepare", "prepare"]  # nothing ran meanwhile
    assert {o.item: o.error for o in outcomes} == dict.fromkeys(["a1", "a2", "b1", "b2"])
    for outcome in outcomes:
        if outcome.item in ("a1", "b1"):
            assert prepared[str(outcome.result)] == outcome.item


@pytest.mark.parametrize("trouble", [{"kill": "a1"}, {"fail": "a1"}])
def test_what_goes_wrong_in_preparing_costs_no_item(trouble, tmp_path, ray):
    outcomes = run(
        ["a1", "b1"],
        make_worker_factory(tmp_path, **trouble),
        lambda: wait_for_notes(tmp_path, 2),
        max_retries=1,
    )
    assert {o.item: o.error for o in outcomes} == {"a1": None, "b1": None}
    ran, prepared = (
        {pid for pid, *what in notes(tmp_path) if what == [verb, "a1"]}
        for verb in ("run", "prepare")
    )
    assert (ran == prepared) == ("fail" in trouble)  # the killed one was replaced


def test_a_wait_that_fails_ends_the_pool_before_any_item_runs(tmp_path, ray):
    def wait_for():
        raise PoolError("no policy")

    for backend in ("ray", "serial"):
        with pytest.raises(PoolError, match="no policy"):
            run(["a1", "b1"], make_worker_factory(tmp_path), wait_for, backend=backend)
    assert not [what for _, what, _ in notes(tmp_path) if what == "run"]


def test_an_episode_finds_the_environment_that_was_prepared():
    built = []

    class Env:
        spec = RolloutConfig().env_spec

        def reset(self, **options):
            raise RuntimeError("far enough")

        def close(self):
            pass

    def make_env(task, config):
        built.append(task)
        return Env()

    worker = EpisodeWorker(None, RolloutConfig(), make_env)
    key = EpisodeKey(suite="libero_object", task_id=3, init_state=0)
    worker.prepare(key)
    assert built == [("libero_object", 3)]
    with pytest.raises(RuntimeError, match="far enough"):
        worker.run(key)
    assert built == [("libero_object", 3)]


def test_a_standing_pool_waits_in_its_first_list_alone(tmp_path, ray):
    waited = []

    def wait_for():
        wait_for_notes(tmp_path, 2)
        waited.append(notes(tmp_path))

    options = {"num_workers": 2, "affinity": lambda item: item[0], "wait_for": wait_for}
    with standing_pool(make_worker_factory(tmp_path), ray=ray, **options) as pool:
        pids = {str(outcome.result) for items in (["a1", "b1"],) * 2 for outcome in pool(items)}
    (before,) = waited
    assert sorted(what for _, *what in before) == [["prepare", "a1"], ["prepare", "b1"]]
    assert pids <= {pid for pid, *_ in before}  # the workers that prepared stay
    assert [what for _, what, _ in notes(tmp_path)[2:]] == ["run"] * 4


def test_a_standing_pool_in_this_process_waits_too():
    class Worker:
        run = staticmethod(str)
        close = staticmethod(lambda: None)

    waited = []
    with standing_pool(Worker, wait_for=lambda: waited.append(1)) as pool:
        assert [o.result for items in ([1], [2, 3]) for o in pool(items)] == ["1", "2", "3"]
    assert waited == [1]
