"""The VLA-Adapter policy: loss, prediction, contracts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from policies import UnknownNameError, VLAAdapterConfig, VLAAdapterPolicy

Batch = dict[str, Any]
MakeConfig = Callable[..., VLAAdapterConfig]


def test_frozen_encoders_are_neither_parameters_nor_state(policy: VLAAdapterPolicy) -> None:
    policy.prepare(["open the drawer"])
    names = [*dict(policy.named_parameters()), *policy.state_dict()]
    assert not [n for n in names if "vision_backbone" in n or "text_encoder" in n]
    assert sum(p.numel() for p in policy.parameters()) < 3_000_000


def test_trained_backbone_is_part_of_the_policy(make_config: MakeConfig) -> None:
    policy = VLAAdapterPolicy(make_config(backbone="compact"))
    assert [n for n, _ in policy.named_parameters() if "vision_backbone" in n]


def test_parameter_names_that_optimizer_routing_relies_on(policy: VLAAdapterPolicy) -> None:
    names = [name for name, _ in policy.named_parameters()]
    for part in (
        "language_model.layers.3",
        "action_head.blocks.3",
        "action_head.fc2.weight",
        "queries",
        "vision_projector.1",
        "proprio_projector",
        "text_projector",
    ):
        assert any(part in name for name in names), part


def test_every_parameter_gets_a_gradient(policy: VLAAdapterPolicy, batch: Batch) -> None:
    loss, log = policy(batch)
    loss.backward()
    still = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert log == {"l1_loss": pytest.approx(loss.item())}


def test_loss_is_the_mean_over_real_actions(policy: VLAAdapterPolicy, batch: Batch) -> None:
    batch["action_is_pad"][1, 3:] = True
    batch["action_is_pad"][2, 1:] = True
    real = ~batch["action_is_pad"]
    error = (policy.predict_action_chunk(batch) - batch["action"]).abs()
    loss, _ = policy(batch)
    assert loss.item() == pytest.approx(error[real].mean().item(), rel=1e-5)
    batch["action"][~real] = 1e6
    assert policy(batch)[0].item() == loss.item()
    per_sample, _ = policy(batch, reduction="none")
    assert per_sample[2].item() == pytest.approx(error[2, 0].mean().item(), rel=1e-5)


def test_batch_without_any_real_action_has_zero_loss(
    policy: VLAAdapterPolicy, batch: Batch
) -> None:
    batch["action_is_pad"][:] = True
    assert policy(batch)[0].item() == 0.0


def test_cached_features_and_images_give_the_same_actions(
    policy: VLAAdapterPolicy, batch: Batch, images: dict[str, torch.Tensor]
) -> None:
    rest = {"observation.state": batch["observation.state"][:2], "task": batch["task"][:2]}
    from_images = policy.predict_action_chunk({**images, **rest})
    features = policy.encode_images(torch.stack(list(images.values()), dim=1))
    from_features = policy.predict_action_chunk({"observation.features": features, **rest})
    assert from_images.shape == (2, 8, 7)
    assert torch.equal(from_images, from_features)
    cached = policy.predict_action_chunk({"observation.features": features.half(), **rest})
    torch.testing.assert_close(cached, from_features, rtol=0, atol=0.01)


def test_bytes_and_floats_are_the_same_image(policy: VLAAdapterPolicy) -> None:
    raw = torch.randint(0, 256, (1, 2, 3, 128, 128), dtype=torch.uint8)
    assert torch.equal(policy.encode_images(raw), policy.encode_images(raw.float() / 255))


def test_images_of_another_size_are_resized(policy: VLAAdapterPolicy) -> None:
    coarse = torch.rand(2, 3, 8, 8)
    small, large = (
        torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[None]
        for side in (128, 256)
    )
    expected, found = policy.encode_images(small), policy.encode_images(large)
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.15 * expected.abs().mean()


def test_a_sample_is_predicted_alike_in_any_batch(policy: VLAAdapterPolicy, batch: Batch) -> None:
    together = policy.predict_action_chunk(batch)
    for i in range(4):
        alone = {key: value[i : i + 1] for key, value in batch.items()}
        torch.testing.assert_close(
            policy.predict_action_chunk(alone)[0], together[i], rtol=0, atol=1e-5
        )


def test_training_mode_changes_no_prediction(policy: VLAAdapterPolicy, batch: Batch) -> None:
    expected = policy.eval().predict_action_chunk(batch)
    assert torch.equal(policy.train().predict_action_chunk(batch), expected)
    assert not policy.training  # equal bits alone may be luck: training pads, and rounds otherwise


def test_actions_depend_on_every_input(policy: VLAAdapterPolicy, batch: Batch) -> None:
    expected = policy.predict_action_chunk(batch)
    for key in ("observation.features", "observation.state"):
        changed = {**batch, key: batch[key].flip(0)}
        assert (policy.predict_action_chunk(changed) - expected).abs().max() > 1e-3, key
    changed = {**batch, "task": ["close the drawer"] * 4}
    assert (policy.predict_action_chunk(changed) - expected).abs().max() > 1e-4


def test_policy_learns_which_instruction_means_which_action(
    make_config: MakeConfig, batch: Batch
) -> None:
    """Same image and state; only the words tell the actions apart, also in a paraphrase."""
    policy = VLAAdapterPolicy(make_config(width=32, num_layers=1))
    same = {key: batch[key][:1].repeat_interleave(2, 0) for key in batch if key != "task"}
    same["task"] = [batch["task"][0], batch["task"][1]]
    same["action"] = torch.stack([torch.full((8, 7), 0.5), torch.full((8, 7), -0.5)])
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=5e-3)
    for _ in range(40):
        loss, _ = policy(same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    same["task"] = [
        "put the can of alphabet soup into the basket",
        "put the bbq sauce in the basket",
    ]
    soup, sauce = policy.predict_action_chunk(same).mean((1, 2))
    assert soup > 0.1
    assert sauce < -0.1


def test_select_action_walks_through_the_chunk_then_looks_again(
    make_config: MakeConfig, batch: Batch
) -> None:
    policy = VLAAdapterPolicy(make_config(n_action_steps=3))
    chunk = policy.predict_action_chunk(batch)
    later = {**batch, "observation.state": batch["observation.state"] + 1}
    taken = [policy.select_action(batch)] + [policy.select_action(later) for _ in range(3)]
    assert torch.equal(torch.stack(taken[:3], 1), chunk[:, :3])
    assert torch.equal(taken[3], policy.predict_action_chunk(later)[:, 0])
    policy.reset()
    assert torch.equal(policy.select_action(batch), chunk[:, 0])


def test_batch_that_does_not_fit_is_explained(policy: VLAAdapterPolicy, batch: Batch) -> None:
    def complaint(**changes: Any) -> str:
        changed = {k: v for k, v in {**batch, **changes}.items() if v is not None}
        with pytest.raises(ValueError, match=r".+") as error:
            policy(changed)
        return str(error.value)

    text = complaint(**{"observation.features": torch.zeros(4, 2, 49, 112)})
    assert "(4, 2, 49, 112), expected (B, 2, 64, 112)" in text
    assert "expected (B, 8, 7)" in complaint(action=torch.zeros(4, 5, 7))
    assert "no 'observation.state'" in complaint(**{"observation.state": None})
    assert "no 'observation.images.image'" in complaint(**{"observation.features": None})
    assert "3 tasks" in complaint(task=["a", "b", "c"])


def test_trained_backbone_refuses_cached_features(make_config: MakeConfig, batch: Batch) -> None:
    policy = VLAAdapterPolicy(make_config(backbone="compact"))
    with pytest.raises(ValueError, match="'compact' is trained: it needs images"):
        policy(batch)


def test_compact_policy_trains_from_images(
    make_config: MakeConfig, batch: Batch, images: dict[str, torch.Tensor]
) -> None:
    policy = VLAAdapterPolicy(make_config(backbone="compact"))
    few = {k: v[:2] for k, v in batch.items() if k != "observation.features"}
    policy({**images, **few})[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"backbone": "efficentnet"}, UnknownNameError, "Did you mean 'efficientnet_lite0'"),
        ({"text_encoder": "minilm"}, UnknownNameError, "Did you mean 'minilm_l6_v2'"),
        ({"language_model": "transfomer"}, UnknownNameError, "Did you mean 'transformer'"),
        ({"width": 130}, ValueError, "not divisible by num_heads"),
        ({"n_action_steps": 9}, ValueError, r"1\.\.chunk_size=8"),
        ({"n_obs_steps": 2}, ValueError, "looks at 1 frame"),
    ],
)
def test_configuration_errors_say_what_to_do(
    make_config: MakeConfig, changes: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        make_config(**changes)


def test_features_that_are_missing_or_do_not_fit_are_named(make_config: MakeConfig) -> None:
    config = make_config(view_pooling=[1])
    with pytest.raises(ValueError, match="1 entries for 2 views"):
        VLAAdapterPolicy(config)
    config = make_config(image_keys=["observation.images.wrist"])
    with pytest.raises(ValueError, match=r"observation\.images\.wrist.* are not image features"):
        VLAAdapterPolicy(config)
    config = make_config()
    assert config.input_features is not None
    del config.input_features["observation.state"]
    with pytest.raises(ValueError, match=r"no 'observation\.state'"):
        VLAAdapterPolicy(config)


def test_one_view_and_another_view_order_are_possible(make_config: MakeConfig) -> None:
    one = make_config(image_keys=["observation.images.image2"], view_pooling=[2])
    assert VLAAdapterPolicy(one).model.features_shape == (1, 64, 112)
    turned = make_config(image_keys=["observation.images.image2", "observation.images.image"])
    assert VLAAdapterPolicy(turned).config.views[0] == "observation.images.image2"
