"""Zeroth-order methods at equal cost: what counts, how rates are chosen, and going on."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

import fake_eval  # noqa: E402
from rl_toys import fill_checkpoint  # noqa: E402

from vla_opt.checkpoint import write_checkpoint  # noqa: E402
from vla_opt.config import DataConfig  # noqa: E402
from vla_opt.evaluation.config import EvalConfig  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.zo_training import ZOTrainConfig  # noqa: E402
from vla_opt.zo_training.compare import ZOCompareConfig, zo_compare  # noqa: E402

ARMS = {
    "mezo": {"method": {"name": "mezo", "lr": 1e-5}},
    "forward_gradient": {"method": {"name": "forward_gradient", "lr": 1e-5}},
    "ar1_zo": {
        "method": {"name": "ar1_zo", "lr": 1e-3},
        "adapter": {"rank": 2, "modules": ["action_head"]},
        "trainable": [""],
    },
}


@pytest.fixture
def config(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> ZOCompareConfig:
    monkeypatch.setattr("vla_opt.zo_training.compare.evaluate", fake_eval.evaluate)
    fake_eval.RUN.clear()
    return ZOCompareConfig(
        run=ZOTrainConfig(
            checkpoint=write_checkpoint(tmp_path / "start", 1, fill_checkpoint),
            data=DataConfig(root=dataset, cache_dir=dataset.parent / "cache", hold_out=3),
            trainable=("action_head",),
            batch_size=2,
            eval=EvalConfig(episodes=6),
        ),
        arms=ARMS,
        adamw_lr=1e-3,
        factors=(1.0, 1e3),
        growth=0,
        tune_calls=6,
        marks=(6, 12),
        output_dir=tmp_path / "compare",
    )


def test_arms_cost_the_same_and_are_found_again(config: ZOCompareConfig) -> None:
    outcome = zo_compare(config)
    steps = {
        arm: len(read_jsonl(config.output_dir / arm / "seed_0" / "steps.jsonl")) for arm in ARMS
    }
    assert steps == {"mezo": 6, "forward_gradient": 6, "ar1_zo": 6}  # a derivative counts twice
    saved = sorted(p.name for p in (config.output_dir / "adamw/seed_0/checkpoints").glob("0*"))
    assert saved == ["000002", "000004"]  # a step with its backward pass counts three times
    start, *others = outcome.points
    assert (start.arm, start.counts[1]) == ("start", 6)
    assert [(p.arm, p.cost) for p in others] == [(a, m) for a in config.names for m in (6, 12)]
    assert [bool(p.records) for p in others] == [False, True] * 4
    rates = {one.arm: one for one in outcome.tuning}
    assert rates["adamw"].lr == 1e-3  # at 1 the loss flies off
    assert all(min(one.losses.values()) == one.losses[one.lr] for one in outcome.tuning)
    last = {p.arm: p.loss for p in others if p.cost == 12}
    assert last["adamw"] < start.loss
    found = json.loads((config.output_dir / "result.json").read_text())
    assert found["pairs"].keys() == set(config.names)
    text = (config.output_dir / "result.md").read_text()
    assert text.count("\n| ") == 6
    assert "success at 12" in text
    assert "<svg" in (config.output_dir / "result.html").read_text()
    run = list(fake_eval.RUN)
    again = zo_compare(config)
    assert again.to_dict() == outcome.to_dict()
    assert run == fake_eval.RUN, "something was evaluated twice"


def test_what_does_not_fit_is_refused(config: ZOCompareConfig) -> None:
    for changes, said in (
        ({"marks": (12, 6)}, "ascending"),
        ({"seeds": (1000,)}, "tune_seed"),
        ({"arms": {"adamw": {}}}, "adamw_lr"),
        ({"success_marks": (7,)}, "some of the marks"),
        ({"arms": {"mezo": {"method": {"name": "mezo", "rank": 3}}}}, "no option rank"),
        ({"run": dataclasses.replace(config.run, data=DataConfig())}, "hold_out"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(config, **changes)  # type: ignore[arg-type]
