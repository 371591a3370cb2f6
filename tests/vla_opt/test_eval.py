"""Evaluating checkpoints: refused, resumed, repeated, and the same wherever the episodes run."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.errors import UnknownNameError
from envs.rollout import EpisodeWorker, RolloutConfig
from envs.spec import EnvSpec
from vla_opt.checkpoint import CheckpointError, write_checkpoint
from vla_opt.cli import main as cli
from vla_opt.evaluation import runner
from vla_opt.evaluation.config import EvalConfig, episode_keys
from vla_opt.evaluation.contract import ContractError, check_contract, open_checkpoint
from vla_opt.evaluation.inference import CheckpointPolicy
from vla_opt.evaluation.records import load_records
from vla_opt.evaluation.runner import EvalError, evaluate
from vla_opt.provenance import versions_line

SIZE = 64


# -- checkpoints -----------------------------------------------------------------------------------


def fill_checkpoint(folder: Path, spec: EnvSpec | None = None) -> None:
    """Write a small policy with fixed weights as the trainer does."""
    from lerobot.configs import FeatureType, PolicyFeature

    from policies import (
        VLAAdapterConfig,
        VLAAdapterPolicy,
        make_vla_adapter_pre_post_processors,
    )

    torch.manual_seed(0)
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE))
    config = VLAAdapterConfig(
        backbone="compact",
        image_size=SIZE,
        device="cpu",
        num_queries=2,
        width=32,
        num_layers=1,
        num_heads=2,
        input_features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
    )
    policy = VLAAdapterPolicy(config)
    with torch.no_grad():  # a fresh output layer may be zero, and answer the same to everything
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    stats = {
        name: {"mean": torch.full((n,), 0.1), "std": torch.full((n,), 2.0)}
        for name, n in (("observation.state", 8), ("action", 7))
    }
    pretrained = folder / "pretrained_model"
    pretrained.mkdir()
    policy.save_pretrained(pretrained)
    for processor in make_vla_adapter_pre_post_processors(config, stats):
        processor.save_pretrained(pretrained)
    spec = spec or RolloutConfig(image_size=SIZE).env_spec
    (pretrained / "env_spec.json").write_text(json.dumps(spec.to_dict()))


@pytest.fixture(scope="module")
def master_run(tmp_path_factory) -> Path:
    """A run with the checkpoints 2 and 4; copy before changing."""
    run = tmp_path_factory.mktemp("runs") / "master"
    for step in (2, 4):
        write_checkpoint(run / "train" / "checkpoints", step, fill_checkpoint)
    return run


@pytest.fixture
def run(master_run, tmp_path) -> Path:
    return shutil.copytree(master_run, tmp_path / "run", symlinks=True)


@pytest.fixture
def checkpoint(run) -> Path:
    return run / "train" / "checkpoints" / "000004"


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without_manifest(checkpoint: Path) -> Path:
    """The bare lerobot folder, free to be edited."""
    return shutil.copytree(checkpoint / "pretrained_model", checkpoint.parents[2] / "bare")


@pytest.mark.parametrize("given", ["", "train/checkpoints", "train/checkpoints/last"])
def test_run_folder_stands_for_its_last_checkpoint(given, run):
    found = open_checkpoint(run / given)
    assert found.folder.resolve() == run / "train" / "checkpoints" / "000004" / "pretrained_model"
    assert found.notes == ()
    assert found.image_size == SIZE


def test_hash_follows_the_weights_alone(run, checkpoint):
    before = open_checkpoint(checkpoint).sha256
    bare = without_manifest(checkpoint)
    (bare / "README.md").write_text("hello")
    assert open_checkpoint(bare).sha256 == before
    weights = bytearray((bare / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (bare / "model.safetensors").write_bytes(weights)
    assert open_checkpoint(bare).sha256 != before


@pytest.mark.parametrize("given", ["", "train/checkpoints/000004"])
def test_damaged_checkpoint_is_passed_over_and_said(given, run, checkpoint):
    weights = checkpoint / "pretrained_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = open_checkpoint(run / given)
    assert found.folder.parent.name == "000002"
    assert "000004" in found.notes[0]
    assert "bytes" in found.notes[0]
    assert "000002" in found.notes[-1]


def test_no_whole_checkpoint_is_an_error(run, checkpoint):
    for path in checkpoint.parent.glob("0*"):
        (path / "pretrained_model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"000004.*No checkpoint in .* is whole"):
        open_checkpoint(checkpoint)


def test_missing_checkpoint_names_the_nearest(run, checkpoint):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*000006.*Did you mean.*00000"):
        open_checkpoint(checkpoint.with_name("000006"))
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nowhere"):
        open_checkpoint(run / "nowhere" / "at" / "all")


def test_checkpoints_of_lerobots_trainer_are_never_renamed(run, checkpoint):
    for path in checkpoint.parent.glob("0*"):
        (path / "manifest.json").unlink()
    assert open_checkpoint(run).folder.parent.name == "000004"
    assert open_checkpoint(checkpoint).folder == checkpoint / "pretrained_model"
    assert sorted(p.name for p in checkpoint.parent.glob("0*")) == ["000002", "000004"]


# -- the contract ----------------------------------------------------------------------------------

ENV = RolloutConfig(image_size=SIZE).env_spec


def test_fitting_checkpoint_passes_without_a_word(checkpoint):
    assert check_contract(open_checkpoint(checkpoint), ENV, execute_steps=8) == []


def shape(kind: str, *sizes: int) -> dict:
    return {"type": kind, "shape": list(sizes)}


@pytest.mark.parametrize(
    ("key", "feature", "message"),
    [
        (
            "observation.images.image",
            shape("VISUAL", 3, 224, 224),
            r"observation.images.image: shape \[3, 224, 224\] against \[3, 64, 64\]",
        ),
        (
            "observation.images.wrist",
            shape("VISUAL", 3, 64, 64),
            r"observation.images.wrist: wanted, but absent.*Valid: observation.images.image",
        ),
        ("observation.state", shape("STATE", 9), r"observation.state: shape \[9\] against \[8\]"),
        ("action", shape("ACTION", 14), r"action: shape \[14\] against \[7\]"),
    ],
)
def test_features_that_do_not_fit_are_refused_with_the_difference(
    key, feature, message, checkpoint
):
    bare = without_manifest(checkpoint)
    side = "output_features" if key == "action" else "input_features"
    features = json.loads((bare / "config.json").read_text())[side]
    change_json(bare / "config.json", **{side: {**features, key: feature}})
    with pytest.raises(ContractError, match=message):
        check_contract(open_checkpoint(bare), ENV, execute_steps=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 2}, "chunk_size: 2 against execute_steps 4"),
        ({"n_obs_steps": 2}, "n_obs_steps: 2 against 1"),
    ],
)
def test_chunks_and_histories_that_do_not_fit_are_refused(changes, message, checkpoint):
    bare = without_manifest(checkpoint)
    change_json(bare / "config.json", **changes)
    with pytest.raises(ContractError, match=message):
        check_contract(open_checkpoint(bare), ENV, execute_steps=4)


def test_equal_shapes_of_other_meaning_are_refused(checkpoint):
    bare = without_manifest(checkpoint)
    change_json(bare / "env_spec.json", control_hz=10, action_names=list("abcdefg"))
    with pytest.raises(ContractError, match=r"action_names: .*'a'.*\n.*control_hz: 10 against 20"):
        check_contract(open_checkpoint(bare), ENV, execute_steps=4)


def test_another_renderer_is_a_warning(checkpoint):
    fast = dataclasses.replace(ENV, render_profile="fast")
    (warning,) = check_contract(open_checkpoint(checkpoint), fast, execute_steps=4)
    assert "exact against fast" in warning


# -- inference -------------------------------------------------------------------------------------


def look(seed: int, task: str = "pick up the soup"):
    rng = np.random.default_rng(seed)
    pixels = {
        name: rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8) for name in ("image", "image2")
    }
    state = rng.normal(size=8).astype(np.float32)
    return {"pixels": pixels, "agent_pos": state, "task": task, "seed": seed}


LOOKS = [look(i, task) for i, task in enumerate(["pick up the soup", "open the drawer"] * 3)]


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_answers_do_not_depend_on_order_or_company(checkpoint):
    policy = CheckpointPolicy(checkpoint)
    together = policy.infer(LOOKS)
    assert together[0].shape == (8, 7)
    assert len({chunk.tobytes() for chunk in together}) == len(LOOKS)
    assert same(together[::-1], policy.infer(LOOKS[::-1]))
    assert same(together, [policy.infer([one])[0] for one in LOOKS])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_padded_batches_give_the_same_bits_in_any_company(device, checkpoint):
    policy = CheckpointPolicy(checkpoint, batch_size=4, device=device)
    alone = [policy.infer([one])[0] for one in LOOKS]
    assert same(alone, policy.infer(LOOKS))
    assert same(alone[::-1], policy.infer(LOOKS[::-1]))
    np.testing.assert_allclose(alone, CheckpointPolicy(checkpoint).infer(LOOKS), atol=1e-4)


def test_policy_answers_with_what_the_model_says_in_units_of_the_action(checkpoint):
    """The same by hand: normalise the state, scale the images, undo the action's statistics."""
    from policies import VLAAdapterPolicy

    model = VLAAdapterPolicy.from_pretrained(checkpoint / "pretrained_model")
    one = LOOKS[0]
    batch = {
        f"observation.images.{name}": torch.from_numpy(view).permute(2, 0, 1)[None] / 255
        for name, view in one["pixels"].items()
    }
    state = torch.from_numpy(one["agent_pos"])[None]
    batch |= {"observation.state": (state - 0.1) / (2.0 + 1e-8), "task": [one["task"]]}
    with torch.inference_mode():
        expected = model.predict_action_chunk(batch)[0].numpy()
    (answer,) = CheckpointPolicy(checkpoint).infer([one])
    np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_what_a_policy_samples_follows_the_seed_and_leaves_torch_alone(checkpoint, monkeypatch):
    policy = CheckpointPolicy(checkpoint, num_threads=1)
    monkeypatch.setattr(policy._policy, "predict_action_chunk", lambda batch: torch.randn(1, 8, 7))
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = policy.infer(LOOKS)
    torch.testing.assert_close(torch.randn(3), expected, rtol=0, atol=0)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert same(first[::-1], policy.infer(LOOKS[::-1]))
    assert not np.array_equal(first[0], first[1])


def test_a_policy_of_lerobot_itself_can_be_evaluated(tmp_path):
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE))
    config = ACTConfig(
        device="cpu",
        pretrained_backbone_weights=None,
        push_to_hub=False,
        chunk_size=8,
        n_action_steps=8,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        input_features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
    )
    stats = {
        "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
        "action": {"mean": torch.full((7,), 100.0), "std": torch.ones(7)},
    }
    ACTPolicy(config).save_pretrained(tmp_path)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(tmp_path)
    assert check_contract(open_checkpoint(tmp_path), ENV, execute_steps=8) == []
    policy = CheckpointPolicy(tmp_path)
    assert policy.spec is None
    (chunk,) = policy.infer([LOOKS[0]])
    assert chunk.shape == (8, 7)
    assert np.all(np.abs(chunk - 100) < 50)  # the action's mean was added back


# -- which episodes --------------------------------------------------------------------------------


def test_episodes_are_the_fixed_initial_states_of_each_task():
    config = EvalConfig(suites=("libero_object", "libero_goal"), task_ids=(0, 3), episodes=2)
    keys = [str(key) for key in episode_keys(config)]
    assert keys == [
        f"{suite}/{task}/{state}/0"
        for suite in ("libero_object", "libero_goal")
        for task in (0, 3)
        for state in (0, 1)
    ]
    assert len(episode_keys(EvalConfig(episodes=50))) == 500


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"suites": ("libero_objct",)}, UnknownNameError, "Did you mean 'libero_object'"),
        ({"task_ids": (10,)}, UnknownNameError, "tasks 0 to 9, but task_id=10"),
        ({"episodes": 51}, ValueError, "has 50 fixed initial states"),
    ],
)
def test_episodes_that_do_not_exist_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        episode_keys(EvalConfig(**changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [("episodes", 0), ("num_workers", 0), ("max_retries", -1), ("timeout_s", 0), ("suites", ())],
)
def test_configurations_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        EvalConfig(**{name: value})


# -- the runner, on an environment without a simulation --------------------------------------------


def config_of(checkpoint: Path, **changes) -> EvalConfig:
    defaults = {"checkpoint": checkpoint, "task_ids": (0, 3), "episodes": 2, "backend": "serial"}
    return EvalConfig(**{**defaults, **changes})


def test_every_episode_has_a_row_and_every_failure_a_video(run, checkpoint, quick):
    seen = []
    summary = evaluate(config_of(checkpoint), seen.append)
    assert summary.output_dir == run / "eval"
    assert (summary.successes, summary.scored, summary.errors) == (2, 4, 0)
    rows = load_records(run / "eval" / "episodes.jsonl")
    assert list(summary.records) == sorted(rows, key=lambda row: row.key)
    row = rows[1]
    assert (row.suite, row.task_id, row.init_state, row.outcome) == (
        "libero_object",
        0,
        1,
        "failure",
    )
    assert row.language == "pick up the alphabet soup and place it in the basket"
    assert row.video == "videos/libero_object/0_1_0.mp4"
    assert (run / "eval" / row.video).stat().st_size > 500
    assert [r.video for r in rows if r.success] == [None, None]
    assert [(now.done, now.successes) for now in seen] == [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2)]
    metadata = json.loads((run / "eval" / "metadata.json").read_text())
    assert metadata["episodes_planned"] == 4
    assert metadata["config_hash"] == row.config_hash
    assert f"torch {metadata['versions']['torch']}," in row.versions
    assert row.versions == versions_line()
    assert (run / "eval" / "config.yaml").read_text().startswith("checkpoint:")


def test_interrupted_evaluation_goes_on_where_it_was(run, checkpoint, quick):
    def interrupt(now):
        if now.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(config_of(checkpoint), interrupt)
    rows = run / "eval" / "episodes.jsonl"
    before = rows.read_bytes()
    assert before.count(b"\n") == 2
    rows.write_bytes(before + b'{"suite":"libero_obj')  # and killed within a row
    seen = []
    summary = evaluate(config_of(checkpoint), seen.append)
    assert rows.read_bytes().startswith(before)
    assert (seen[0].resumed, seen[0].successes, seen[-1].done) == (2, 1, 4)
    assert (summary.successes, summary.scored) == (2, 4)
    metadata = json.loads((run / "eval" / "metadata.json").read_text())
    assert [session["episodes_planned"] for session in metadata["earlier_sessions"]] == [4]


def test_finished_evaluation_runs_and_writes_nothing_again(run, checkpoint, quick, monkeypatch):
    first = evaluate(config_of(checkpoint))
    before = {p: p.read_bytes() for p in (run / "eval").iterdir() if p.is_file()}
    quick.clear()
    monkeypatch.setattr(
        "vla_opt.evaluation.runner._build_policy", lambda *a, **k: pytest.fail("not needed")
    )
    assert evaluate(config_of(checkpoint, num_workers=7, videos="all")).records == first.records
    assert quick == []
    assert {p: p.read_bytes() for p in (run / "eval").iterdir() if p.is_file()} == before


def test_evaluation_can_be_extended(checkpoint, quick):
    first = evaluate(config_of(checkpoint))
    longer = evaluate(config_of(checkpoint, episodes=4))
    assert len(longer.records) == 8
    assert set(first.records) < set(longer.records)


@pytest.mark.parametrize("changes", [{"execute_steps": 8}, {"policy_batch": 2}])
def test_rows_of_another_evaluation_are_never_mixed_in(changes, run, checkpoint, quick):
    evaluate(config_of(checkpoint))
    before = {p: p.read_bytes() for p in (run / "eval").iterdir() if p.is_file()}
    name, value = next(iter(changes.items()))
    with pytest.raises(EvalError, match=rf"another evaluation \({name}: \d then, {value} now\)"):
        evaluate(config_of(checkpoint, **changes))
    assert {p: p.read_bytes() for p in (run / "eval").iterdir() if p.is_file()} == before


def test_another_policy_is_another_evaluation(run, checkpoint, quick):
    evaluate(config_of(checkpoint))
    change_json(checkpoint / "pretrained_model" / "config.json", n_action_steps=3)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(EvalError, match="checkpoint_hash"):
        evaluate(config_of(checkpoint))


def test_contract_is_checked_before_anything_is_written_or_built(run, checkpoint, quick):
    with pytest.raises(ContractError, match=r"shape \[3, 64, 64\] against \[3, 96, 96\]"):
        evaluate(config_of(checkpoint, image_size=96))
    assert not (run / "eval").exists()
    assert quick == []


def test_no_checkpoint_says_how_to_give_one():
    with pytest.raises(EvalError, match="--checkpoint=runs/"):
        evaluate(EvalConfig())


def test_episode_that_cannot_run_is_an_error_neither_failure_nor_gap(run, checkpoint, quick):
    config = config_of(checkpoint, task_ids=(0,), episodes=14, max_retries=1)
    summary = evaluate(config)
    assert (summary.successes, summary.scored, summary.errors) == (7, 13, 1)
    (bad,) = [row for row in summary.records if not row.scored]
    assert (bad.init_state, bad.retries, bad.outcome) == (13, 1, "error")
    assert "unlucky" in bad.error
    again = []
    evaluate(config, again.append)  # an error measured nothing: it is tried again, the rest is not
    assert (again[0].resumed, again[-1].total) == (13, 14)


def test_evaluation_in_which_nothing_works_stops_with_the_reason(run, checkpoint, monkeypatch):
    def make_env(task, config):
        raise RuntimeError("no OpenGL here")

    worker = functools.partial(EpisodeWorker, make_env=make_env)
    monkeypatch.setattr("vla_opt.evaluation.runner.EpisodeWorker", worker)
    with pytest.raises(EvalError, match=r"(?s)first 4 episodes.*no OpenGL here"):
        evaluate(config_of(checkpoint, episodes=50, max_retries=0))
    assert len(load_records(run / "eval" / "episodes.jsonl")) == 4


def test_serial_evaluation_leaves_the_random_state_of_its_caller(checkpoint, quick):
    import random

    np.random.seed(3)  # noqa: NPY002 - the global state is what is tested
    random.seed(3)
    torch.manual_seed(3)
    states = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002
    evaluate(config_of(checkpoint))
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == states


def test_command_line_prints_rates_with_intervals(run, checkpoint, quick, capsys):
    argv = [f"--checkpoint={checkpoint}", "--suites=[libero_object]", "--task_ids=0,3"]
    code = cli.main(["eval", *argv, "--episodes=2", "--backend=serial"])
    out, err = capsys.readouterr()
    assert code == 0
    assert "2/4 (50.0 %" in out
    assert f"vla-opt report {run}" in out
    assert "4/4 ep" in err
    assert "95 % CI" in err


def test_command_line_names_what_is_unknown(capsys):
    assert cli.main(["eval", "--checkpoint=x", "--suites=libero_objct"]) == 2
    assert "Did you mean 'libero_object'" in capsys.readouterr().err
    assert cli.main(["eval", "--checkpiont=x"]) == 2
    assert "checkpoint" in capsys.readouterr().err


# -- LIBERO ----------------------------------------------------------------------------------------


def short_libero(task, config):
    """LIBERO episodes of 20 steps."""
    from envs.rollout import make_libero

    env = make_libero(task, config)
    env.task = dataclasses.replace(env.task, max_steps=20)
    return env


def numbers(summary, folder: Path):
    """All of the rows that may not depend on how they were made, and every pixel looked at."""
    changing = {"wall_s", "cpu_s", "worker", "retries", "timestamp"}
    return [
        (
            {name: value for name, value in row.to_dict().items() if name not in changing},
            (folder / row.video).read_bytes(),
        )
        for row in summary.records
    ]


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("policy_batch", [1, 2])
def test_same_numbers_serial_and_with_two_workers(policy_batch, checkpoint, tmp_path, monkeypatch):
    make_env = short_libero

    def by_value(task, config):  # Ray's workers cannot import this file
        return make_env(task, config)

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    worker = functools.partial(EpisodeWorker, make_env=by_value)
    monkeypatch.setattr("vla_opt.evaluation.runner.EpisodeWorker", worker)
    options = {"execute_steps": 8, "videos": "all", "policy_batch": policy_batch}
    serial = evaluate(config_of(checkpoint, output_dir=tmp_path / "a", **options))
    options |= {"backend": "ray", "num_workers": 2, "timeout_s": 300}
    ray = evaluate(config_of(checkpoint, output_dir=tmp_path / "b", **options))
    assert serial.scored == ray.scored == 4
    assert numbers(serial, tmp_path / "a") == numbers(ray, tmp_path / "b")


@pytest.mark.sim
@pytest.mark.slow
def test_killed_worker_and_killed_policy_change_no_number(checkpoint, tmp_path, monkeypatch):
    """Real signals to a simulator in its second chunk, and to the policy it asks in the third."""
    make_env = short_libero

    def once(name):
        try:
            (tmp_path / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def make_deadly_env(task, config):
        import os
        import signal

        env = make_env(task, config)
        stock = env.step_chunk

        def step_chunk(actions):
            transition = stock(actions)
            if transition[-1]["steps"] == 8 and once("kill_worker"):
                os.kill(os.getpid(), signal.SIGKILL)
            if transition[-1]["steps"] == 16 and once("kill_policy"):
                os.kill(int((tmp_path / "policy_pid").read_text()), signal.SIGKILL)
            return transition

        env.step_chunk = step_chunk
        return env

    build = runner._build_policy

    def build_and_tell(folder, **options):
        import os

        (tmp_path / "policy_pid").write_text(str(os.getpid()))
        return build(folder, **options)

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    monkeypatch.setattr(
        "vla_opt.evaluation.runner.EpisodeWorker",
        functools.partial(EpisodeWorker, make_env=make_deadly_env),
    )
    monkeypatch.setattr("vla_opt.evaluation.runner._build_policy", build_and_tell)
    options = {"execute_steps": 8, "videos": "all"}
    alone = evaluate(config_of(checkpoint, output_dir=tmp_path / "a", **options))
    (tmp_path / "kill_worker").touch()
    (tmp_path / "kill_policy").touch()
    options |= {"backend": "ray", "num_workers": 2, "timeout_s": 600}
    disturbed = evaluate(config_of(checkpoint, output_dir=tmp_path / "b", **options))
    assert not list(tmp_path.glob("kill_*"))
    assert sum(record.retries for record in disturbed.records) >= 1
    assert numbers(alone, tmp_path / "a") == numbers(disturbed, tmp_path / "b")
