"""pi_0.5 at the size that trains on one CPU: built, routed, trained, saved; words without a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from torch import Tensor

from policies.pi05 import VLAPi05Config, VLAPi05Policy

ROOT = Path(__file__).resolve().parents[2]
IMAGE = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 64))
SOUP = "pick up the alphabet soup and place it in the basket"


def config(**changes: Any) -> VLAPi05Config:
    given: dict[str, Any] = {
        "device": "cpu",
        "size": "embedded",
        "tokenizer": "minilm_l6_v2",
        "tokenizer_max_length": 48,
        "image_resolution": (64, 64),
        "chunk_size": 8,
        "n_action_steps": 4,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "input_features": {
            "observation.images.image": IMAGE,
            "observation.images.image2": IMAGE,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        "output_features": {"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
    }
    return VLAPi05Config(**{**given, **changes})


@pytest.fixture(scope="module")
def policy() -> VLAPi05Policy:
    torch.manual_seed(0)
    return VLAPi05Policy(config())


def stats() -> dict[str, dict[str, Tensor]]:
    def bounds(size: int) -> dict[str, Tensor]:
        return {"q01": torch.full((size,), -1.0), "q99": torch.full((size,), 1.0)}

    return {"observation.state": bounds(8), "action": bounds(7)}


def raw() -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    return {
        "observation.images.image": torch.rand(2, 3, 64, 64, generator=rng),
        "observation.images.image2": torch.rand(2, 3, 64, 64, generator=rng),
        "observation.state": torch.rand(2, 8, generator=rng) * 2 - 1,
        "action": torch.rand(2, 8, 7, generator=rng) * 2 - 1,
        "task": [SOUP, "open the drawer"],
    }


def test_it_is_lerobots_network_with_fewer_numbers(policy: VLAPi05Policy) -> None:
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy

    with torch.device("meta"):
        full = PI05Policy(_lerobots())
    assert isinstance(policy, PI05Policy)
    assert _layers(policy) == _layers(full)
    trained = sum(p.numel() for p in policy.get_optim_params())
    assert trained + (64 - 16) * 96 == 5_712_488  # docs/policies.md counts 64 positions, not 16
    head = policy.model.paligemma_with_expert.paligemma.lm_head.weight
    assert not head.requires_grad


def _lerobots() -> Any:
    from lerobot.policies.pi05.configuration_pi05 import PI05Config

    made = config()
    found = PI05Config(
        device="cpu", input_features=made.input_features, output_features=made.output_features
    )
    found.device = "meta"
    return found


def _layers(policy: torch.nn.Module) -> set[str]:
    """Names of the weights, whatever number a layer has."""
    import re

    return {re.sub(r"\.\d+\.", ".N.", name) for name in policy.state_dict()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "pion"])
def test_every_parameter_goes_where_the_full_size_has_it(
    policy: VLAPi05Policy, optimizer: str
) -> None:
    from vla_opt.optim import assign_parameters, preset_rules

    routes = {r.name: r.rule for r in assign_parameters(policy, preset_rules("pi05", optimizer))}
    assert routes.keys() == {n for n, p in policy.named_parameters() if p.requires_grad}
    for name, rule in routes.items():
        if rule.role == "excluded":
            assert rule.algorithm == "adamw"
        elif ".paligemma." in name:
            assert rule.algorithm == ("muon" if optimizer == "pion" else optimizer)
        else:
            assert (rule.role, rule.algorithm) == ("action", optimizer)


def test_words_and_state_become_tokens_without_a_hub(tmp_path: Path) -> None:
    made = config()
    pre, post = make_pre_post_processors(made, dataset_stats=stats())
    seen = pre(raw())
    tokens, mask = (seen[f"observation.language.{key}"] for key in ("tokens", "attention_mask"))
    assert tokens.shape == mask.shape == (2, 48)
    assert int(tokens.max()) < 30_522
    # Task, colon, eleven words, State and eight numbers, punctuation, Action: none is cut off.
    assert 24 < int(mask[0].sum()) < 48
    assert not torch.equal(tokens[0], tokens[1])

    pre.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    [step] = [s for s in stored["steps"] if "tokenizer_name" in s.get("config", {})]
    assert step["config"]["tokenizer_name"] == "minilm_l6_v2"  # no folder of this machine
    loaded, _ = make_pre_post_processors(made, pretrained_path=str(_with_post(tmp_path, post)))
    assert torch.equal(loaded(raw())["observation.language.tokens"], tokens)


def _with_post(folder: Path, post: Any) -> Path:
    post.save_pretrained(folder)
    return folder


def test_it_learns_saves_and_answers_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = VLAPi05Policy(config())
    pre, _ = make_pre_post_processors(policy.config, dataset_stats=stats())
    batch = pre(raw())
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=2e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(3)
        optimizer.zero_grad()
        loss, _ = policy(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    policy.save_pretrained(tmp_path)
    seeded = {**batch, "noise_seed": [4, 5]}
    found = VLAPi05Policy.from_pretrained(tmp_path).predict_action_chunk(seeded)
    assert found.shape == (2, 8, 7)
    assert torch.equal(found, policy.eval().predict_action_chunk(seeded))


def test_frozen_vision_and_lora_work_at_this_size_too() -> None:
    frozen = VLAPi05Policy(config(freeze_vision_encoder=True))
    assert not [n for n, p in frozen.named_parameters() if "vision_tower" in n and p.requires_grad]
    adapted = VLAPi05Policy(config(lora_rank=2))
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert any(".paligemma.model.language_model.layers.0.mlp.up_proj.lora_A" in n for n in trained)
    assert any(".gemma_expert.model.layers.3.self_attn.q_proj.lora_B" in n for n in trained)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"size": "huge"}, r"size is 'huge', expected one of \['full', 'embedded'\]"),
        ({"tokenizer": "google/paligemma-3b-pt-224"}, "does not go with tokenizer"),
        ({"size": "full"}, "does not go with tokenizer 'minilm_l6_v2'"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(**change)


def test_recipe_has_the_quickstarts_data_and_budget() -> None:
    from vla_opt._quickstart_config import QuickstartConfig
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies

    def read(name: str) -> Any:
        return parse(QuickstartConfig, load_policies([f"--config_path={ROOT}/configs/{name}"]))

    ours, quickstart = read("quickstart_pi05.yaml"), read("quickstart.yaml")
    assert ours.train.policy.type == "vla_pi05"
    assert ours.train.policy.size == "embedded"
    assert ours.demos == quickstart.demos
    assert ours.train.data.frame_stride == quickstart.train.data.frame_stride
    assert (ours.train.steps, ours.train.batch_size) == (600, 32)
    assert (ours.eval.episodes, ours.eval.execute_steps) == (10, 4)
