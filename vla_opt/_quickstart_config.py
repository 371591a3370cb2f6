"""What `vla_opt.quickstart` is told; reads in a moment, since it trains nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from vla_opt.config import DataConfig, TrainConfig
from vla_opt.demos import DemosConfig
from vla_opt.evaluation.config import EvalConfig


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Demonstrations, training, evaluation and report in one run folder.

    Paths that are left at their defaults lie in the run folder, so that `--run_dir` moves all.

    Attributes:
        run_dir: Folder of the run.
        check_machine: Whether to look at the machine first, and stop if something is missing.
        demos: What is learned from.
        train: How it is learned.
        eval: What is measured; always the last checkpoint of this run.
    """

    run_dir: Path = Path("runs/quickstart")
    check_machine: bool = True
    demos: DemosConfig = field(default_factory=DemosConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def resolved(self) -> QuickstartConfig:
        """The same with every path filled in."""
        demos = _or_within(self.run_dir / "demos", self.demos.root, DemosConfig().root)
        data_root = _or_within(demos, self.train.data.root, DataConfig().root)
        cache = self.train.data.cache_dir or self.run_dir / "cache"
        default = next(f for f in dataclasses.fields(TrainConfig) if f.name == "output_dir").default
        output = _or_within(self.run_dir / "train", self.train.output_dir, default)
        data = dataclasses.replace(self.train.data, root=data_root, cache_dir=cache)
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


def _or_within(place: Path, given: Path, default: object) -> Path:
    """``given`` if somebody chose it, else ``place``."""
    return place if given == default else given
