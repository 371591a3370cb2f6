"""pi_0.5: counted and routed at full size, run at a tiny one, and its traps."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from torch import Tensor, nn

from policies import CheckpointMismatchError, PretrainedFileError
from policies._openpi import own_names
from policies.pi05 import VLAPi05Config, VLAPi05Policy, droid_features, openpi_stats

WIDTH = 16
DROID: dict[str, Any] = {
    "chunk_size": 16,
    "n_action_steps": 8,
    "droid_action_space": "joint_velocity",
    "empty_cameras": 1,
}


def config(**changes: Any) -> VLAPi05Config:
    inputs, outputs = droid_features()
    return VLAPi05Config(
        device="cpu", input_features=inputs, output_features=outputs, **{**DROID, **changes}
    )


@functools.cache
def full(**changes: Any) -> VLAPi05Policy:
    """The full size without memory for its weights; nobody changes it."""
    made = config(**changes)
    made.device = "meta"
    with torch.device("meta"):
        return VLAPi05Policy(made)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that lerobot hard-codes, made small; its vocabulary and eight heads stay."""
    from lerobot.policies.pi05 import modeling_pi05
    from transformers import PaliGemmaConfig, SiglipVisionConfig
    from transformers.models.paligemma import modeling_paligemma

    mapping = dict(modeling_pi05.CONFIG_MAPPING.items())

    def paligemma() -> PaliGemmaConfig:
        made = mapping["paligemma"]()
        made.vision_config = SiglipVisionConfig(
            hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, patch_size=14
        )
        return made

    def projector(self: Any, given: PaliGemmaConfig) -> None:
        nn.Module.__init__(self)
        self.linear = nn.Linear(WIDTH, given.text_config.hidden_size)

    size = SimpleNamespace(
        width=WIDTH, depth=2, mlp_dim=24, num_heads=8, num_kv_heads=1, head_dim=8
    )
    monkeypatch.setattr(modeling_pi05, "get_gemma_config", lambda variant: size)
    monkeypatch.setattr(modeling_pi05, "CONFIG_MAPPING", {**mapping, "paligemma": paligemma})
    monkeypatch.setattr(modeling_paligemma.PaliGemmaMultiModalProjector, "__init__", projector)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "Task", "State", "Action", ":", ",", ";", "open", "the", "drawer"]
    table = {word: i for i, word in enumerate([*words, *map(str, range(256))])}
    made = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return str(folder)


def tiny(**changes: Any) -> VLAPi05Policy:
    torch.manual_seed(0)
    return VLAPi05Policy(config(image_resolution=(28, 28), tokenizer_max_length=24, **changes))


def batch(rows: int = 2) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    return {
        "observation.images.exterior_1_left": torch.rand(rows, 3, 36, 64, generator=rng),
        "observation.images.wrist_left": torch.rand(rows, 3, 36, 64, generator=rng),
        "observation.language.tokens": torch.randint(2, 50, (rows, 24), generator=rng),
        "observation.language.attention_mask": torch.ones(rows, 24, dtype=torch.bool),
        "action": torch.rand(rows, 16, 8, generator=rng) * 2 - 1,
    }


# -- full size ------------------------------------------------------------------------------------


def test_full_size_has_the_published_parts() -> None:
    counts = {name: p.numel() for name, p in full().model.named_parameters()}

    def part(text: str) -> int:
        return sum(count for name, count in counts.items() if text in name)

    assert part(".paligemma.model.language_model.") == 2_508_531_712  # Gemma 2B with its table
    assert part(".vision_tower.") == 412_442_352  # SigLIP-so400m at 224
    assert part(".gemma_expert.model.") == 427_932_672
    assert sum(counts.values()) == 4_143_404_816
    trained = sum(p.numel() for p in full().get_optim_params())
    assert trained == 4_143_404_816 - part("lm_head")


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "pion"])
def test_every_parameter_goes_where_the_published_code_sends_it(optimizer: str) -> None:
    from vla_opt.optim import assign_parameters, preset_rules

    expected: dict[str, tuple[str, str]] = {}
    for path, module in full().named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if not parameter.requires_grad:
                continue
            tower = ".paligemma." in name
            # Tables of words and positions and the patch convolution, norms, biases, the output.
            loose = not isinstance(module, nn.Linear)
            if parameter.ndim < 2 or loose or "action_out_proj" in name:
                expected[name] = ("excluded", "adamw")
            elif optimizer == "pion":
                expected[name] = ("language", "muon") if tower else ("action", "pion")
            else:
                expected[name] = ("language" if tower else "action", optimizer)
    routes = assign_parameters(full(), preset_rules("pi05", optimizer))
    assert {r.name: (r.rule.role, r.rule.algorithm) for r in routes} == expected
    assert not [name for name in expected if "lm_head" in name]


# -- tiny size ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_tiny_policy_learns_saves_and_loads(tmp_path: Path) -> None:
    policy = tiny()
    assert get_policy_class("vla_pi05") is VLAPi05Policy
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    losses = []
    for step in range(6):
        torch.manual_seed(step % 2)
        optimizer.zero_grad()
        loss, _ = policy(batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < sum(losses[:2])
    still = {n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None}
    # The prefix attends before the actions: what only its last output depends on has no gradient.
    assert not [n for n in still if ".paligemma." not in n]

    policy.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path).type == "vla_pi05"
    loaded = VLAPi05Policy.from_pretrained(tmp_path)
    seeded = {**batch(), "noise_seed": [4, 5]}
    expected = policy.predict_action_chunk(seeded)
    assert expected.shape == (2, 16, 8)
    assert torch.equal(loaded.predict_action_chunk(seeded), expected)
    alone = {k: v[1:] for k, v in seeded.items()}
    found = loaded.predict_action_chunk(alone)
    torch.testing.assert_close(found[0], expected[1], rtol=1e-3, atol=1e-4)

    # lerobot's own policy returns random weights here, and says so on standard output only.
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(PretrainedFileError, match="damaged"):
        VLAPi05Policy.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(PretrainedFileError, match="holds no"):
        VLAPi05Policy.from_pretrained(tmp_path)


@pytest.mark.usefixtures("small")
def test_policy_cut_among_processes_is_the_same(same_when_cut: Callable[..., None]) -> None:
    same_when_cut(tiny, batch())


@pytest.mark.usefixtures("small")
def test_padded_actions_do_not_count() -> None:
    policy = tiny()
    given = batch()
    padded = torch.zeros(2, 16, dtype=torch.bool)
    padded[:, 3:] = True
    losses = []
    for size in (0.0, 30.0):
        given["action"][:, 3:] = size
        torch.manual_seed(0)
        losses.append(policy({**given, "action_is_pad": padded})[0].item())
    torch.manual_seed(0)
    counted = policy(given)[0].item()
    assert counted > 10 * losses[1]
    assert losses[1] < 10.0


@pytest.mark.usefixtures("small")
def test_lora_reaches_both_towers_and_trains_the_projections_whole() -> None:
    policy = tiny(lora_rank=2)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    for part in (".paligemma.model.language_model.layers.1.mlp.up_proj.lora_A",
                 ".gemma_expert.model.layers.0.self_attn.o_proj.lora_B",
                 "model.time_mlp_in.weight", "model.action_out_proj.bias"):  # fmt: skip
        assert any(part in name for name in trained), part
    assert not [n for n in trained if "lora_" not in n and "_mlp_" not in n and "_proj." not in n]
    policy(batch())[0].backward()
    assert all(p.grad is None for p in policy.parameters() if not p.requires_grad)


@pytest.mark.usefixtures("small")
def test_lerobots_peft_targets_exist_in_the_model() -> None:
    """lerobot's own expression names action_time_mlp_in, which pi_0.5 does not have."""
    import re

    pattern = tiny()._get_default_peft_targets()["target_modules"]
    matched = {n for n, m in full().named_modules() if re.fullmatch(pattern, n)}
    assert {"model.time_mlp_in", "model.time_mlp_out", "model.action_in_proj"} <= matched


@pytest.mark.usefixtures("small")
def test_openpi_checkpoint_is_loaded_and_that_of_pi0_refused(
    tmp_path: Path, tokenizer: str
) -> None:
    state: dict[str, Tensor] = {
        name.removeprefix("model."): value.clone() for name, value in tiny().state_dict().items()
    }
    embed = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    output = "paligemma_with_expert.paligemma.lm_head.weight"
    state[output] = torch.randn_like(state[output])
    del state[embed]  # openpi keeps one of the two
    state["action_in_proj.bias"] = torch.arange(float(WIDTH))
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    kinds = {"mean": [0.0] * 8, "std": [1.0] * 8, "q01": [-2.0] * 8, "q99": [2.0] * 8}
    (tmp_path / "assets" / "droid").mkdir(parents=True)
    (tmp_path / "assets" / "droid" / "norm_stats.json").write_text(
        json.dumps({"norm_stats": {"state": kinds, "actions": kinds}})
    )
    loaded = tiny(openpi_path=str(tmp_path), tokenizer=tokenizer)
    found = loaded.state_dict()
    assert torch.equal(found["model.action_in_proj.bias"], state["action_in_proj.bias"])
    assert torch.equal(found[f"model.{embed}"], state[output])
    assert openpi_stats(tmp_path)["action"]["q99"].tolist() == [2.0] * 8
    _, post = make_pre_post_processors(loaded.config)
    assert post(torch.ones(1, 8)).tolist() == [pytest.approx([2.0] * 8)]

    missing = {k: v for k, v in state.items() if k != "time_mlp_in.weight"}
    safetensors.torch.save_file(missing, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"missing model\.time_mlp_in\.weight"):
        tiny(openpi_path=str(tmp_path))
    with pytest.raises(PretrainedFileError, match=r"pi_0, not pi_0\.5: they have action_time"):
        own_names({**state, "action_time_mlp_in.weight": torch.zeros(1)})


def test_older_layout_of_the_towers_is_understood() -> None:
    old = {
        "paligemma_with_expert.paligemma.language_model.model.layers.0.mlp.up_proj.weight": 1,
        "paligemma_with_expert.paligemma.language_model.lm_head.weight": 2,
        "paligemma_with_expert.paligemma.multi_modal_projector.linear.weight": 3,
    }
    found = own_names({name: torch.tensor(value) for name, value in old.items()})
    tower = "model.paligemma_with_expert.paligemma"
    assert found[f"{tower}.model.language_model.layers.0.mlp.up_proj.weight"] == 1
    assert found[f"{tower}.lm_head.weight"] == 2
    assert found[f"{tower}.model.language_model.embed_tokens.weight"] == 2
    assert found[f"{tower}.model.multi_modal_projector.linear.weight"] == 3


# -- processors and DROID -------------------------------------------------------------------------


def _stats() -> dict[str, dict[str, Tensor]]:
    low, high = torch.full((8,), -1.0), torch.full((8,), 3.0)
    return {"observation.state": {"q01": low, "q99": high}, "action": {"q01": low, "q99": high}}


def test_state_becomes_words_with_a_local_tokenizer(tokenizer: str) -> None:
    pre, post = make_pre_post_processors(
        config(tokenizer=tokenizer, tokenizer_max_length=32), dataset_stats=_stats()
    )
    seen = pre({"observation.state": torch.full((1, 8), 1.0), "task": ["open the drawer"]})
    tokens = seen["observation.language.tokens"]
    assert tokens.shape == (1, 32)
    # The middle of the bounds is bin 128; its word has the id 11 + 128.
    assert (tokens == 11 + 128).sum() == 8
    assert int(seen["observation.language.attention_mask"].sum()) < 32
    assert post(torch.zeros(1, 8)).tolist() == [[1.0] * 8]


def test_relative_joint_positions_become_absolute_and_the_gripper_stays(tokenizer: str) -> None:
    made = config(
        tokenizer=tokenizer, droid_action_space="joint_position", use_relative_actions=True
    )
    assert made.action_feature_names is not None
    pre, post = make_pre_post_processors(made, dataset_stats=_stats())
    state = torch.linspace(0, 0.7, 8)[None]
    pre({"observation.state": state, "task": ["open the drawer"]})
    found = post(torch.zeros(1, 8))  # 1.0 after unnormalising
    torch.testing.assert_close(found[:, :7], 1.0 + state[:, :7])
    assert found[0, 7] == 1.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"chunk_size": 50}, r"chunk_size is 50; pi_0.5 on DROID predicts \(15, 16\)"),
        ({"droid_action_space": "torque"}, "expected one of"),
        ({"droid_action_space": "joint_position"}, "joint_position needs True"),
        ({"use_relative_actions": True}, "joint_velocity needs False"),
        ({"lora_rank": -1}, "lora_rank is -1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(**change)


def test_other_robots_do_not_pass_for_droid() -> None:
    made = config()
    assert made.output_features is not None
    made.output_features["action"].shape = (7,)
    with pytest.raises(ValueError, match=r"the action has shape \(7,\), but DROID's has \(8,\)"):
        made.validate_features()


def test_missing_tokenizer_and_missing_quantiles_say_what_to_do(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PretrainedFileError, match=r"--policy\.tokenizer=/path"):
        make_pre_post_processors(config(tokenizer="nobody/nothing"), dataset_stats=_stats())
    without = {"action": {"mean": torch.zeros(8), "std": torch.ones(8)}}
    with pytest.raises(ValueError, match=r"'action' lack \['q01', 'q99'\]"):
        make_pre_post_processors(config(tokenizer=tokenizer), dataset_stats=without)
