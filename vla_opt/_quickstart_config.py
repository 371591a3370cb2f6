"""What `vla_opt.quickstart` is told; reads in a moment, since it trains nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from vla_opt.config import DataConfig, TrainConfig
from vla_opt.demos import DemosConfig
from vla_opt.evaluation.config import EvalConfig

RUN_DIR = Path("<run_dir>")
"""Stands for the folder of the run in paths that nobody chose."""


def _demos() -> DemosConfig:
    return DemosConfig(root=RUN_DIR / "demos")


def _train() -> TrainConfig:
    return TrainConfig(data=DataConfig(root=RUN_DIR / "demos"), output_dir=RUN_DIR / "train")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Demonstrations, training, evaluation and report in one run folder.

    Paths that are left at their defaults lie in the run folder, so that `--run_dir` moves all;
    training reads the demonstrations wherever they are.

    Attributes:
        run_dir: Folder of the run.
        check_machine: Whether to look at the machine first, and stop if something is missing.
        demos: What is learned from.
        train: How it is learned.
        eval: What is measured; always the last checkpoint of this run.
    """

    run_dir: Path = Path("runs/quickstart")
    check_machine: bool = True
    demos: DemosConfig = field(default_factory=_demos)
    train: TrainConfig = field(default_factory=_train)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def resolved(self) -> QuickstartConfig:
        """The same with every path filled in."""
        demos, output = self._placed(self.demos.root), self._placed(self.train.output_dir)
        root = self.train.data.root
        data = dataclasses.replace(
            self.train.data,
            root=demos if root == RUN_DIR / "demos" else root,
            cache_dir=self.train.data.cache_dir or self.run_dir / "cache",
        )
        return dataclasses.replace(
            self,
            demos=dataclasses.replace(self.demos, root=demos),
            train=dataclasses.replace(self.train, data=data, output_dir=output, resume=True),
            eval=dataclasses.replace(
                self.eval,
                checkpoint=output,
                output_dir=self.eval.output_dir or self.run_dir / "eval",
            ),
        )

    def _placed(self, path: Path) -> Path:
        """``path``, with the run folder for what stands for it."""
        inside = path.parts[:1] == RUN_DIR.parts
        return self.run_dir.joinpath(*path.parts[1:]) if inside else path
