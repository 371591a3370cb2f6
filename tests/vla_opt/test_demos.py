"""Generating demonstrations: what is kept, dropped, resumed and refused. No simulator here."""

import dataclasses
import io
import json

import numpy as np
import pytest

import vla_opt.demos as demos
from envs import demonstrations
from envs._diversity import Diversity
from envs.demonstrations import Demo, DemoKey, DemoOptions
from vla_opt._demo_staging import fingerprint, made_with
from vla_opt.cli._config import parse
from vla_opt.cli.demos import main
from vla_opt.data import build_cache
from vla_opt.demos import DemosConfig, DemosError, DemosProgress, check, generate
from vla_opt.errors import ConfigError

LENGTH, SIZE = 6, 64
NOISE = (0.0, 0.2)


def recording(key):
    rng = np.random.default_rng(key.index)
    picture = np.full((LENGTH, SIZE, SIZE, 3), 20 * key.index + 40 * key.task_id, np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        state=rng.normal(size=(LENGTH, 8)).astype(np.float32),
        action=np.full((LENGTH, 7), key.index / 10, np.float32),
        executed=np.zeros((LENGTH, 7), np.float32),
        image=picture,
        image2=picture,
    )
    return buffer.getvalue()


class FakePool:
    """Stands in for the simulators: attempts whose index is in `failing` fail."""

    def __init__(self, failing=()):
        self.failing = set(failing)
        self.ran = []
        self.die_after = None

    def __call__(self, config, options, keys):
        for key in reversed(keys):  # the order in which workers finish must not matter
            if self.die_after is not None and len(self.ran) >= self.die_after:
                raise KeyboardInterrupt
            self.ran.append(key)
            success = key.index not in self.failing
            yield Demo(
                key=key,
                success=success,
                steps=LENGTH,
                noise=options.noise_of(key),
                reason="" if success else "step limit reached",
                task=f"task {key.task_id}",
                cpu_s=0.1,
                manner=str(options.manner_of(key)),
                recording=recording(key) if success and options.record else None,
            )


@pytest.fixture
def pool(monkeypatch):
    fake = FakePool()
    monkeypatch.setattr(demos, "_run", fake)
    return fake


@pytest.fixture
def config(tmp_path):
    return DemosConfig(
        task_ids=(0, 3),
        per_task=2,
        root=tmp_path / "demos",
        image_size=SIZE,
        noise_levels=NOISE,
        backend="serial",
    )


def test_the_data_set_holds_the_successes_and_counts_the_failures(config, pool):
    pool.failing = {1}
    summary = generate(config)
    assert (summary.episodes, summary.frames) == (4, 4 * LENGTH)
    assert [(t.task_id, t.successes, t.attempts) for t in summary.tasks] == [(0, 2, 3), (3, 2, 3)]
    assert "2/3" in summary.table()
    assert "4/6" in summary.table()
    cache = build_cache(config.root, config.root.parent / "cache")
    np.testing.assert_allclose(cache.action[::LENGTH, 0], [0.0, 0.2, 0.0, 0.2], atol=1e-6)
    assert len(cache.action) == 4 * LENGTH
    record = json.loads((config.root / "meta" / "demos.json").read_text())
    assert record["keys"][1] == "libero_object/0/demo/2"
    assert not config.staging.exists()


def test_the_environment_contract_travels_with_the_data(config, pool):
    generate(config)
    spec = json.loads((config.root / "meta" / "env_spec.json").read_text())
    assert spec["render_profile"] == config.render_profile
    assert spec["images"]["image2"] == {"height": SIZE, "width": SIZE, "rotation_deg": 180}


def test_an_interrupted_generation_continues_where_it_was(config, pool):
    pool.die_after = 3
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    assert not config.root.exists()
    first = list(pool.ran)
    pool.die_after = None
    steps = []
    summary = generate(config, steps.append)
    assert summary.episodes == 4
    assert len(pool.ran) == 4
    assert not set(first) & set(pool.ran[3:])
    assert [s.done for s in steps if s.stage == "write"] == [1, 2, 3, 4]
    assert steps[0] == DemosProgress(stage="record", done=4, total=4, success=True)


def test_a_recording_that_was_lost_is_made_again(config, pool):
    generate(dataclasses.replace(config, keep_staging=True))
    next(config.staging.glob("*-00001.npz")).unlink()
    (config.root / "meta" / "demos.json").unlink()
    for path in sorted(config.root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    generate(config)
    assert [key.index for key in pool.ran[4:]] == [1]


def test_a_finished_data_set_is_not_made_again(config, pool):
    generate(config)
    again = generate(config)
    assert len(pool.ran) == 4
    assert again.episodes == 4


@pytest.mark.parametrize("change", [{"per_task": 1}, {"noise_levels": (0.3,)}, {"task_ids": (0,)}])
def test_other_demonstrations_in_the_same_place_are_refused(config, pool, change):
    generate(config)
    with pytest.raises(ConfigError, match="Choose another --root"):
        generate(dataclasses.replace(config, **change))


def test_data_sets_from_before_there_was_diversity_are_known_again():
    suites = ["libero_object", "libero_spatial"]
    assert fingerprint(DemoOptions(), suites) == "3e613ff464cb5a5a"
    varied = DemoOptions(diversity=Diversity(speeds=(0.7,)))
    assert fingerprint(varied, suites) != fingerprint(DemoOptions(), suites)
    assert made_with(varied, suites)["diversity"]["speeds"] == (0.7,)


def test_diversity_is_set_on_the_command_line_and_kept_with_every_attempt(config, pool):
    argv = ["--diversity.speeds=0.7,1.0", "--diversity.perturbations=none,robot"]
    parsed = parse(DemosConfig, argv)
    assert parsed.diversity == Diversity(speeds=(0.7, 1.0), perturbations=("none", "robot"))
    generate(dataclasses.replace(config, diversity=parsed.diversity, keep_staging=True))
    rows = (config.staging / "attempts.jsonl").read_text().splitlines()
    manners = {json.loads(row)["key"]["index"]: json.loads(row)["manner"] for row in rows}
    assert manners == {0: "speed 0.7", 1: "speed 0.7"}
    with pytest.raises(ConfigError, match="Choose another --root"):
        generate(config)


def test_demonstrations_of_another_expert_are_refused_and_named(config, pool, monkeypatch):
    generate(config)
    monkeypatch.setattr("vla_opt._demo_staging.EXPERT_VERSION", 99)
    with pytest.raises(ConfigError, match=r"'expert': \d+.*than were asked for.*'expert': 99"):
        generate(config)


def test_demonstrations_are_refused_for_what_changed_in_their_own_suite(config, pool, monkeypatch):
    generate(config)
    monkeypatch.setitem(demonstrations.SUITE_VERSIONS, "libero_10", 99)
    assert generate(config).root is not None
    monkeypatch.setitem(demonstrations.SUITE_VERSIONS, config.suites[0], 99)
    with pytest.raises(ConfigError, match=r"than were asked for.*'expert_of'.*99"):
        generate(config)


def test_staged_attempts_of_other_options_are_refused(config, pool):
    pool.die_after = 1
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    with pytest.raises(ConfigError, match="demos_staging"):
        generate(dataclasses.replace(config, image_size=32))


def test_an_expert_that_always_fails_ends_with_its_reasons(config, pool):
    pool.failing = set(range(1000))
    with pytest.raises(DemosError, match=r"0/\d+ attempts.*step limit reached"):
        generate(config)


def test_check_measures_the_undisturbed_expert_and_records_nothing(config, pool):
    pool.failing = {1}
    summary = check(dataclasses.replace(config, per_task=4))
    assert [(t.successes, t.attempts) for t in summary.tasks] == [(3, 4), (3, 4)]
    assert summary.root is None
    assert not config.root.exists()
    assert not config.staging.exists()


def test_the_verb_prints_the_table(config, pool, capsys):
    argv = ["--check=true", "--task_ids=0", "--per_task=2", f"--root={config.root}"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "pick up the alphabet soup" in out
    assert "2/2" in out


@pytest.mark.parametrize("bad", [{"per_task": 0}, {"noise_levels": ()}, {"suites": ()}])
def test_a_configuration_that_cannot_work_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DemosConfig(**bad)


def test_staging_survives_a_killed_writer(config, pool):
    pool.die_after = 2
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    with open(config.staging / "attempts.jsonl", "a") as file:
        file.write('{"key": {"suite": "libero_obj')  # half a row
    pool.die_after = None
    assert generate(config).episodes == 4


def test_keys_are_the_lowest_free_indices(config, pool):
    generate(config)
    assert sorted(pool.ran) == [
        DemoKey(suite="libero_object", task_id=t, index=i) for t in (0, 3) for i in (0, 1)
    ]
