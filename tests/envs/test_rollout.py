"""Episodes: the same numbers wherever they run, and nothing of the policy's failings hidden."""

from __future__ import annotations

import dataclasses
import functools
import io
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest

from envs._video import encode_mp4
from envs.policy_server import serve_policy
from envs.pool import PoolError, run_pool
from envs.rollout import EpisodeKey, EpisodeWorker, RolloutConfig

# -- keys ------------------------------------------------------------------------------------------


def key(init_state: int = 0, *, task_id: int = 0, trial: int = 0) -> EpisodeKey:
    return EpisodeKey(suite="libero_object", task_id=task_id, init_state=init_state, trial=trial)


def test_seed_is_a_fixed_function_of_the_key():
    assert key(17, task_id=3).seed == 238677505  # recorded numbers depend on it: never to change
    seeds = {
        key(i, task_id=t, trial=r).seed for i in range(50) for t in range(10) for r in range(4)
    }
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**31 for seed in seeds)


# -- the worker on an environment that only counts -------------------------------------------------


class CountingEnv:
    """The interface of LiberoEnv without a simulation; succeeds at step 10."""

    built: ClassVar[list[tuple[str, int]]] = []
    closed: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, task, config):
        self.spec, self.task_description, self._task = config.env_spec, f"do {task[1]}", task
        self.resets, self.chunks = [], []
        CountingEnv.built.append(task)

    def reset(self, *, seed, options):
        self.resets.append((seed, options["init_state"]))
        self.steps = 0
        return self._observation(), {"is_success": False, "steps": 0}

    def step_chunk(self, actions):
        self.chunks.append(actions)
        self.steps = min(self.steps + len(actions), 10)
        success = self.steps == 10
        info = {"is_success": success, "steps": self.steps}
        return self._observation(), float(success), success, False, info

    def _observation(self):
        image = np.full((32, 32, 3), 20 * self.steps, np.uint8)
        return {"pixels": {"image": image, "image2": image}, "agent_pos": np.zeros(8, np.float32)}

    def close(self):
        CountingEnv.closed.append(self._task)


class Recorder:
    """A policy that remembers what it saw."""

    def __init__(self, chunk):
        self.chunk, self.seen = chunk, []

    def infer(self, observations):
        self.seen.extend(observations)
        return [self.chunk for _ in observations]


@pytest.fixture
def envs(monkeypatch):
    built = []

    def make(task, config):
        built.append(CountingEnv(task, config))
        return built[-1]

    monkeypatch.setattr(CountingEnv, "built", [])
    monkeypatch.setattr(CountingEnv, "closed", [])
    return built, make


def test_worker_executes_the_asked_part_of_each_chunk_until_success(envs):
    built, make = envs
    policy = Recorder(np.arange(56).reshape(8, 7) / 100)
    result = EpisodeWorker(policy, RolloutConfig(execute_steps=3), make).run(key(5))
    assert (result.success, result.steps, result.seed) == (True, 10, key(5).seed)
    assert built[0].resets == [(key(5).seed, 5)]
    assert [len(chunk) for chunk in built[0].chunks] == [3, 3, 3, 3]
    np.testing.assert_array_equal(built[0].chunks[0], policy.chunk[:3])
    assert len(policy.seen) == 4
    assert policy.seen[0]["task"] == "do 0"
    assert len({seen["seed"] for seen in policy.seen}) == 4
    assert result.video is None


def test_worker_keeps_one_environment_per_task_and_closes_it(envs):
    _, make = envs
    worker = EpisodeWorker(Recorder(np.zeros((4, 7))), RolloutConfig(), make)
    for item in (key(0), key(1), key(0, task_id=3), key(1, task_id=3)):
        worker.run(item)
    assert CountingEnv.built == [("libero_object", 0), ("libero_object", 3)]
    assert CountingEnv.closed == [("libero_object", 0)]
    worker.close()
    assert CountingEnv.closed == CountingEnv.built


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((3, 7)), r"at least execute_steps=4 actions, .* got \(3, 7\)"),
        (np.zeros((8, 6)), r"got \(8, 6\)"),
        (np.full((8, 7), np.nan), "not finite"),
    ],
)
def test_what_is_no_chunk_of_actions_is_refused(chunk, message, envs):
    with pytest.raises(ValueError, match=message):
        EpisodeWorker(Recorder(chunk), RolloutConfig(), envs[1]).run(key())


def test_environment_other_than_the_checked_one_is_refused(envs):
    def make(task, config):
        return CountingEnv(task, dataclasses.replace(config, image_size=64))

    with pytest.raises(ValueError, match=r"images.image.height: 128 against 64"):
        EpisodeWorker(Recorder(np.zeros((8, 7))), RolloutConfig(), make).run(key())


# -- videos ----------------------------------------------------------------------------------------


def decode(video: bytes):
    import av

    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, stream.codec.name, stream.average_rate


def test_video_shows_both_views_at_every_look(envs):
    worker = EpisodeWorker(Recorder(np.zeros((8, 7))), RolloutConfig(videos="all"), envs[1])
    frames, codec, rate = decode(worker.run(key()).video)
    assert (codec, rate) == ("h264", Fraction(20, 4))
    assert len(frames) == 4  # reset, 4, 8, 10 steps
    assert frames[0].shape == (256, 512, 3)
    assert [round(frame.mean() / 20) for frame in frames] == [0, 4, 8, 10]


@pytest.mark.parametrize(("videos", "kept"), [("failures", False), ("none", False), ("all", True)])
def test_videos_of_successes_are_kept_only_on_demand(videos, kept, envs):
    worker = EpisodeWorker(Recorder(np.zeros((8, 7))), RolloutConfig(videos=videos), envs[1])
    assert (worker.run(key()).video is not None) is kept


def test_a_codec_that_fails_does_not_cost_the_episode(envs, monkeypatch):
    def broken(frames, fps):
        raise OSError("no such encoder")

    monkeypatch.setattr("envs.rollout.encode_mp4", broken)
    worker = EpisodeWorker(Recorder(np.zeros((8, 7))), RolloutConfig(videos="all"), envs[1])
    result = worker.run(key())
    assert result.success
    assert result.video is None
    assert result.video_error == "OSError: no such encoder"


def test_frames_of_odd_or_different_size():
    odd = [np.zeros((301, 401, 3), np.uint8)] * 2
    frames, _, _ = decode(encode_mp4(odd, Fraction(5)))
    assert frames[0].shape == (300, 400, 3)
    with pytest.raises(ValueError, match="one size"):
        encode_mp4([odd[0], odd[0][:100]], Fraction(5))
    with pytest.raises(ValueError, match="0 frames"):
        encode_mp4([], Fraction(5))


# -- the policy server -----------------------------------------------------------------------------


def make_policy_factory(folder):
    """A policy with fixed weights, sent to the actor by value; it can be told to die or to hang."""

    def make_policy():
        import os
        import signal
        import time

        import numpy as np

        class Linear:
            def __init__(self):
                with (folder / "built").open("a") as file:
                    file.write("x")
                rng = np.random.default_rng(0)
                self.weights = rng.normal(size=(6 + 8, 8 * 7)) / 50

            def _once(self, name):
                try:
                    (folder / name).unlink()
                except FileNotFoundError:
                    return False
                return True

            def infer(self, observations):
                if self._once("die"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if self._once("hang"):
                    time.sleep(600)
                with (folder / "batches").open("a") as file:
                    file.write(f"{len(observations)}\n")
                return [self._one(observation) for observation in observations]

            def _one(self, observation):
                views = [view.mean(axis=(0, 1)) / 255 for view in observation["pixels"].values()]
                features = np.concatenate([*views, observation["agent_pos"]])
                if observation["task"] == "fail":
                    raise ValueError("cannot do that")
                return np.tanh(features @ self.weights).reshape(8, 7)

        return Linear()

    return make_policy


def look(value: float = 0.0, task: str = "t"):
    image = np.full((8, 8, 3), 9, np.uint8)
    state = np.full(8, value, np.float32)
    return {"pixels": {"image": image, "image2": image}, "agent_pos": state, "task": task}


def test_server_answers_like_the_policy_in_process_and_gathers_requests(tmp_path, ray):
    make_policy = make_policy_factory(tmp_path)
    looks = [look(value) for value in np.linspace(-1, 1, 12)]
    with serve_policy(ray, make_policy, max_batch=4, window_s=0.2, timeout_s=60) as policy:
        answers = policy.infer(looks)
    for answer, expected in zip(answers, make_policy().infer(looks), strict=True):
        np.testing.assert_array_equal(answer, expected)
    sizes = [int(n) for n in (tmp_path / "batches").read_text().split()][
        :-1
    ]  # the last: in process
    assert sum(sizes) == 12
    assert max(sizes) == 4


def test_an_exception_of_the_policy_reaches_who_asked_and_nobody_else(tmp_path, ray):
    with serve_policy(ray, make_policy_factory(tmp_path), timeout_s=60) as policy:
        with pytest.raises(ValueError, match="cannot do that"):
            policy.infer([look(task="fail")])
        assert policy.infer([look()])[0].shape == (8, 7)


def test_dead_server_is_built_again_and_answers(tmp_path, ray):
    with serve_policy(ray, make_policy_factory(tmp_path), timeout_s=60) as policy:
        (before,) = policy.infer([look(0.5)])
        (tmp_path / "die").touch()
        (after,) = policy.infer([look(0.5)])
    np.testing.assert_array_equal(before, after)
    assert (tmp_path / "built").read_text() == "xx"


def test_several_servers_share_the_work_and_one_that_dies_is_built_again(tmp_path, ray):
    make_policy = make_policy_factory(tmp_path)
    looks = [look(value) for value in np.linspace(-1, 1, 8)]
    with serve_policy(ray, make_policy, count=2, timeout_s=60) as policy:
        first = policy.infer(looks)
        (tmp_path / "die").touch()
        second = policy.infer(looks)
    assert (tmp_path / "built").read_text() == "xxx"
    for answer, again, expected in zip(first, second, make_policy().infer(looks), strict=True):
        np.testing.assert_array_equal(answer, expected)
        np.testing.assert_array_equal(again, expected)


def test_hung_server_is_restarted(tmp_path, ray):
    with serve_policy(ray, make_policy_factory(tmp_path), timeout_s=60) as policy:
        policy.infer([look()])
        (tmp_path / "hang").touch()
        impatient = type(policy)(policy._servers, timeout_s=1.0)
        with pytest.raises(TimeoutError, match="restarted"):
            impatient.infer([look()])
        assert policy.infer([look()])[0].shape == (8, 7)


def test_policy_that_cannot_be_built_is_told_at_once(ray):
    def make_policy():
        raise ValueError("no weights here")

    with (
        pytest.raises(PoolError, match=r"could not be built: (?s:.*)no weights here"),
        serve_policy(ray, make_policy),
    ):
        pass


# -- LIBERO ----------------------------------------------------------------------------------------

SHORT = RolloutConfig(execute_steps=8, image_size=64, videos="all")
KEYS = [key(i, task_id=t) for t in (0, 3) for i in (0, 1)]


def short_env_factory(folder):
    """LIBERO episodes of 20 steps; the first worker to get into the second chunk is killed."""

    def make_env(task, config):
        import dataclasses
        import os
        import signal
        import sys

        from envs.rollout import make_libero

        env = make_libero(task, config)
        env.task = dataclasses.replace(env.task, max_steps=20)
        stock = env.step_chunk

        def step_chunk(actions):
            transition = stock(actions)
            if "torch" in sys.modules:
                (folder / "torch").touch()
            if (folder / "kill").exists() and transition[-1]["steps"] == 16:
                (folder / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return transition

        env.step_chunk = step_chunk
        return env

    return make_env


def run_libero(folder, policy, backend, num_workers):
    make_worker = functools.partial(EpisodeWorker, policy, SHORT, short_env_factory(folder))
    outcomes = run_pool(
        KEYS,
        make_worker,
        backend=backend,
        num_workers=num_workers,
        affinity=lambda item: item.task,
        timeout_s=300,
    )
    return {outcome.item: outcome for outcome in outcomes}


def numbers(outcomes):
    """All of a result but its times; the video stands for every pixel the policy looked at."""
    return {
        item: (o.result.success, o.result.steps, o.result.seed, o.result.video)
        for item, o in outcomes.items()
    }


@pytest.fixture(scope="module")
def serial_numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    outcomes = run_libero(folder, make_policy_factory(folder)(), "serial", 1)
    assert sorted(outcomes) == KEYS
    assert all(outcome.error is None for outcome in outcomes.values())
    return numbers(outcomes)


@pytest.mark.sim
def test_two_workers_give_the_numbers_of_none_even_if_one_is_killed(tmp_path, ray, serial_numbers):
    (tmp_path / "kill").touch()
    with serve_policy(ray, make_policy_factory(tmp_path), count=2, max_batch=2) as policy:
        outcomes = run_libero(tmp_path, policy, "ray", 2)
    assert not (tmp_path / "kill").exists()
    assert sum(outcome.retries for outcome in outcomes.values()) >= 1  # more if memory is short
    assert numbers(outcomes) == serial_numbers
    assert {outcome.worker for outcome in outcomes.values()} == {0, 1}
    assert not (tmp_path / "torch").exists(), "a simulation worker imported torch"


@pytest.mark.sim
@pytest.mark.slow
def test_one_worker_gives_the_numbers_of_none(tmp_path, ray, serial_numbers):
    with serve_policy(ray, make_policy_factory(tmp_path)) as policy:
        assert numbers(run_libero(tmp_path, policy, "ray", 1)) == serial_numbers


@pytest.mark.sim
def test_numbers_depend_on_what_the_policy_sees(serial_numbers):
    videos = {video for _, _, _, video in serial_numbers.values()}
    assert len(videos) == len(KEYS)
