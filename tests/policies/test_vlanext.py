"""The full-size flow-matching policy: counted on the meta device, run at a tiny size."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from torch import Tensor, nn

from policies import CheckpointMismatchError, PretrainedFileError, VLANeXtConfig, VLANeXtPolicy
from policies._qwen3_vl import patchify, rope_positions
from policies.modeling_vlanext import prompt_parts

TINY: dict[str, Any] = {
    "image_size": 32,
    "num_queries": 3,
    "head_width": 16,
    "head_heads": 2,
    "head_mlp_ratio": 2.0,
    "vision_width": 16,
    "vision_depth": 3,
    "vision_heads": 2,
    "vision_hidden": 24,
    "vision_positions": 16,
    "deepstack": (0, 1),
    "patch": 8,
    "width": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mrope_section": (2, 1, 1),
    "hidden": 48,
    "vocabulary": 64,
}
TASKS = ["open the drawer", "pick up the bowl and place it on the plate", "close the door"]
IMAGE_PAD = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer that knows the words of the prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = " ".join(part for task in TASKS for part in prompt_parts(task, 2))
    words = re.findall(r"\w+|[^\w\s]+", text)
    table = {word: i for i, word in enumerate(dict.fromkeys(["[UNK]", *words]))}
    made = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    assert len(table) <= IMAGE_PAD
    return str(folder)


def config(**changes: Any) -> VLANeXtConfig:
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 128, 128))
    return VLANeXtConfig(
        device="cpu",
        input_features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
        **changes,
    )


def tiny(tokenizer: str, **changes: Any) -> VLANeXtPolicy:
    policy = VLANeXtPolicy(config(**{**TINY, **changes}, tokenizer=tokenizer))
    for name, parameter in policy.named_parameters():
        if "modulation" in name or "final_layer" in name:  # zeros at the start
            nn.init.normal_(parameter, std=0.1)
    return policy


def batch(rows: int = 3) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    return {
        "observation.images.image": torch.rand(rows, 3, 40, 40, generator=rng),
        "observation.images.image2": torch.rand(rows, 3, 40, 40, generator=rng),
        "observation.state": torch.randn(rows, 8, generator=rng),
        "task": TASKS[:rows],
        "action": torch.rand(rows, 8, 7, generator=rng) * 2 - 1,
        "noise_seed": list(range(rows)),
    }


@functools.cache
def full() -> VLANeXtPolicy:
    """The full size without memory for its weights; nobody changes it."""
    with torch.device("meta"):
        return VLANeXtPolicy(config())


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_full_size_has_the_published_number_of_parameters() -> None:
    model = full().model
    assert count(model.action_head) == 612_338_695
    assert len(model.action_head.blocks) == 29
    assert count(model.vlm.language_model) == 1_720_574_976  # that of Qwen3-1.7B
    assert model.meta_queries.shape == (16, 2048)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "pion"])
def test_every_parameter_goes_where_the_published_code_sends_it(optimizer: str) -> None:
    """Expected from the kind of module, found by the preset's regular expressions."""
    from vla_opt.optim import assign_parameters, preset_rules

    expected: dict[str, tuple[str, str]] = {}
    for path, module in full().named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            role = next(
                (r for part, r in (("vlm.visual", "vision"), ("vlm.language_model", "language"),
                                   ("action_head", "action")) if f"model.{part}." in name),
                "other",
            )  # fmt: skip
            matrix = isinstance(module, nn.Linear) or name == "model.meta_queries"
            time_or_output = ".t_embedder." in name or ".final_layer." in name
            if parameter.ndim < 2 or not matrix or time_or_output:
                expected[name] = ("excluded", "adamw")
            else:
                pion = "pion" if role == "action" else "muon"
                expected[name] = (role, pion if optimizer == "pion" else optimizer)
    rules = preset_rules("vlanext", optimizer, adamw_lr_ratio=0.1)
    routes = assign_parameters(full(), rules)
    assert {r.name: (r.rule.role, r.rule.algorithm) for r in routes} == expected
    assert {r.rule.lr_ratio for r in routes if r.rule.role == "excluded"} == {0.1}
    spectral = sum(
        r.parameter.numel() for r in routes
        if r.rule.role == "action" and "action_head" in r.name
    )  # fmt: skip
    assert spectral == pytest.approx(608.2e6, rel=1e-3)  # as counted in the published code


def test_tiny_policy_learns_and_every_parameter_with_it(tokenizer: str) -> None:
    policy = tiny(tokenizer, num_layers=2)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    # Positions beyond the chunk, and the table's rows of other words, stay.
    losses, dead = [], set(dict(policy.named_parameters()))
    for _ in range(20):
        optimizer.zero_grad()
        loss, _ = policy(batch())
        loss.backward()
        dead -= {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert dead == set()


def test_saved_policy_answers_the_same(tokenizer: str, tmp_path: Path) -> None:
    policy = tiny(tokenizer).eval()
    policy.save_pretrained(tmp_path)
    loaded = VLANeXtPolicy.from_pretrained(tmp_path)
    expected = policy.predict_action_chunk(batch())
    assert expected.shape == (3, 8, 7)
    assert torch.equal(loaded.predict_action_chunk(batch()), expected)
    assert get_policy_class("vlanext") is VLANeXtPolicy
    assert "vlanext" in PreTrainedConfig.get_known_choices()
    assert len(make_pre_post_processors(policy.config, dataset_stats={})) == 2


def test_company_in_the_batch_changes_no_answer(tokenizer: str) -> None:
    """Instructions differ in length, so some rows are padded; the published head sees that."""
    policy = tiny(tokenizer).eval()
    together, given = policy.predict_action_chunk(batch()), batch()
    for row in range(3):
        alone = {k: v[row : row + 1] for k, v in given.items()}
        found = policy.predict_action_chunk(alone)
        torch.testing.assert_close(found[0], together[row], rtol=1e-4, atol=1e-5)


def test_patches_are_those_of_transformers() -> None:
    from transformers import Qwen2VLImageProcessor

    images = torch.rand(2, 3, 32, 64)
    processor = Qwen2VLImageProcessor(
        patch_size=8, merge_size=2, temporal_patch_size=2, do_resize=False, do_rescale=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    made = processor([image.numpy() for image in images], return_tensors="pt")
    assert made.image_grid_thw.tolist() == [[1, 4, 8]] * 2
    found = patchify(images, 8)
    torch.testing.assert_close(found, torch.as_tensor(made.pixel_values), rtol=1e-5, atol=1e-5)


def test_positions_and_states_are_those_of_transformers(tokenizer: str) -> None:
    """The same sequence, without proprioception and queries, through transformers' own forward."""
    policy = tiny(tokenizer).eval()
    model = policy.model
    model.vlm.config.image_token_id = IMAGE_PAD
    images = torch.rand(2, 2, 3, 32, 32)
    first, between = torch.randint(1, 50, (2, 3)), torch.randint(1, 50, (2, 2))
    last, last_mask = torch.randint(1, 50, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    last_mask[1, 3:] = False
    pads = torch.full((2, 4), IMAGE_PAD)
    ids = torch.cat([first, pads, between, pads, last], dim=1)
    mask = torch.cat([torch.ones(2, 13, dtype=torch.bool), last_mask], dim=1)
    grids = torch.tensor([[1, 4, 4]] * 4)
    kinds = (ids == IMAGE_PAD).int()
    layout = [3, (2, 2), 2, (2, 2), 5]
    theirs, _ = model.vlm.get_rope_index(
        ids, mm_token_type_ids=kinds, image_grid_thw=grids, attention_mask=mask.long()
    )
    ours = rope_positions(layout, mask)  # type: ignore[arg-type]
    assert torch.equal(ours[:, mask], theirs[:, mask])

    with torch.no_grad():
        stock = model.vlm(
            input_ids=ids,
            attention_mask=mask.long(),
            pixel_values=patchify(images.flatten(0, 1), 8),
            image_grid_thw=grids,
            mm_token_type_ids=kinds,
        ).last_hidden_state
        vision, deepstack, grid = model._look(images.flatten(0, 1))
        assert grid == (2, 2)
        vision = vision.unflatten(0, (2, 2, -1))
        words = [model.vlm.language_model.embed_tokens(x) for x in (first, between, last)]
        tokens = torch.cat([words[0], vision[:, 0], words[1], vision[:, 1], words[2]], dim=1)
        states = model._run(tokens, mask, layout, kinds.bool(), deepstack)  # type: ignore[arg-type]
    assert len(states) == model.config.num_layers + 1
    assert torch.equal(states[0], tokens)
    torch.testing.assert_close(states[-1][mask], stock[mask], rtol=1e-4, atol=1e-5)
    # What the vision tower adds behind the first layer is part of the state behind it.
    with torch.no_grad():
        zeros = [torch.zeros_like(d) for d in deepstack]
        without = model._run(tokens, mask, layout, kinds.bool(), zeros)  # type: ignore[arg-type]
    difference = (states[1] - without[1])[kinds.bool()]
    torch.testing.assert_close(difference, deepstack[0], rtol=1e-4, atol=1e-5)


def test_published_backbone_is_loaded_by_name(tokenizer: str, tmp_path: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    stock = Qwen3VLForConditionalGeneration(tiny(tokenizer).model.vlm.config)
    state: dict[str, Tensor] = {k: v.clone() for k, v in stock.state_dict().items()}
    assert "model.visual.merger.linear_fc1.weight" in state  # as in the published files
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    loaded = VLANeXtPolicy(config(**TINY, tokenizer=tokenizer, vlm_path=str(tmp_path)))
    for name, value in loaded.model.vlm.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"]), name

    del state["model.language_model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"missing language_model\.layers\.1\.mlp"):
        VLANeXtPolicy(config(**TINY, vlm_path=str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(PretrainedFileError, match=r"holds no \*\.safetensors"):
        VLANeXtPolicy(config(**TINY, vlm_path=str(tmp_path)))


def test_lora_trains_adapters_head_and_queries_alone(tokenizer: str) -> None:
    policy = tiny(tokenizer, lora_rank=2, lora_alpha=4)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    whole = ("model.action_head.", "model.proprio_projector.", "model.meta_queries")
    assert all("lora_" in n or n.startswith(whole) for n in trained)
    linear = [
        n for n, m in policy.model.vlm.named_modules()
        if isinstance(m, nn.Linear) and "lora_" not in n
    ]  # fmt: skip
    assert len([n for n in trained if "lora_A" in n]) == len(linear)
    policy(batch())[0].backward()
    assert all(p.grad is None for p in policy.parameters() if not p.requires_grad)


def test_checkpointed_activations_give_the_same_gradients(tokenizer: str) -> None:
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        policy = tiny(tokenizer, gradient_checkpointing=again).train()
        torch.manual_seed(1)
        policy(batch())[0].backward()
        grads.append({n: p.grad for n, p in policy.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@pytest.mark.parametrize("again", [False, True])
def test_policy_cut_among_processes_is_the_same(
    tokenizer: str, same_when_cut: Callable[..., None], again: bool
) -> None:
    same_when_cut(lambda: tiny(tokenizer, gradient_checkpointing=again), batch())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_size": 250}, "expected a multiple of 2 \\* patch = 32"),
        ({"head_heads": 3}, "does not divide by 3 heads"),
        ({"mrope_section": (1, 1, 1)}, "half of head_dim=128"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(**change)
