"""``vla-opt check CHECKPOINT --env=|--dataset=|--robot=``: does it fit, term by term?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

HELP = "compare a checkpoint with an environment, a data set or a robot, term by term"

if TYPE_CHECKING:
    from deploy.metadata import ServerMetadata
    from vla_opt.contracts import Finding
    from vla_opt.evaluation.contract import Checkpoint

_DROID_HZ = 15.0


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Compare a checkpoint with what it shall meet, as `vla-opt check CHECKPOINT` too.

    Attributes:
        checkpoint: A run folder, a checkpoint of one, or a folder written by lerobot.
        env: Suite of LIBERO, for example libero_object.
        dataset: Folder of a LeRobotDataset v3.
        robot: A controller profile (droid), which needs no robot, or an address to connect to;
            "sim" starts a simulated arm. Nothing moves.
        execute_steps: Actions of a chunk that are executed; 4 in simulation, 8 on a robot if not
            given.
        image_size: Pixels of the environment's images; the checkpoint's if not given.
        render_profile: Of the environment; the checkpoint's if not given.
        probe: Also build the environment's first scene and look at one observation.
        action_space: What the robot takes actions for.
        stated_action_space: What the checkpoint's actions mean, where it does not say.
        strict: Warnings count as differences.
    """

    checkpoint: Path
    env: str | None = None
    dataset: Path | None = None
    robot: str | None = None
    execute_steps: int | None = None
    image_size: int | None = None
    render_profile: str | None = None
    probe: bool = False
    action_space: str = "joint_velocity"
    stated_action_space: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        """Check that there is something to compare with."""
        if self.env is None and self.dataset is None and self.robot is None:
            raise ValueError("nothing to compare with: give --env=, --dataset= or --robot=")


def main(argv: Sequence[str]) -> int:
    """Print one table per party; 1 if something differs."""
    from vla_opt.cli._config import parse
    from vla_opt.contracts import findings_table, lines
    from vla_opt.evaluation.contract import open_checkpoint

    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--checkpoint={words[0]}"
    config = parse(CheckConfig, words)
    checkpoint = open_checkpoint(config.checkpoint)
    for note in checkpoint.notes:
        print(f"note: {note}")
    bad = 0
    for name, findings in _tables(config, checkpoint):
        print(f"{checkpoint.folder} and {name}\n")
        print(findings_table(findings, "checkpoint", name))
        differs, warns = len(lines(findings, "differs")), len(lines(findings, "warning"))
        unknown = len(lines(findings, "unknown"))
        matches = len(findings) - differs - warns - unknown
        print(f"\n{matches} match, {differs} differ, {warns} warnings, {unknown} not known\n")
        bad += differs + (warns if config.strict else 0)
    return 1 if bad else 0


def _tables(config: CheckConfig, checkpoint: Checkpoint) -> list[tuple[str, list[Finding]]]:
    tables = []
    if config.env is not None:
        tables.append((config.env, _environment(config, config.env, checkpoint)))
    if config.dataset is not None:
        from vla_opt._data_contract import checkpoint_findings
        from vla_opt._lerobot_read import DatasetFiles

        files = DatasetFiles(config.dataset)
        found = checkpoint_findings(checkpoint, files, execute_steps=config.execute_steps)
        tables.append((str(config.dataset), found))
    if config.robot is not None:
        from deploy.checkpoint_policy import robot_findings
        from deploy.metadata import ServerMetadata

        found = robot_findings(
            checkpoint,
            _robot(config, config.robot),
            stated=ServerMetadata(action_space=config.stated_action_space),
            execute_steps=config.execute_steps or 8,
        )
        tables.append((config.robot, found))
    return tables


def _environment(config: CheckConfig, suite: str, checkpoint: Checkpoint) -> list[Finding]:
    from envs.suites import expand_suites
    from vla_opt.evaluation._job import rollout_config
    from vla_opt.evaluation.config import EvalConfig
    from vla_opt.evaluation.contract import contract_findings

    (suite, *_) = expand_suites((suite,))
    asked = EvalConfig(
        suites=(suite,),
        execute_steps=config.execute_steps or 4,
        image_size=config.image_size,
        render_profile=config.render_profile,
    )
    rollout = rollout_config(asked, checkpoint)
    found = contract_findings(checkpoint, rollout.env_spec, execute_steps=rollout.execute_steps)
    if config.probe:
        from vla_opt.evaluation._probe import probe_findings

        found += probe_findings(checkpoint, suite, rollout)
    return found


def _robot(config: CheckConfig, robot: str) -> ServerMetadata:
    from deploy.drivers.profiles import CONTROLLER_PROFILES
    from deploy.droid import space_metadata

    if robot in CONTROLLER_PROFILES:
        return space_metadata(config.action_space, control_hz=_DROID_HZ, controller_profile=robot)
    from deploy.robot import RobotConfig
    from vla_opt.cli._deploy_config import DeployConfig, open_robot

    asked = DeployConfig(robot=RobotConfig(robot=robot), action_space=config.action_space)
    with open_robot(asked, read_only=True) as opened:
        return opened.says
