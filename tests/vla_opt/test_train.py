"""The training loop: what is learned from, how it is averaged, what it writes, how it stops."""

import dataclasses
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from tiny_runs import rows, tiny_run  # noqa: E402

from vla_opt import checkpoint  # noqa: E402
from vla_opt._session import Session  # noqa: E402
from vla_opt.config import TrainConfig, to_tree, to_yaml  # noqa: E402
from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.optim.config import OptimizerConfig  # noqa: E402
from vla_opt.seeding import derive_seed  # noqa: E402
from vla_opt.train import NonFiniteError, Reporter, train  # noqa: E402

QUIET: dict[str, Any] = {"dropout": 0.0, "noise": 0.0}


def weights(output_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"checkpoints/{step:06d}/pretrained_model/model.safetensors")


class Watch(Reporter):
    """Keeps the session, and what each update saw."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.norms: list[float] = []
        self.stages: list[str] = []

    def started(self, session: Session) -> None:
        self.session = session

        def watch(*_: object) -> None:
            gradients = [p.grad.flatten() for p in session.parameters if p.grad is not None]
            self.norms.append(torch.cat(gradients).norm().item())
            batches = range(session.config.gradient_accumulation)
            self.rows.append(
                [int(r) for m in batches for r in session.batches.rows(session.step, m)]
            )

        session.optimizer.register_step_pre_hook(watch)

    def preparing(self, what: str, done: int, total: int) -> None:
        self.stages.append(what)


def test_run_leaves_a_log_a_configuration_and_its_provenance(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(dataset, tmp_path, steps=12, keep_last=2)
    summary = train(config)
    assert [row["step"] for row in rows(tmp_path, "train")] == [3, 6, 9, 12]
    assert set(rows(tmp_path, "train")[0]) == {
        *("kind", "step", "loss", "lr", "grad_norm", "samples_per_s"),
        *("step_s", "optimizer_s", "data_s", "wall_s", "peak_memory_bytes"),
    }
    spectra = rows(tmp_path, "spectra")
    assert [row["step"] for row in spectra] == [4, 8, 12]
    assert spectra[0]["groups"]["action/pion"]["update_rms"] > 0
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert metadata["seed"] == 0
    assert "action_head.fc1.weight" in metadata["routing"]
    names = [p.name for p in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["000010", "000012"]
    assert summary.checkpoint.name == "000012"
    assert summary.samples_per_s > 0
    assert 0 < summary.optimizer_share < 1
    assert summary.peak_memory_bytes > 10**7


def test_loss_goes_down(dataset: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.0)
    policy = {**QUIET, "hidden": 64}
    config = tiny_run(dataset, tmp_path, steps=100, policy=policy, optimizer=optimizer)
    train(dataclasses.replace(config, batch_size=24, log_every=20, save_every=0))
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert losses[-1] < 0.8 * losses[0]


def test_stock_lerobot_opens_the_checkpoint(dataset: Path, tmp_path: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors
    from tiny_policy.modeling_tiny import TinyPolicy

    path = train(tiny_run(dataset, tmp_path, steps=2)).checkpoint / checkpoint.PRETRAINED
    policy = TinyPolicy.from_pretrained(path)
    for name, tensor in weights(tmp_path, 2).items():
        assert torch.equal(policy.state_dict()[name], tensor)
    before, after = make_pre_post_processors(policy.config, str(path))
    images = {key: torch.rand(2, 3, 32, 32) for key in policy.config.image_features}
    batch = before({**images, "observation.state": torch.zeros(2, 8), "task": ["a", "b"]})
    assert after(policy.predict_action_chunk(batch)).shape == (2, 4, 7)


def test_normalisation_is_that_of_the_data_and_travels_with_the_checkpoint(
    dataset: Path, cache: Any, tmp_path: Path
) -> None:
    path = train(tiny_run(dataset, tmp_path, steps=2)).checkpoint / checkpoint.PRETRAINED
    [file] = path.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    stored = load_file(file)
    for name in ("mean", "std", "q01", "q99"):
        expected = torch.as_tensor(cache.stats["action"][name], dtype=torch.float32)
        torch.testing.assert_close(stored[f"action.{name}"], expected)


def test_accumulating_two_halves_equals_one_batch(dataset: Path, tmp_path: Path) -> None:
    halves, whole = Watch(), Watch()
    common: dict[str, Any] = {"steps": 5, "policy": QUIET}
    train(
        tiny_run(dataset, tmp_path / "a", batch_size=4, **common, gradient_accumulation=2), halves
    )
    train(tiny_run(dataset, tmp_path / "b", batch_size=8, **common), whole)
    assert halves.rows == whole.rows
    assert halves.norms == pytest.approx(whole.norms, rel=1e-4)
    other = weights(tmp_path / "b", 5)
    for name, tensor in weights(tmp_path / "a", 5).items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


def test_gradient_is_clipped_and_its_norm_before_that_logged(dataset: Path, tmp_path: Path) -> None:
    watch = Watch()
    train(tiny_run(dataset, tmp_path, steps=3, grad_clip=1e-3), watch)
    assert watch.norms == pytest.approx([1e-3] * 3, rel=1e-2)
    assert rows(tmp_path, "train")[0]["grad_norm"] > 1e-2


def test_seed_decides_weights_and_order_and_the_optimizer_does_not(
    dataset: Path, tmp_path: Path
) -> None:
    seen = {}
    for name, seed in (("pion", 0), ("adamw", 0), ("pion", 1)):
        watch, folder = Watch(), tmp_path / f"{name}{seed}"
        optimizer = OptimizerConfig(name=name)
        train(tiny_run(dataset, folder, steps=4, seed=seed, optimizer=optimizer), watch)
        metadata = json.loads((folder / "metadata.json").read_text())
        seen[name, seed] = (metadata["initial_weights"], watch.rows)
    assert seen["pion", 0] == seen["adamw", 0]
    assert seen["pion", 0][0] != seen["pion", 1][0]
    assert seen["pion", 0][1] != seen["pion", 1][1]


def test_noise_differs_between_ranks_and_steps() -> None:
    seeds = {derive_seed(0, "noise", step, rank) for step in range(50) for rank in range(8)}
    assert len(seeds) == 400


def test_cached_features_of_a_frozen_encoder_train_as_images_do(
    dataset: Path, tmp_path: Path
) -> None:
    policy = {"frozen_encoder": True, **QUIET}
    watch = Watch()
    train(tiny_run(dataset, tmp_path / "a", steps=6, policy=policy), watch)
    assert "encoding frames" in watch.stages
    data = {"cache_features": False, "cache_dir": tmp_path / "other"}
    train(tiny_run(dataset, tmp_path / "b", steps=6, policy=policy, data=data))
    cached, direct = (rows(tmp_path / name, "train")[-1]["loss"] for name in "ab")
    assert cached == pytest.approx(direct, rel=1e-3)  # features are kept in 16 bits


def test_policy_that_wants_past_observations_gets_them(
    dataset: Path, cache: Any, tmp_path: Path
) -> None:
    watch = Watch()
    train(tiny_run(dataset, tmp_path, steps=2, policy={"past": 2, "chunk_size": 6}), watch)
    batch = watch.session.batches.batch(0, 0, torch.device("cpu"))
    assert batch["observation.images.image"].shape == (6, 3, 3, 32, 32)
    for i, row in enumerate(watch.session.batches.rows(0, 0)):
        first = row - cache.frame_index[row]
        past = [max(first, row - 2), max(first, row - 1), row]
        assert torch.equal(batch["observation.state"][i], torch.from_numpy(cache.state[past]))
        picture = torch.from_numpy(cache.images[past, 0]).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(batch["observation.images.image"][i], picture)
        assert torch.equal(batch["action"][i, 2], torch.from_numpy(cache.action[row]))
        assert bool(batch["action_is_pad"][i, 0]) == (cache.frame_index[row] < 2)


def test_nan_loss_stops_with_step_samples_and_last_checkpoint(
    dataset: Path, tmp_path: Path
) -> None:
    watch = Watch()
    with pytest.raises(NonFiniteError, match=r"The loss is nan at step 8; nothing") as info:
        train(tiny_run(dataset, tmp_path, policy={"poison_step": 7}), watch)
    error = info.value
    assert error.step == 8
    assert error.rows == [int(r) for r in watch.session.batches.rows(7, 0)]
    assert f"row {error.rows[0]} (episode " in str(error)
    assert error.last_checkpoint == tmp_path / "checkpoints/000005"
    assert str(error.last_checkpoint) in str(error)
    twin = pickle.loads(pickle.dumps(error))  # as a worker process hands it over
    assert (str(twin), vars(twin)) == (str(error), vars(error))
    assert len(watch.rows) == 7
    [row] = read_jsonl(tmp_path / "warnings.jsonl")
    assert row["rows"] == error.rows


def test_infinite_gradient_stops_before_it_reaches_the_weights(
    dataset: Path, tmp_path: Path
) -> None:
    class Explode(Watch):
        def started(self, session: Session) -> None:
            super().started(session)
            session.parameters[0].register_hook(lambda g: g * float("inf"))

    watch = Explode()
    with pytest.raises(NonFiniteError, match=r"gradient's norm is (inf|nan) at step 1"):
        train(tiny_run(dataset, tmp_path), watch)
    assert watch.rows == []


def test_dead_layer_is_named_in_the_log(dataset: Path, tmp_path: Path) -> None:
    class Still(Reporter):
        def started(self, session: Session) -> None:
            weight = dict(session.policy.named_parameters())["action_head.fc1.weight"]
            weight.register_hook(torch.zeros_like)

    train(tiny_run(dataset, tmp_path, steps=20), Still())
    [warning] = rows(tmp_path, "warning")
    assert warning["layers"] == ["action_head.fc1.weight"]


def test_forward_pass_in_16_bits_leaves_the_weights_in_32(dataset: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"steps": 2, "log_every": 1, "policy": QUIET}
    train(tiny_run(dataset, tmp_path / "half", mixed_precision="bf16", **common))
    train(tiny_run(dataset, tmp_path / "full", **common))
    half, full = (rows(tmp_path / name, "train")[0]["loss"] for name in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=1e-2)
    assert {t.dtype for t in weights(tmp_path / "half", 2).values()} == {torch.float32}


def test_tensorboard_shows_the_rows(dataset: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_run(dataset, tmp_path, steps=6, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(p.step, p.value) for p in events.Scalars("train/loss")]
    assert points == [(row["step"], pytest.approx(row["loss"])) for row in rows(tmp_path, "train")]


def test_yaml_of_a_run_gives_the_same_run(dataset: Path, tmp_path: Path) -> None:
    from vla_opt.cli._config import parse

    config = tiny_run(dataset, tmp_path, optimizer=OptimizerConfig(name="muon", lr=3e-3))
    (tmp_path / "x.yaml").write_text(to_yaml(config))
    again = parse(TrainConfig, [f"--config_path={tmp_path / 'x.yaml'}"])
    assert to_tree(again) == to_tree(config)
    changed = parse(TrainConfig, [f"--config_path={tmp_path / 'x.yaml'}", "--optimizer.lr=1e-4"])
    assert changed.optimizer == OptimizerConfig(name="muon", lr=1e-4)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--optimizer.lrr=1", "optimizer.lrr.*lr"),
        ("--policy.type=vla_adaptor", "vla_adapter"),
        ("--optimizer.name=poin", "pion"),
        ("--scheduler.name=cosin", "cosine"),
        ("--batch_size=0", "at least 1"),
        ("--scheduler.warmup_steps=5000", "never reach"),
    ],
)
def test_bad_key_or_value_is_refused_with_what_would_be_right(argument: str, message: str) -> None:
    from vla_opt.cli._config import parse

    with pytest.raises(ConfigError, match=message):
        parse(TrainConfig, [argument])


def test_policy_without_trainable_parameters_is_refused(dataset: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(frozen_roles=("action", "other", "excluded"))
    with pytest.raises((RuntimeError, ValueError), match=r"trainable|nothing to optimize"):
        train(tiny_run(dataset, tmp_path, optimizer=optimizer))


def test_pretrained_weights_are_loaded_all_or_not_at_all(dataset: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from vla_opt._policy import PolicyError

    made = train(tiny_run(dataset, tmp_path / "a", steps=2)).checkpoint / checkpoint.PRETRAINED
    path = shutil.copytree(made, tmp_path / "weights")  # away from the manifest over its files
    policy = {"pretrained_path": path, **QUIET}
    train(tiny_run(dataset, tmp_path / "b", steps=1, policy=policy, optimizer=still()))
    for name, tensor in weights(tmp_path / "a", 2).items():
        if name != "seen":
            assert torch.equal(weights(tmp_path / "b", 1)[name], tensor)
    stored = weights(tmp_path / "a", 2)
    del stored["action_head.fc1.weight"]
    save_file(stored, path / "model.safetensors")
    with pytest.raises(PolicyError, match=r"1 of \d+ weights .*action_head\.fc1\.weight"):
        train(tiny_run(dataset, tmp_path / "c", steps=1, policy=policy))


def still() -> OptimizerConfig:
    return OptimizerConfig(name="adamw", lr=1e-30, weight_decay=0.0)
