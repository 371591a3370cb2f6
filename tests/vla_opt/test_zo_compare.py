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
from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.evaluation.config import EvalConfig  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.zo_training import ZOTrainConfig, compare  # noqa: E402
from vla_opt.zo_training.compare import ZOCompareConfig, zo_compare  # noqa: E402

ARMS = {
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
        factors=(1.0,),
        marks=(6, 12),
        output_dir=tmp_path / "compare",
    )


@pytest.mark.slow
def test_arms_side_by_side_are_those_of_one_after_another(config: ZOCompareConfig) -> None:
    alone = dataclasses.replace(config, success_marks=())
    many = dataclasses.replace(alone, parallel=2, output_dir=config.output_dir / "many")
    expected = [(p.arm, p.cost, p.loss) for p in zo_compare(alone).points]
    told: list[str] = []
    points = zo_compare(many, told.append).points
    assert [(p.arm, p.cost, p.loss) for p in points] == expected
    for arm, cost, loss in expected:
        assert sum(f"{arm}" in t and f"{cost}" in t and f"{loss:.4f}" in t for t in told) == 1, told


def test_arms_cost_the_same_and_are_found_again(config: ZOCompareConfig) -> None:
    outcome = zo_compare(config)
    assert len(read_jsonl(config.output_dir / "ar1_zo/seed_0/steps.jsonl")) == 6
    saved = sorted(p.name for p in (config.output_dir / "adamw/seed_0/checkpoints").glob("0*"))
    assert saved == ["000002", "000004"]  # a step with its backward pass counts three times
    start, *others = outcome.points
    assert (start.arm, start.counts[1]) == ("start", 6)
    assert [(p.arm, p.cost) for p in others] == [(a, m) for a in config.names for m in (6, 12)]
    assert [bool(p.records) for p in others] == [False, True] * 2
    last = {p.arm: p.loss for p in others if p.cost == 12}
    assert last["adamw"] < start.loss
    found = json.loads((config.output_dir / "result.json").read_text())
    assert found["pairs"].keys() == set(config.names)
    text = (config.output_dir / "result.md").read_text()
    assert text.count("\n| ") == 4
    assert "success at 12" in text
    assert "<svg" in (config.output_dir / "result.html").read_text()
    run = list(fake_eval.RUN)
    assert zo_compare(config).to_dict() == outcome.to_dict()
    assert run == fake_eval.RUN, "something was evaluated twice"
    both = zo_compare(dataclasses.replace(config, success_marks=(6, 12)))
    assert len(fake_eval.RUN) == len(run) + 2
    assert "success at 6" in both.markdown()
    with pytest.raises(ConfigError, match=r"adamw_lr: 0.001 then, 0.01 now"):
        zo_compare(dataclasses.replace(config, adamw_lr=1e-2))


def test_a_derivative_counts_twice(config: ZOCompareConfig) -> None:
    arms = {name: {"method": {"name": name}} for name in ("forward_gradient", "mezo")}
    config = dataclasses.replace(config, arms=arms)
    assert [config.units(arm, 12) for arm in config.names] == [6, 12, 4]


@pytest.mark.parametrize(
    ("best", "tried", "chosen"),
    [
        (1.0, [0.5, 1.0, 2.0], 1.0),
        (3.9, [0.5, 1.0, 2.0, 4.0, 8.0], 4.0),
        (0.3, [0.125, 0.25, 0.5, 1.0, 2.0], 0.25),
    ],
)
def test_further_rates_are_tried_while_the_best_is_at_an_edge(
    best: float,
    tried: list[float],
    chosen: float,
    config: ZOCompareConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "_short_run", lambda config, arm, factor: abs(factor - best))
    config = dataclasses.replace(config, factors=(0.5, 1.0, 2.0), growth=2)
    found = compare._tuned(config, "adamw", lambda line: None)
    assert [lr / config.adamw_lr for lr in found.losses] == pytest.approx(tried)
    assert found.factor == chosen
    monkeypatch.setattr(compare, "_short_run", lambda config, arm, factor: float("inf"))
    with pytest.raises(ConfigError, match="diverged at every learning rate"):
        compare._tuned(dataclasses.replace(config, growth=0), "adamw", lambda line: None)


def test_what_does_not_fit_is_refused(config: ZOCompareConfig) -> None:
    for changes, said in (
        ({"marks": (12, 6)}, "ascending"),
        ({"seeds": (1000,), "factors": (1.0, 2.0)}, "tune_seed"),
        ({"arms": {"adamw": {}}}, "adamw_lr"),
        ({"success_marks": (7,)}, "some of the marks"),
        ({"arms": {"mezo": {"method": {"name": "mezo", "rank": 3}}}}, "no option rank"),
        ({"run": dataclasses.replace(config.run, data=DataConfig())}, "hold_out"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(config, **changes)  # type: ignore[arg-type]
