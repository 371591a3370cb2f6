"""Runs whose groups all fail or all succeed: they stop, or look for another exploration."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from rl_toys import Reach, fill_checkpoint  # noqa: E402

from vla_opt.checkpoint import list_checkpoints, write_checkpoint  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.optim.config import OptimizerConfig  # noqa: E402
from vla_opt.rl.collect import Harvest  # noqa: E402
from vla_opt.rl.config import ExplorationConfig, NoSignalConfig, RLConfig, RolloutsConfig  # noqa: E402
from vla_opt.rl.no_signal import NoSignalError  # noqa: E402
from vla_opt.rl.run import rl_train  # noqa: E402


class Unreachable(Reach):
    """Nobody gets there."""

    def reset(self, *, seed: int, options: object = None) -> Any:
        super().reset(seed=seed, options=options)
        self._goal = 1e9
        return self._observe(), {"is_success": False, "steps": 0}


@pytest.fixture
def config(tmp_path: Path) -> RLConfig:
    return RLConfig(
        checkpoint=write_checkpoint(tmp_path / "start", 5, fill_checkpoint),
        rollouts=RolloutsConfig(
            groups=2, group_size=2, max_rounds=1, execute_steps=2, backend="serial"
        ),
        exploration=ExplorationConfig(std=0.3),
        optimizer=OptimizerConfig(name="pion", lr=1e-3),
        output_dir=tmp_path / "run",
        updates=9,
        save_every=0,
        tensorboard=False,
    )


def explorations(folder: Path) -> list[float]:
    return [row["exploration"] for row in read_jsonl(folder / "log.jsonl") if row["kind"] == "rl"]


def test_run_stops_after_the_stated_number_of_updates(config: RLConfig) -> None:
    with pytest.raises(NoSignalError, match=r"3 updates in a row .* 2 failed.*exploration.std"):
        rl_train(config, make_env=Unreachable)
    assert len(explorations(config.output_dir)) == 3


def test_stopped_run_goes_on_when_it_is_told_to(config: RLConfig) -> None:
    """The patience that was used up is not given again."""
    with pytest.raises(NoSignalError):
        rl_train(config, make_env=Unreachable)
    with pytest.raises(NoSignalError, match="4 updates in a row"):
        rl_train(config, make_env=Unreachable)
    patient = dataclasses.replace(config, updates=6, no_signal=NoSignalConfig(stop_after=0))
    assert rl_train(patient, make_env=Unreachable).updates == 6


def test_a_signal_restores_the_patience(config: RLConfig) -> None:
    """Groups 0 to 3 fail, later ones of Reach differ now and then."""

    class Later(Unreachable):
        played = 0

        def reset(self, *, seed: int, options: object = None) -> Any:
            Later.played += 1
            hard = Later.played <= 8
            return (super() if hard else super(Unreachable, self)).reset(seed=seed, options=options)

    easier = dataclasses.replace(
        config, rollouts=dataclasses.replace(config.rollouts, max_rounds=4, group_size=4), updates=3
    )
    summary = rl_train(dataclasses.replace(easier), make_env=Later)
    assert summary.updates == 3


def test_exploration_shrinks_while_all_fail(config: RLConfig) -> None:
    rescaling = dataclasses.replace(config, no_signal=NoSignalConfig(stop_after=3, rescale=2.0))
    with pytest.raises(NoSignalError):
        rl_train(rescaling, make_env=Unreachable)
    assert explorations(config.output_dir) == pytest.approx([0.15, 0.075, 0.0375])


def test_rescaled_exploration_survives_a_stop(config: RLConfig, tmp_path: Path) -> None:
    patient = NoSignalConfig(stop_after=0, rescale=2.0)
    whole, part = (
        dataclasses.replace(config, no_signal=patient, updates=3, output_dir=tmp_path / name)
        for name in ("whole", "part")
    )
    rl_train(whole, make_env=Unreachable)
    rl_train(dataclasses.replace(part, updates=2), make_env=Unreachable)
    assert len(list_checkpoints(part.output_dir / "checkpoints"))
    rl_train(part, make_env=Unreachable)
    assert explorations(part.output_dir) == explorations(whole.output_dir)


@pytest.mark.parametrize(
    ("failed", "succeeded", "factor", "advice"),
    [
        (4, 0, 0.5, "Lower --exploration.std"),
        (0, 4, 2.0, "Raise --exploration.std"),
        (1, 3, 1.0, "Raise --rollouts.group_size"),
    ],
)
def test_which_way_to_go(failed: int, succeeded: int, factor: float, advice: str) -> None:
    config = NoSignalConfig(stop_after=2, rescale=2.0)
    harvest = Harvest(groups=4, all_failed=failed, all_succeeded=succeeded)
    assert config.factor(harvest) == factor
    config.check(1, harvest)
    with pytest.raises(NoSignalError, match=advice):
        config.check(2, harvest)
