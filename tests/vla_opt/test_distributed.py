"""Two processes train as one with a batch twice as large: gradients are averaged, one writes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from tiny_runs import rows, tiny_run  # noqa: E402

from vla_opt import train as module  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.schedules import SchedulerConfig  # noqa: E402

CHILD = """
import sys
from pathlib import Path
from tiny_runs import tiny_run
from vla_opt.schedules import SchedulerConfig
from vla_opt.train import train

root, folder, batch, sharding = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for steps in (2, 4):  # the second goes on from the first
    train(tiny_run(root, folder, steps=steps, batch_size=batch, gradient_accumulation=2,
                   policy={"dropout": 0.0, "noise": 0.0},
                   scheduler=SchedulerConfig(name="constant"), sharding=sharding))
"""


def launch(world: int, *arguments: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(PLUGIN), str(Path(module.__file__).parents[1])])
    common = {
        **os.environ,
        "PYTHONPATH": path,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "ACCELERATE_USE_CPU": "true",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_train_as_one_with_twice_the_batch(
    dataset: Path, tmp_path: Path, sharding: str
) -> None:
    for process in launch(2, str(dataset), str(tmp_path / "two"), "3", sharding):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    quiet = {"dropout": 0.0, "noise": 0.0}
    one = tiny_run(
        dataset,
        tmp_path / "one",
        steps=4,  # less than an epoch, whose rest is another for another batch size
        batch_size=12,
        policy=quiet,
        scheduler=SchedulerConfig(name="constant"),
    )
    module.train(one)
    [shared, alone] = (
        load_file(tmp_path / f"{name}/checkpoints/000004/pretrained_model/model.safetensors")
        for name in ("two", "one")
    )
    for name in shared.keys() - {"seen"}:
        # Steps move a weight by up to 1e-3, AdamW's those with hardly any gradient too.
        torch.testing.assert_close(shared[name], alone[name], rtol=1e-4, atol=2e-4)
    for key, tolerance in (("loss", 1e-6), ("grad_norm", 1e-4)):
        last = [rows(tmp_path / name, "train")[-1][key] for name in ("two", "one")]
        assert last[0] == pytest.approx(last[1], rel=tolerance), key
    assert [row["step"] for row in rows(tmp_path / "two", "train")] == [2, 3, 4]
    assert read_jsonl(tmp_path / "two/warnings.jsonl") == []
