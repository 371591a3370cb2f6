"""The training loop on several processes that Ray Train starts, watches and starts again.

    summary = train_with_ray(TrainConfig(...), RayLaunch(workers=2))

The loop is `vla_opt.train.train`, unchanged: Ray gives each worker its rank and joins them in a
process group (gloo on CPUs, NCCL on GPUs), accelerate finds it there. Checkpoints stay the run's
own, so a run may go on with another number of workers, under another launcher, or under none.
"""

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_opt._checks import require_at_least
from vla_opt._reporting import Reporter
from vla_opt.config import TrainConfig
from vla_opt.errors import ConfigError
from vla_opt.io import atomic_write_json, read_jsonl
from vla_opt.train import TrainSummary, train

_EXCHANGE = ".ray"  # what workers leave for this process, and Ray's own notes; gone at the end
_ERROR, _SUMMARY = "error.json", "summary.json"


class RayTrainingError(RuntimeError):
    """A worker's training failed; the message is that of its error."""


@dataclass(frozen=True, kw_only=True)
class RayLaunch:
    """How many workers, and with what.

    Attributes:
        workers: processes; each takes `batch_size` samples per forward pass.
        cpus: logical CPUs that each is given.
        restarts: times that all workers are started again after one has died; the run then goes
            on from its last checkpoint.

    Raises:
        ValueError: a number is out of range.
    """

    workers: int = 2
    cpus: int = 1
    restarts: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("workers", 1), ("cpus", 1), ("restarts", 0)):
            require_at_least(name, getattr(self, name), least)


def train_with_ray(
    config: TrainConfig, launch: RayLaunch, reporter: Reporter | None = None
) -> TrainSummary:
    """Train on a local Ray cluster, or on the one that RAY_ADDRESS names.

    Workers on other machines must see `output_dir` and the data at the same paths.

    Args:
        config: the run, as for `vla_opt.train.train`.
        launch: the workers.
        reporter: told of the rows of the log (`logged`, and `stepped` for rows of training).

    Raises:
        ConfigError: workers are to be started again although the run may not be gone on with.
        RayTrainingError: a worker failed, or workers died more often than `restarts`.
    """
    if launch.restarts and not config.resume:
        raise ConfigError(
            f"restarts={launch.restarts} with resume=false: a run that is started again goes on "
            "from its checkpoint. Set --resume=true or --restarts=0."
        )
    from envs._ray_cluster import ray_cluster

    exchange = (config.output_dir / _EXCHANGE).absolute()
    shutil.rmtree(exchange, ignore_errors=True)
    exchange.mkdir(parents=True)
    try:
        with (
            ray_cluster(num_cpus=launch.workers * launch.cpus + 1),
            _following(config, reporter or Reporter()),
        ):
            _fit(config, launch, exchange)
        return _read_summary(exchange)
    finally:
        shutil.rmtree(exchange, ignore_errors=True)


def work(task: Mapping[str, Any]) -> None:
    """What each worker does: train, and leave a summary or an error behind.

    An error is left as text, since not every one survives being sent; with it, a worker that is
    started again ends at once: the same would happen again.
    """
    exchange = Path(task["exchange"])
    if (exchange / _ERROR).exists():
        raise RayTrainingError("ended by an earlier error")
    try:
        summary = train(task["config"])
    except Exception as error:
        told = {"kind": type(error).__name__, "message": str(error)}
        atomic_write_json(exchange / _ERROR, told)
        raise RayTrainingError(f"{told['kind']}: {told['message']}") from None
    if _rank() == 0:
        values = dataclasses.asdict(summary)
        atomic_write_json(exchange / _SUMMARY, {**values, "checkpoint": str(summary.checkpoint)})


def _fit(config: TrainConfig, launch: RayLaunch, exchange: Path) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    api: Any = ray.train  # typed as its first version, while the second one runs
    on_cpu = config.policy.device == "cpu"
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": _absolute(config), "exchange": str(exchange)},
        torch_config=TorchConfig(backend="gloo" if on_cpu else "nccl", timeout_s=12 * 3600),
        scaling_config=api.ScalingConfig(
            num_workers=launch.workers,
            use_gpu=not on_cpu,
            resources_per_worker={"CPU": launch.cpus, **({} if on_cpu else {"GPU": 1})},
        ),
        run_config=api.RunConfig(
            name="train",
            storage_path=str(exchange),
            failure_config=api.FailureConfig(max_failures=launch.restarts),
            worker_runtime_env={"env_vars": {"ACCELERATE_USE_CPU": "true"}} if on_cpu else {},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise RayTrainingError(_reason(exchange, error)) from error


def _absolute(config: TrainConfig) -> TrainConfig:
    """Workers may run elsewhere: what is relative to this folder is said in full."""
    data = config.data
    cache = data.cache_dir
    return dataclasses.replace(
        config,
        output_dir=config.output_dir.absolute(),
        data=dataclasses.replace(
            data,
            root=data.root.absolute(),
            cache_dir=None if cache is None else cache.absolute(),
        ),
    )


def _reason(exchange: Path, error: Exception) -> str:
    with suppress(OSError, ValueError):
        told = json.loads((exchange / _ERROR).read_text(encoding="utf-8"))
        return f"{told['kind']}: {told['message']}"
    return f"{error} The run goes on from its last checkpoint when it is started again."


def _read_summary(exchange: Path) -> TrainSummary:
    values = json.loads((exchange / _SUMMARY).read_text(encoding="utf-8"))
    return TrainSummary(**{**values, "checkpoint": Path(values["checkpoint"])})


def _rank() -> int:
    import torch.distributed

    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


@contextmanager
def _following(config: TrainConfig, reporter: Reporter, every_s: float = 1.0) -> Iterator[None]:
    """Tell the reporter of rows as the workers write them."""
    log = config.output_dir / "log.jsonl"
    # What a resumed run drops from its log is behind the last row that was told.
    told = max((int(row["step"]) for row in read_jsonl(log)), default=-1)
    over = threading.Event()

    def follow() -> None:
        nonlocal told
        while not over.wait(every_s):
            told = _tell(log, told, reporter)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _tell(log, told, reporter)


def _tell(log: Path, told: int, reporter: Reporter) -> int:
    """Tell of the rows after step `told`; return the step of the last."""
    stepped: Callable[[int, float], None] = reporter.stepped
    for row in read_jsonl(log):
        if int(row["step"]) > told:
            reporter.logged(row)
            if row["kind"] == "train":
                stepped(int(row["step"]), float(row["loss"]))
    return max((int(row["step"]) for row in read_jsonl(log)), default=told)
