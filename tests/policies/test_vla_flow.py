"""The embedded flow-matching policy: learns, samples repeatably, saves and loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from policies import CheckpointMismatchError, VLAFlowConfig, VLAFlowPolicy
from policies.flow import interpolate, sample_time

SMALL: dict[str, Any] = {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0}


def build(**changes: Any) -> VLAFlowPolicy:
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 128, 128))
    return VLAFlowPolicy(
        VLAFlowConfig(
            device="cpu",
            input_features={
                "observation.images.image": image,
                "observation.images.image2": image,
                "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
            },
            output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
            **{**SMALL, **changes},
        )
    )


def awake(policy: VLAFlowPolicy) -> VLAFlowPolicy:
    """With weights where the head has zeros at the start."""
    for name, parameter in policy.named_parameters():
        if "modulation" in name or "final_layer" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def test_type_is_registered_and_leads_to_the_policy_class() -> None:
    assert "vla_flow" in PreTrainedConfig.get_known_choices()
    assert get_policy_class("vla_flow") is VLAFlowPolicy
    pre, post = make_pre_post_processors(build().config, dataset_stats={})
    assert pre is not None
    assert post is not None


def test_every_parameter_learns_within_three_steps(batch: dict[str, Any]) -> None:
    """Gates and output start at zero, so gradients reach the rest one step after another."""
    policy = build()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    seen: set[str] = set()
    for _ in range(3):
        optimizer.zero_grad()
        loss, log = policy(batch)
        loss.backward()
        seen |= {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert seen == dict(policy.named_parameters()).keys()
    assert log.keys() == {"flow_loss", "frequency_loss"}


def test_policy_learns_a_chunk_by_heart(batch: dict[str, Any]) -> None:
    policy = build(frequency_weight=0.0, prediction="velocity", noise_draws=1)
    one = {k: v[:1] for k, v in batch.items()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(250):
        optimizer.zero_grad()
        policy(one)[0].backward()
        optimizer.step()
    error = (policy.predict_action_chunk(one) - one["action"]).abs().mean().item()
    assert error < 0.15, error  # of actions in [-1, 1]; predicting zero gives about 0.5


def test_policy_that_predicts_actions_learns_them_sooner(batch: dict[str, Any]) -> None:
    """Than the test above: with fewer updates, and with any number of steps to the answer."""
    policy = build(frequency_weight=0.0)
    one = {k: v[:1] for k, v in batch.items()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        policy(one)[0].backward()
        optimizer.step()
    for steps in (1, 10):
        policy.config.inference_steps = steps
        error = (policy.predict_action_chunk(one) - one["action"]).abs().mean().item()
        assert error < 0.15, (steps, error)


def test_draws_are_independent_noises_of_one_observation(batch: dict[str, Any]) -> None:
    """With as many draws as there are copies of a sample, the loss is that of the copies."""
    policy = awake(build(noise_draws=2, frequency_weight=0.0, prediction="velocity"))
    torch.manual_seed(0)
    drawn, _ = policy(batch, reduction="none")
    torch.manual_seed(0)
    noise = torch.randn(8, 8, 7)
    time = sample_time(4, "uniform", draws=2)
    twice = {k: torch.repeat_interleave(v, 2, 0) for k, v in batch.items() if k != "task"}
    twice["task"] = [task for task in batch["task"] for _ in range(2)]
    error = policy.velocity_field(twice)(interpolate(twice["action"], noise, time), time)
    expected = (error - (noise - twice["action"])).square().mean((1, 2))
    torch.testing.assert_close(drawn, expected.unflatten(0, (4, 2)).mean(1))


def test_answer_depends_on_its_own_seed_alone(batch: dict[str, Any]) -> None:
    policy = awake(build())
    seeds = [5, 6, 7, 8]
    together = policy.predict_action_chunk({**batch, "noise_seed": seeds})
    alone = policy.predict_action_chunk(
        {**{k: v[2:3] for k, v in batch.items()}, "noise_seed": [7]}
    )
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)
    other = policy.predict_action_chunk({**batch, "noise_seed": [5, 6, 0, 8]})
    assert torch.equal(other[[0, 1, 3]], together[[0, 1, 3]])
    assert not torch.allclose(other[2], together[2])


def test_without_seeds_the_global_one_decides(batch: dict[str, Any]) -> None:
    policy = awake(build())
    torch.manual_seed(3)
    first, second = policy.predict_action_chunk(batch), policy.predict_action_chunk(batch)
    torch.manual_seed(3)
    assert torch.equal(policy.predict_action_chunk(batch), first)
    assert not torch.equal(first, second)


def test_length_of_other_instructions_changes_no_answer(batch: dict[str, Any]) -> None:
    policy = awake(build())
    short = {k: v[:1] for k, v in batch.items()}
    long = {**{k: v[:2] for k, v in batch.items()}}
    long["task"] = [batch["task"][0], batch["task"][0] + " and then go back where you came from"]
    found = policy.predict_action_chunk({**long, "noise_seed": [1, 2]})[:1]
    expected = policy.predict_action_chunk({**short, "noise_seed": [1]})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_padded_actions_do_not_count(batch: dict[str, Any]) -> None:
    policy = awake(build())
    batch["action_is_pad"][:, 5:] = True
    changed = {**batch, "action": batch["action"].clone()}
    changed["action"][:, 5:] = 9.0
    losses = []
    for given in (batch, changed):
        torch.manual_seed(0)
        noise_free = {**given}
        losses.append(policy(noise_free, reduction="none")[0])
    # What stands there still reaches the other steps through attention, as noise does; the loss of
    # those steps moves a little, but the 9s themselves are not in it.
    assert losses[0].shape == (4,)
    assert (losses[0] - losses[1]).abs().max() < 2.0


def test_mean_is_that_of_the_samples(batch: dict[str, Any]) -> None:
    policy = awake(build())
    torch.manual_seed(0)
    samples, _ = policy(batch, reduction="none")
    torch.manual_seed(0)
    mean, _ = policy(batch)
    torch.testing.assert_close(samples.mean(), mean)


def test_saved_policy_answers_the_same_and_other_sizes_are_refused(
    batch: dict[str, Any], tmp_path: Path
) -> None:
    policy = awake(build(solver="heun", inference_steps=3))
    policy.save_pretrained(tmp_path)
    loaded = VLAFlowPolicy.from_pretrained(tmp_path)
    seeded = {**batch, "noise_seed": [1, 2, 3, 4]}
    assert torch.equal(loaded.predict_action_chunk(seeded), policy.predict_action_chunk(seeded))
    assert loaded.config.solver == "heun"
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.num_layers = 1
    with pytest.raises(CheckpointMismatchError, match=r"unexpected model\.action_head\.blocks\.2"):
        VLAFlowPolicy.from_pretrained(tmp_path, config=config)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"solver": "rk4"}, "solver is 'rk4'"),
        ({"inference_steps": 0}, "inference_steps is 0"),
        ({"time_distribution": "normal"}, "time_distribution is 'normal'"),
        ({"prediction": "noise"}, "prediction is 'noise'"),
        ({"noise_draws": 0}, "noise_draws is 0"),
        ({"frequency_split": 1.5}, "frequency_split is 1.5"),
        ({"frequency_low": -1.0}, "frequency_low is -1.0"),
        ({"width": 33}, "width 33 is not divisible"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        VLAFlowConfig(device="cpu", **change)


def test_checkpoint_policy_gives_each_observation_its_own_noise(tmp_path: Path) -> None:
    from vla_opt.evaluation.inference import CheckpointPolicy

    policy = awake(build())
    policy.save_pretrained(tmp_path)
    pre, post = make_pre_post_processors(policy.config, dataset_stats={})
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    looks = [
        {
            "pixels": {
                key: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
                for key in ("image", "image2")
            },
            "agent_pos": rng.normal(size=8).astype(np.float32),
            "task": "open the drawer",
            "seed": seed,
        }
        for seed in (3, 4)
    ]
    alone = CheckpointPolicy(tmp_path).infer(looks)
    together = CheckpointPolicy(tmp_path, batch_size=2).infer(looks)
    np.testing.assert_allclose(alone, together, atol=1e-4)
    again = CheckpointPolicy(tmp_path).infer([{**looks[0], "seed": 9}])
    assert np.abs(again[0] - alone[0]).max() > 1e-3
