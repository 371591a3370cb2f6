"""Episodes of a served policy, kept as they are executed."""

from __future__ import annotations

from pathlib import Path

from deploy.droid import robot_metadata
from deploy.errors import StateError
from deploy.executor import EpisodeReport
from deploy.recording import EpisodeRecorder, RecordingEnv
from deploy.robot_env import RobotEnv


class _RecordedEnv(RecordingEnv):
    """A `RecordingEnv` that an executor can drive, and that begins an episode at each reset."""

    def __init__(self, env: RobotEnv, recorder: EpisodeRecorder, task: str) -> None:
        super().__init__(env, recorder)
        self._task = task

    def reset(self) -> None:
        """See `RobotEnv.reset`."""
        super().reset()
        self._recorder.begin(self._task)


class PolicyRecording:
    """Keeps every episode that an executor runs on a wrapped environment.

    Args:
        folder: Of the finished episodes; see `EpisodeRecorder`.
        task: The instruction.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self._folder, self._task = folder, task
        self._recorder: EpisodeRecorder | None = None

    def wrap(self, env: RobotEnv) -> RecordingEnv:
        """Return the environment that the executor is to drive instead."""
        said = robot_metadata(env, controller_profile=env.robot.arm.profile.name)
        self._recorder = EpisodeRecorder(self._folder, said)
        return _RecordedEnv(env, self._recorder, self._task)

    def finish(self, report: EpisodeReport) -> None:
        """Put the episode on disk, with how it ended; one without actions is dropped.

        Raises:
            OSError: The disk is full; the episode is still in memory.
        """
        if report.executed:
            self._open().finish(ending=report.ending, success=report.ending == "success")

    def export(self, root: Path) -> Path:
        """Write all finished episodes as a LeRobotDataset v3; see `EpisodeRecorder.export`."""
        return self._open().export(root)

    def _open(self) -> EpisodeRecorder:
        if self._recorder is None:
            raise StateError("Nothing has been recorded: no robot was opened.")
        return self._recorder
