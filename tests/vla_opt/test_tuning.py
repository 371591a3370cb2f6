"""Learning rates under one budget: what decides, what is kept, and what may not be mixed."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from tiny_runs import rows, tiny_run  # noqa: E402

from vla_opt import compare as module  # noqa: E402
from vla_opt._comparison import Comparison, RunResult  # noqa: E402
from vla_opt._curves import CurvePoint, charts, curve_of, curves_csv  # noqa: E402
from vla_opt._tuning import Trial, TuneConfig, Tuned  # noqa: E402
from vla_opt._validation import validation_loss  # noqa: E402
from vla_opt.checkpoint import checkpoint_name  # noqa: E402
from vla_opt.compare import CompareConfig, CompareError, Listener, compare  # noqa: E402
from vla_opt.errors import ConfigError, DataError  # noqa: E402
from vla_opt.evaluation.config import EvalConfig, episode_keys  # noqa: E402
from vla_opt.evaluation.records import EpisodeRecord  # noqa: E402
from vla_opt.train import Reporter, train  # noqa: E402

# -- choosing --------------------------------------------------------------------------------------


def tuned(*trials: Trial) -> Tuned:
    return Tuned(arm="pion", trials=trials)


def test_lowest_loss_or_most_successes_are_chosen_and_what_diverged_never_is() -> None:
    losses = [Trial(factor=f, lr=f, loss=x) for f, x in ((0.3, 0.9), (1.0, 0.7), (3.0, 0.8))]
    assert tuned(*losses).chosen == losses[1]
    counts = [Trial(factor=f, lr=f, successes=k, scored=20) for f, k in ((0.3, 5), (3.0, 6))]
    gone = Trial(factor=9.0, lr=9.0, diverged="nan at step 3")
    assert tuned(*counts, gone).chosen == counts[1]
    assert tuned(gone, Trial(factor=1.0, lr=1.0, loss=math.nan)).chosen is None


def test_of_equals_the_rate_nearest_to_the_arms_own_is_chosen() -> None:
    trials = [Trial(factor=f, lr=f, successes=20, scored=20) for f in (0.1, 0.5, 4.0)]
    assert tuned(*trials).chosen == trials[1]


def test_choice_at_the_end_of_the_grid_is_said() -> None:
    trials = [Trial(factor=f, lr=f, loss=f) for f in (0.3, 1.0, 3.0)]
    assert "0.3, is the smallest that was tried" in tuned(*trials).note
    middle = [dataclasses.replace(t, loss=abs(t.factor - 1.0)) for t in trials]
    assert tuned(*middle).note == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": (1.0,)}, "two or more"),
        ({"factors": (1.0, 1.0)}, "two or more"),
        ({"factors": (1.0, -1.0)}, "positive"),
        ({"steps": 0}, "steps=0"),
        ({"hold_out": 1}, "hold_out=1"),
    ],
)
def test_bad_budget_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuneConfig(**changes)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (TuneConfig(seed=1), "one of the comparison's"),
        (TuneConfig(by="success", first_init_state=9), "states 0 to 9. Choose by others, from 10"),
    ],
)
def test_what_decides_may_not_be_what_is_reported(tune: TuneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(tune=tune)


def test_tuning_states_and_final_states_have_none_in_common() -> None:
    job = EvalConfig(task_ids=(0,), episodes=40)
    test = TuneConfig(by="success").test(job, Path("c"), Path("f"))
    assert not set(episode_keys(job)) & set(episode_keys(test))
    assert {key.init_state for key in episode_keys(test)} == set(range(40, 50))


# -- held-out loss ---------------------------------------------------------------------------------


def test_held_out_episodes_are_not_learned_from_and_decide_the_loss(
    dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(dataset, tmp_path / "train", steps=4, data={"hold_out": 3})
    train(config)
    identity = json.loads((tmp_path / "train" / "metadata.json").read_text())["data"]
    assert identity["samples"] == 23 + 17  # of episodes with 23, 17 and 30 frames
    checkpoint = tmp_path / "train" / "checkpoints" / checkpoint_name(4)
    loss = validation_loss(config, checkpoint)
    assert loss == validation_loss(config, checkpoint)
    assert loss == pytest.approx(by_hand(config, checkpoint), rel=0.05)  # the policy adds noise
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, hold_out=0))
    with pytest.raises(DataError, match="Nothing is held out"):
        validation_loss(whole, checkpoint)


def by_hand(config: Any, checkpoint: Path) -> float:
    """Frame by frame: the mean error over the third episode."""
    import torch
    from tiny_policy.modeling_tiny import TinyPolicy

    from vla_opt._batches import open_cache
    from vla_opt._policy import build_processors
    from vla_opt.data import ChunkDataset

    cache = open_cache(config.data, lambda *args: None)
    policy = TinyPolicy.from_pretrained(checkpoint / "pretrained_model")
    policy.eval()
    preprocessor, _ = build_processors(policy.config, cache.stats)
    samples = ChunkDataset(cache, 4, 1, None, [2])
    assert len(samples) == 30
    total = 0.0
    with torch.no_grad():
        for i in range(30):
            batch = preprocessor(samples.to_policy_batch(samples.collate([i])))
            error = (policy._predict(batch) - batch["action"]).abs().mean(-1)
            total += float((error * ~batch["action_is_pad"]).mean())
    return total / 30 + config.policy.noise * 1.5  # its noise is 0.01 times three uniform draws


# -- as part of a comparison -----------------------------------------------------------------------


def records(outcomes: str) -> tuple[EpisodeRecord, ...]:
    return tuple(
        EpisodeRecord(
            suite="libero_object",
            task_id=0,
            init_state=i,
            seed=i,
            outcome="success" if letter == "s" else "failure",
            success=letter == "s",
            steps=1,
            wall_s=1.0,
            cpu_s=1.0,
        )
        for i, letter in enumerate(outcomes)
    )


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[EvalConfig]:
    """Replaces the simulator: at three times the rate a policy solves more."""
    seen: list[EvalConfig] = []

    def evaluate(job: EvalConfig, progress: object) -> Any:
        seen.append(job)
        letters = "sssf" if "times_3" in str(job.output_dir) else "sfff"
        return type("Summary", (), {"records": records(letters)})

    monkeypatch.setattr(module, "evaluate", evaluate)
    return seen


def small(root: Path, folder: Path, tune: TuneConfig, **changes: Any) -> CompareConfig:
    common = tiny_run(root, Path("unused"), steps=6, eval=EvalConfig(backend="serial", episodes=4))
    defaults: dict[str, Any] = {"optimizers": ("adamw", "pion"), "seeds": (0,)}
    return CompareConfig(train=common, output_dir=folder, tune=tune, **{**defaults, **changes})


class Trainings(Listener):
    """Which were run; the one numbered `stop_at` is interrupted."""

    def __init__(self, stop_at: int = -1) -> None:
        self.seen: list[tuple[str, int]] = []
        self._stop_at = stop_at

    @contextmanager
    def training(self, arm: str, seed: int) -> Iterator[Reporter | None]:
        self.seen.append((arm, seed))
        if len(self.seen) - 1 == self._stop_at:
            raise KeyboardInterrupt
        yield None


def test_chosen_rates_are_trained_with_and_written_down(
    dataset: Path, tmp_path: Path, evaluations: list[EvalConfig]
) -> None:
    tune = TuneConfig(by="success", steps=2, factors=(1.0, 3.0), episodes=4)
    config = small(dataset, tmp_path, tune)
    listener = Trainings()
    comparison = compare(config, listener)
    own = config.train.optimizer.lr
    assert {one.arm: one.chosen.lr for one in comparison.tuned if one.chosen} == {
        "adamw": pytest.approx(3 * own),
        "pion": pytest.approx(3 * own),
    }
    for arm in ("adamw", "pion"):
        log = rows(tmp_path / arm / "seed0/train", "train")
        assert max(row["lr"] for row in log) == pytest.approx(3 * own, rel=0.5)
        text = (tmp_path / arm / "seed0/train/config.yaml").read_text()
        assert f"lr: {3 * own:g}" in text
    states = {(job.first_init_state, job.episodes) for job in evaluations}
    assert states == {(40, 4), (0, 4)}
    assert len(listener.seen) == 2 * 2 + 2
    written = json.loads((tmp_path / "result.json").read_text())
    assert "2 runs of 2 steps with seed 1000" in written["budget"]
    assert [len(one["trials"]) for one in written["tuning"]] == [2, 2]
    assert "is the largest that was tried" in (tmp_path / "result.md").read_text()
    assert "Learning rates" in (tmp_path / "result.html").read_text()


def test_stopped_tuning_goes_on_where_it_was(
    dataset: Path, tmp_path: Path, evaluations: list[EvalConfig]
) -> None:
    tune = TuneConfig(steps=2, factors=(1.0, 3.0), hold_out=3)
    with pytest.raises(KeyboardInterrupt):
        compare(small(dataset, tmp_path, tune), Trainings(stop_at=3))
    again = Trainings()
    first = compare(small(dataset, tmp_path, tune), again)
    assert len(again.seen) == 1 + 2  # one short run, then the runs themselves
    assert all(trial.loss is not None for one in first.tuned for trial in one.trials)
    third = Trainings()
    assert compare(small(dataset, tmp_path, tune), third).tuned == first.tuned
    assert third.seen == []
    other = dataclasses.replace(tune, factors=(1.0, 5.0))
    with pytest.raises(ConfigError, match=r"factors: \[1.0, 3.0\] then, \[1.0, 5.0\] now"):
        compare(small(dataset, tmp_path, other))


def test_arm_that_diverges_at_every_rate_stops_with_what_to_do(
    dataset: Path, tmp_path: Path, evaluations: list[EvalConfig]
) -> None:
    tune = TuneConfig(steps=4, factors=(1.0, 2.0), hold_out=3)
    config = small(dataset, tmp_path, tune, options={"adamw": {"lr": 1e38}})
    with pytest.raises(CompareError, match=r"Every learning rate tried for adamw diverged"):
        compare(config)


# -- controls --------------------------------------------------------------------------------------


def test_controls_are_arms_and_the_frozen_head_does_not_move(
    dataset: Path, tmp_path: Path, evaluations: list[EvalConfig]
) -> None:
    from safetensors.torch import load_file

    serial = EvalConfig(backend="serial")
    common = tiny_run(dataset, Path("unused"), steps=3, save_every=1, eval=serial)
    config = CompareConfig(
        train=common,
        output_dir=tmp_path,
        optimizers=("adamw",),
        controls=("frozen_head", "kaon"),
        seeds=(0,),
    )
    comparison = compare(config)
    assert [arm.name for arm in comparison.arms] == ["adamw", "frozen_head", "kaon"]
    assert "frozen_head is a control" in comparison.text()
    moved = {}
    for arm in ("adamw", "frozen_head", "kaon"):
        folder = tmp_path / arm / "seed0/train/checkpoints"
        first, last = (
            load_file(folder / checkpoint_name(step) / "pretrained_model/model.safetensors")
            for step in (1, 3)
        )
        moved[arm] = {name for name in first if not first[name].equal(last[name])}
    assert "action_head.fc1.weight" in moved["adamw"] & moved["kaon"]
    assert "action_head.fc1.weight" not in moved["frozen_head"]
    assert "vision_projector.weight" in moved["frozen_head"]


def test_unknown_control_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="frozen_head"):
        CompareConfig(controls=("frozen_haed",))


# -- curves ----------------------------------------------------------------------------------------


def log_of(offset: float) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "loss": 1.0 / step, "wall_s": step * 6.0 + offset}
        for step in (10, 20, 30)
    ]
    log += [
        {"kind": "eval", "step": 15, "successes": 3, "episodes": 10, "wall_s": 99.0},
        {"kind": "eval", "step": 30, "successes": 1, "episodes": 10, "wall_s": 99.0},
    ]
    return log


def test_curve_has_success_over_the_time_of_training_alone_and_ends_with_the_final() -> None:
    final = CurvePoint(step=30, train_s=180.0, successes=9, scored=10)
    curve = curve_of("pion", 0, log_of(0.0), final)
    success = [(p.step, p.train_s, p.successes) for p in curve.points if p.scored]
    assert success == [(15, 60.0, 3), (30, 180.0, 9)]
    losses = [(p.step, p.loss) for p in curve.points if p.loss is not None]
    assert losses == [(10, 0.1), (20, 0.05), (30, pytest.approx(1 / 30))]
    lines = curves_csv([curve]).splitlines()
    assert lines[0] == "arm,seed,step,train_s,successes,scored,loss"
    assert "pion,0,15,60.00,3,10," in lines
    assert len(lines) == 1 + 5


def test_charts_show_success_over_steps_and_time_with_a_band_per_arm() -> None:
    curves = [
        curve_of(arm, seed, log_of(seed), CurvePoint(step=30, train_s=180, successes=k, scored=10))
        for arm in ("adamw", "pion")
        for seed, k in enumerate((4, 9))
    ]
    drawn = charts(curves)
    assert [chart.count("<polygon") for chart in drawn] == [2] * 4
    titles = ("Success over steps", "Success over time", "Training loss over steps")
    for title, chart in zip(titles, drawn, strict=False):
        assert title in chart


def test_single_measurement_makes_no_curve() -> None:
    final = CurvePoint(step=30, train_s=180.0, successes=9, scored=10)
    assert charts([curve_of("pion", 0, [], final)]) == []


def test_seeds_are_one_observation_each_in_the_table() -> None:
    runs = [
        RunResult(arm=arm, seed=seed, records=records(letters))
        for arm, all_seeds in (("a", ("sfff", "sfff", "sfff")), ("b", ("ssss", "sssf", "ssff")))
        for seed, letters in enumerate(all_seeds)
    ]
    comparison = Comparison.of(runs)
    (pair,) = comparison.pairs
    assert pair.differences == [-0.75, -0.5, -0.25]
    assert pair.p_seeds == 0.25
    assert "over 3 seeds -50.0 points (-75.0 to -25.0), sign-flip p = 0.25" in comparison.text()
    assert "75.0 % (50.0-100.0), n = 3" in comparison.markdown()
