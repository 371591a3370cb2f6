"""VLA-Adapter at full size: counted on the meta device, run at a tiny size, published weights."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from torch import Tensor, nn

from policies import CheckpointMismatchError, VLAAdapterFullConfig, VLAAdapterFullPolicy
from policies._pretrained import PretrainedFileError, hidden_states
from policies._prismatic import own_names, published_stats
from policies._published_head import PublishedBlock, PublishedProBlock, pairwise_rotation
from policies._vit import VisionTransformer, ViTSize
from policies.heads import L1ActionHead
from policies.modeling_vla_adapter_full import prompt

TINY: dict[str, Any] = {
    "image_size": 28,
    "num_queries": 3,
    "vision_width": (16, 24),
    "vision_depth": (3, 2),
    "vision_heads": (2, 2),
    "vision_hidden": (32, 40),
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden": 48,
    "vocabulary": 64,
}
TASKS = ["open the drawer", "pick up the bowl and place it on the plate", "Open the drawer "]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer that knows the words of the prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = re.findall(r"\w+|[^\w\s]+", " ".join(prompt(task) for task in TASKS))
    table = {word: i for i, word in enumerate(dict.fromkeys(["[UNK]", *words]))}
    made = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    assert len(table) <= TINY["vocabulary"]
    return str(folder)


def config(**changes: Any) -> VLAAdapterFullConfig:
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 128, 128))
    return VLAAdapterFullConfig(
        device="cpu",
        input_features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
        **changes,
    )


def batch(rows: int = 3) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    return {
        "observation.images.image": torch.rand(rows, 3, 40, 40, generator=rng),
        "observation.images.image2": torch.rand(rows, 3, 40, 40, generator=rng),
        "observation.state": torch.randn(rows, 8, generator=rng),
        "task": TASKS[:rows],
        "action": torch.rand(rows, 8, 7, generator=rng) * 2 - 1,
    }


@functools.cache
def full(**changes: Any) -> VLAAdapterFullPolicy:
    """The full size without memory for its weights; nobody changes it."""
    with torch.device("meta"):
        return VLAAdapterFullPolicy(config(**changes))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- full size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "parameters"), [("pro", 217_864_223), ("base", 102_129_695)])
def test_published_heads_have_the_published_number_of_parameters(
    variant: str, parameters: int
) -> None:
    model = full(variant=variant, published_compat=True).model
    assert count(model.action_head) == parameters
    assert count(model.proprio_projector) == 811_776
    assert count(model.projector) == 2176 * 8704 + 8704 + 8704 * 896 + 896 + 896 * 896 + 896
    assert count(model.language_model) == 494_032_768  # Qwen2.5-0.5B, its tied output not twice
    assert model.action_queries.weight.shape == (64, 896)
    assert len(model.language_model.layers) == len(model.action_head.mlp_resnet_blocks) == 24


@pytest.mark.parametrize("variant", ["pro", "base"])
def test_own_head_has_a_block_per_layer_and_no_dead_weights(variant: str) -> None:
    head = full(variant=variant).model.action_head
    assert isinstance(head, L1ActionHead)
    assert len(head.blocks) == 24
    assert not [n for n, _ in head.named_parameters() if "film" in n]
    # 2 or 6 key and value projections, query, output and two feed-forward layers of 896 x 896.
    squares = {"pro": 10, "base": 6}[variant]
    matrices = [p for p in head.blocks[0].parameters() if p.ndim == 2]
    assert [tuple(p.shape) for p in matrices] == [(896, 896)] * squares


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "pion"])
@pytest.mark.parametrize("compat", [True, False])
def test_every_parameter_goes_where_the_published_code_sends_it(
    optimizer: str, compat: bool
) -> None:
    """Expected from the kind of module, found by the preset's regular expressions."""
    from vla_opt.optim import assign_parameters, preset_rules

    model = full(published_compat=compat)
    expected: dict[str, tuple[str, str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            role = next(
                (r for part, r in (("vision_backbone", "vision"), ("language_model", "language"),
                                   ("action_head", "action")) if f"model.{part}." in name),
                "other",
            )  # fmt: skip
            output = name.startswith("model.action_head.fc2")
            table = isinstance(module, nn.Embedding)
            loose = not isinstance(module, nn.Linear | nn.Conv2d)
            if parameter.ndim < 2 or output or table or loose:
                expected[name] = ("excluded", "adamw")
            else:
                pion = "pion" if role == "action" else "muon"
                expected[name] = (role, pion if optimizer == "pion" else optimizer)
    routes = assign_parameters(model, preset_rules("vla_adapter", optimizer))
    assert {r.name: (r.rule.role, r.rule.algorithm) for r in routes} == expected
    assert {role for role, _ in expected.values()} == {
        *("vision", "language", "action", "other", "excluded")
    }


# -- tiny size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("variant", ["pro", "base"])
def test_tiny_policy_learns_saves_and_loads(
    variant: str, compat: bool, tokenizer: str, tmp_path: Path
) -> None:
    policy = VLAAdapterFullPolicy(
        config(**TINY, variant=variant, published_compat=compat, tokenizer=tokenizer)
    )
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    losses, dead = [], set(dict(policy.named_parameters()))
    for _ in range(8):
        optimizer.zero_grad()
        loss, _ = policy(batch())
        loss.backward()
        dead -= {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    published_dead = {n for n, _ in policy.named_parameters() if "film_gen" in n}
    assert dead - published_dead == set()
    assert bool(published_dead) == (compat and variant == "pro")

    policy.eval().save_pretrained(tmp_path)
    loaded = VLAAdapterFullPolicy.from_pretrained(tmp_path)
    expected = policy.predict_action_chunk(batch())
    assert torch.equal(loaded.predict_action_chunk(batch()), expected)
    assert expected.shape == (3, 8, 7)


def test_type_is_registered_and_normalises_by_quantiles() -> None:
    assert get_policy_class("vla_adapter_full") is VLAAdapterFullPolicy
    assert "vla_adapter_full" in PreTrainedConfig.get_known_choices()
    stats = {
        "action": {"q01": torch.full((7,), -2.0), "q99": torch.full((7,), 4.0)},
        "observation.state": {"q01": torch.zeros(8), "q99": torch.full((8,), 2.0)},
    }
    pre, post = make_pre_post_processors(config(), dataset_stats=stats)
    seen = pre({"observation.state": torch.full((1, 8), 1.5), "task": ["x"]})
    torch.testing.assert_close(seen["observation.state"], torch.full((1, 8), 0.5))
    torch.testing.assert_close(post(torch.ones(1, 7)), torch.full((1, 7), 4.0))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("compat", [True, False])
def test_company_in_the_batch_changes_no_answer(
    tokenizer: str, attention: str, compat: bool
) -> None:
    """Instructions differ in length, so some rows are padded."""
    made = config(**TINY, tokenizer=tokenizer, attention=attention, published_compat=compat)
    policy = VLAAdapterFullPolicy(made).eval()
    together, given = policy.predict_action_chunk(batch()), batch()
    for row in range(3):
        alone = {k: v[row : row + 1] for k, v in given.items()}
        found = policy.predict_action_chunk(alone)
        torch.testing.assert_close(found[0], together[row], rtol=1e-4, atol=1e-5)


def test_language_model_is_stock_qwen_and_its_states_are_transformers(tokenizer: str) -> None:
    model = VLAAdapterFullPolicy(config(**TINY, tokenizer=tokenizer)).eval().model
    tokens = torch.randn(2, 6, 32)
    mask = torch.ones(2, 6, dtype=torch.bool)
    stock = model.language_model(inputs_embeds=tokens, output_hidden_states=True)
    for ours, theirs in zip(model._run(tokens, mask), stock.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)
    layers = model.language_model.layers
    assert not any(layer._forward_pre_hooks for layer in layers)
    with pytest.raises(ZeroDivisionError):
        hidden_states(layers, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_slices_are_exact_and_published_ones_start_one_early(tokenizer: str) -> None:
    state = torch.arange(40.0)[None, :, None].expand(2, -1, 1)
    last = torch.tensor([30, 36])
    ours = VLAAdapterFullPolicy(config(**TINY, tokenizer=tokenizer)).model
    vision = ours.num_vision
    assert vision == 2 * 4
    assert ours._select(state, last)[0, :, 0].tolist() == [*range(1, 9), 37, 38, 39]
    published = VLAAdapterFullPolicy(
        config(**TINY, tokenizer=tokenizer, published_compat=True)
    ).model
    found = published._select(state, last)[..., 0].tolist()
    assert found == [[*range(8), 30, 37, 38], [*range(8), 36, 37, 38]]


def test_lora_trains_adapters_head_and_queries_alone(tokenizer: str, tmp_path: Path) -> None:
    policy = VLAAdapterFullPolicy(config(**TINY, tokenizer=tokenizer, lora_rank=2, lora_alpha=4))
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    whole = ("model.action_head.", "model.proprio_projector.", "model.action_queries.")
    assert all("lora_" in n or n.startswith(whole) for n in trained)
    linear = [
        n for n, m in policy.model.named_modules()
        if isinstance(m, nn.Linear) and not n.startswith(("action_head", "proprio_projector"))
        and "lora_" not in n
    ]  # fmt: skip
    assert len([n for n in trained if "lora_A" in n]) == len(linear)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=0.1)
    policy(batch())[0].backward()
    optimizer.step()
    moved = {n for n, p in policy.named_parameters() if not torch.equal(before[n], p)}
    assert moved <= trained
    assert any("lora_B" in n for n in moved)
    policy.eval().save_pretrained(tmp_path)
    loaded = VLAAdapterFullPolicy.from_pretrained(tmp_path)
    expected = policy.predict_action_chunk(batch())
    assert torch.equal(loaded.predict_action_chunk(batch()), expected)


def test_checkpointed_activations_give_the_same_gradients(tokenizer: str) -> None:
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        made = config(**TINY, tokenizer=tokenizer, gradient_checkpointing=again)
        policy = VLAAdapterFullPolicy(made)
        policy.train()(batch())[0].backward()
        grads.append({n: p.grad for n, p in policy.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@pytest.mark.parametrize("again", [False, True])
def test_policy_cut_among_processes_is_the_same(
    tokenizer: str, same_when_cut: Callable[..., None], again: bool
) -> None:
    made = config(**TINY, tokenizer=tokenizer, gradient_checkpointing=again)
    same_when_cut(lambda: VLAAdapterFullPolicy(made), batch())


# -- the published head ---------------------------------------------------------------------------


def _reference_rotation(x: Tensor) -> Tensor:
    """Entry by entry: channel c of position t turns by the angle of channel c mod D/2."""
    out, (length, channels) = x.clone(), x.shape[-2:]
    for t in range(length):
        for c in range(channels):
            angle = t * 1e4 ** (-2 * (c % (channels // 2)) / channels)
            other = -x[..., t, c + 1] if c % 2 == 0 else x[..., t, c - 1]
            out[..., t, c] = x[..., t, c] * math.cos(angle) + other * math.sin(angle)
    return out


def _reference_block(block: Any, x: Tensor, adapter: Tensor, task: Tensor, pro: bool) -> Tensor:
    """One head at a time, logits written out."""

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (8, -1)).transpose(1, 2)

    rotate = _reference_rotation if pro else (lambda t: t)
    names = ("self", "adapter", "task")
    k = [heads((getattr(block, f"k_{n}") if pro else block.k_proj)(s))
         for n, s in zip(names, (x, adapter, task), strict=True)]  # fmt: skip
    v = [heads((getattr(block, f"v_{n}") if pro else block.v_proj)(s))
         for n, s in zip(names, (x, adapter, task), strict=True)]  # fmt: skip
    q = rotate(heads(block.q_proj(x)))
    logits = [q @ rotate(key).transpose(-1, -2) for key in k]
    logits[2] = logits[2] * torch.tanh(block.gating_factor)
    weights = torch.softmax(torch.cat(logits, -1) / math.sqrt(q.shape[-1]), dim=-1)
    attended = (weights @ torch.cat(v, 2)).transpose(1, 2).flatten(2)
    norm, linear, _ = block.ffn
    return F.relu(linear(norm(x + block.o_proj(attended))))


@pytest.mark.parametrize(("kind", "pro"), [(PublishedBlock, False), (PublishedProBlock, True)])
def test_published_block_is_its_equations(kind: type[PublishedBlock], pro: bool) -> None:
    block = kind(32)
    nn.init.constant_(block.gating_factor, 0.7)
    x, adapter, task = torch.randn(2, 5, 32), torch.randn(2, 4, 32), torch.randn(2, 9, 32)
    expected = _reference_block(block, x, adapter, task, pro)
    torch.testing.assert_close(block(x, adapter, task), expected)


def test_published_rotation_is_none() -> None:
    """It changes lengths, which is why the published policy's keys are not merely rotated."""
    x = torch.randn(1, 1, 4, 8)
    assert torch.equal(pairwise_rotation(x)[..., 0, :], x[..., 0, :])
    assert (pairwise_rotation(x).norm(dim=-1) - x.norm(dim=-1)).abs().max() > 0.01


def test_published_base_head_answers_the_same_action_for_every_step(tokenizer: str) -> None:
    """It has no positions; ours has learned ones."""
    for compat in (True, False):
        made = config(**TINY, tokenizer=tokenizer, variant="base", published_compat=compat)
        chunk = VLAAdapterFullPolicy(made).eval().predict_action_chunk(batch())
        spread = (chunk - chunk[:, :1]).abs().max().item()
        assert (spread < 1e-6) == compat


# -- vision ---------------------------------------------------------------------------------------


def test_vision_transformer_is_transformers_siglip_without_its_end() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    size = ViTSize(width=16, depth=3, num_heads=2, hidden=24, patch=7)
    ours = VisionTransformer(size, 28).eval()
    theirs = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            image_size=28, patch_size=7, hidden_act="gelu", layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    state = theirs.state_dict()
    state = {k.removeprefix("vision_model."): v for k, v in state.items()}
    own: dict[str, Tensor] = {
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embedding.bias"],
    }
    for i in range(2):
        for kind in ("weight", "bias"):
            layer = f"encoder.layers.{i}"
            qkv = [state[f"{layer}.self_attn.{n}_proj.{kind}"] for n in "qkv"]
            own[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
            own[f"blocks.{i}.attn.proj.{kind}"] = state[f"{layer}.self_attn.out_proj.{kind}"]
            for name, other in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"),
                                ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):  # fmt: skip
                own[f"blocks.{i}.{name}.{kind}"] = state[f"{layer}.{other}.{kind}"]
    ours.load_state_dict(own)
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected = theirs(images * 2 - 1, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


def test_vision_transformer_is_transformers_dinov2_with_registers() -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    size = ViTSize(width=16, depth=3, num_heads=2, hidden=64, patch=7, num_prefix=5,
                   layer_scale=True)  # fmt: skip
    ours = VisionTransformer(size, 28).eval()
    theirs = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=16, mlp_ratio=4, num_hidden_layers=3, num_attention_heads=2, image_size=28,
            patch_size=7, num_register_tokens=4, layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    state = theirs.state_dict()
    positions = state["embeddings.position_embeddings"]  # theirs gives the class token one too
    own: dict[str, Tensor] = {
        "cls_token": state["embeddings.cls_token"] + positions[:, :1],
        "reg_token": state["embeddings.register_tokens"],
        "pos_embed": positions[:, 1:],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
    }
    for i in range(2):
        layer = f"encoder.layer.{i}"
        own[f"blocks.{i}.ls1.gamma"] = state[f"{layer}.layer_scale1.lambda1"]
        own[f"blocks.{i}.ls2.gamma"] = state[f"{layer}.layer_scale2.lambda1"]
        for kind in ("weight", "bias"):
            qkv = [state[f"{layer}.attention.attention.{n}.{kind}"] for n in ("query", "key",
                                                                             "value")]  # fmt: skip
            own[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
            own[f"blocks.{i}.attn.proj.{kind}"] = state[f"{layer}.attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                own[f"blocks.{i}.{name}.{kind}"] = state[f"{layer}.{name}.{kind}"]
    ours.load_state_dict(own)
    images = torch.rand(2, 3, 28, 28)
    mean, std = (torch.tensor(v)[:, None, None] for v in (size.mean, size.std))
    with torch.no_grad():
        seen = theirs((images - mean) / std, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(ours(images), seen[:, 5:], rtol=1e-3, atol=1e-4)


# -- published weights ----------------------------------------------------------------------------


def published_vlm(made: VLAAdapterFullConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published vision-language model, "prismatic" or "transformers".

    Independent of the code under test: from timm's and transformers' conventions.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    names = {
        "prismatic": ("dino_featurizer", "siglip_featurizer", "gamma", "llm_backbone.llm"),
        "transformers": ("featurizer", "fused_featurizer", "scale_factor", "language_model"),
    }[layout]

    def linear(name: str, out: int, inputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, inputs)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    patches = (made.image_size // 14) ** 2
    for i in (0, 1):
        width, hidden = made.vision_width[i], made.vision_hidden[i]
        vit = f"vision_backbone.{names[i]}"
        shapes[f"{vit}.pos_embed"] = (1, patches, width)
        shapes[f"{vit}.patch_embed.proj.weight"] = (width, 3, 14, 14)
        shapes[f"{vit}.patch_embed.proj.bias"] = (width,)
        if i == 0:
            shapes[f"{vit}.cls_token"] = (1, 1, width)
            shapes[f"{vit}.reg_token"] = (1, 4, width)
        else:
            shapes[f"{vit}.attn_pool.latent"] = (1, 1, width)
            for part, out in (("q", width), ("kv", 2 * width), ("proj", width)):
                linear(f"{vit}.attn_pool.{part}", out, width)
            norm(f"{vit}.attn_pool.norm", width)
            linear(f"{vit}.attn_pool.mlp.fc1", hidden, width)
            linear(f"{vit}.attn_pool.mlp.fc2", width, hidden)
        norm(f"{vit}.norm", width)
        for b in range(made.vision_depth[i]):
            block = f"{vit}.blocks.{b}"
            norm(f"{block}.norm1", width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            linear(f"{block}.mlp.fc1", hidden, width)
            linear(f"{block}.mlp.fc2", width, hidden)
            if i == 0:
                shapes[f"{block}.ls1.{names[2]}"] = shapes[f"{block}.ls2.{names[2]}"] = (width,)
    channels, width = sum(made.vision_width), made.width
    keys = {"prismatic": "projector.projector.{}", "transformers": "projector.fc{}"}[layout]
    numbers = {"prismatic": (0, 2, 4), "transformers": (1, 2, 3)}[layout]
    sizes = ((4 * channels, channels), (width, 4 * channels), (width, width))
    for number, (out, inputs) in zip(numbers, sizes, strict=True):
        linear(keys.format(number), out, inputs)
    llm, head_dim = names[3], width // made.num_heads
    shapes[f"{llm}.model.embed_tokens.weight"] = (made.vocabulary, width)
    shapes[f"{llm}.lm_head.weight"] = (made.vocabulary, width)
    shapes[f"{llm}.model.norm.weight"] = (width,)
    for b in range(made.num_layers):
        layer, kv = f"{llm}.model.layers.{b}", made.num_kv_heads * head_dim
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
        linear(f"{layer}.self_attn.q_proj", width, width)
        linear(f"{layer}.self_attn.k_proj", kv, width)
        linear(f"{layer}.self_attn.v_proj", kv, width)
        linear(f"{layer}.self_attn.o_proj", width, width, bias=False)
        for part in ("gate_proj", "up_proj"):
            linear(f"{layer}.mlp.{part}", made.hidden, width, bias=False)
        linear(f"{layer}.mlp.down_proj", width, made.hidden, bias=False)
    return shapes


def published_head(made: VLAAdapterFullConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes in the two pickled files of a checkpoint with the Pro head."""
    width, shapes = made.width, {}
    squares = ("q_proj", "k_self", "v_self", "k_adapter", "v_adapter", "k_task", "v_task", "o_proj")

    def linear(name: str, out: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inputs), (out,)

    for i in range(made.num_layers):
        block = f"module.model.mlp_resnet_blocks.{i}"
        for part in (*squares, "ffn.1"):
            linear(f"{block}.{part}", width, width)
        shapes[f"{block}.ffn.0.weight"] = shapes[f"{block}.ffn.0.bias"] = (width,)
        shapes[f"{block}.gating_factor"] = (1,)
        linear(f"{block}.film_gen.0", 2 * width, width)
    for name, size in (("layer_norm1", 7 * width), ("layer_norm2", width)):
        shapes[f"module.model.{name}.weight"] = shapes[f"module.model.{name}.bias"] = (size,)
    linear("module.model.fc1", width, 7 * width)
    linear("module.model.fc2", 7, width)
    proprio = {
        "module.fc1.weight": (width, 8), "module.fc1.bias": (width,),
        "module.fc2.weight": (width, width), "module.fc2.bias": (width,),
    }  # fmt: skip
    return {"action_head": shapes, "proprio_projector": proprio}


@pytest.mark.parametrize("layout", ["prismatic", "transformers"])
def test_every_published_name_of_the_full_size_finds_its_place(layout: str) -> None:
    made = config(published_compat=True)
    model = full(published_compat=True).model
    stored = {n: torch.empty(s, device="meta") for n, s in published_vlm(made, layout).items()}
    for part, shapes in published_head(made).items():
        for name, shape in shapes.items():
            key = f"{part}.{name.removeprefix('module.')}"
            stored[key] = torch.empty(shape, device="meta")
    named = own_names(stored, made.vision_depth)
    own = {n: t.shape for n, t in model.state_dict().items()}
    del own["action_queries.weight"]
    assert {n: t.shape for n, t in named.items()} == own


def _values(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def _prismatic_folder(folder: Path, made: VLAAdapterFullConfig) -> dict[str, Tensor]:
    values = _values(published_vlm(made, "prismatic"))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest.removeprefix("projector.")] = value
    (folder / "checkpoints").mkdir()
    torch.save({"model": parts}, folder / "checkpoints" / "latest-checkpoint.pt")
    return values


def _adapter_folder(folder: Path, made: VLAAdapterFullConfig) -> dict[str, Tensor]:
    shapes = published_vlm(made, "transformers")
    shapes["action_queries.weight"] = (made.num_queries, made.width)
    values = _values(shapes)
    safetensors.torch.save_file(values, folder / "model.safetensors")
    for part, head in published_head(made).items():
        torch.save(_values(head), folder / f"{part}--150000_checkpoint.pt")
    stats = {
        "action": {"q01": [-0.5] * 7, "q99": [0.5] * 7, "mask": [True] * 6 + [False]},
        "proprio": {"q01": [0.0] * 8, "q99": [1.0] * 8},
    }
    table = json.dumps({"libero_object_no_noops": stats})
    (folder / "dataset_statistics.json").write_text(table)
    return values


def test_published_backbone_is_loaded_from_a_folder(tokenizer: str, tmp_path: Path) -> None:
    made = config(**TINY, tokenizer=tokenizer, vlm_path=str(tmp_path))
    values = _prismatic_folder(tmp_path, made)
    model = VLAAdapterFullPolicy(made).model
    for name, ours in {
        "vision_backbone.dino_featurizer.blocks.1.ls1.gamma":
            model.vision_backbone.featurizer.blocks[1].ls1.gamma,
        "vision_backbone.siglip_featurizer.blocks.0.attn.qkv.weight":
            model.vision_backbone.fused_featurizer.blocks[0].attn.qkv.weight,
        "projector.projector.4.bias": model.projector.fc3.bias,
        "llm_backbone.llm.model.layers.1.mlp.up_proj.weight":
            model.language_model.layers[1].mlp.up_proj.weight,
    }.items():  # fmt: skip
        assert torch.equal(ours, values[name]), name


def test_published_checkpoint_is_loaded_whole_and_saved_as_ours(
    tokenizer: str, tmp_path: Path
) -> None:
    source, saved = tmp_path / "published", tmp_path / "ours"
    source.mkdir()
    made = config(**TINY, tokenizer=tokenizer, head_path=str(source), published_compat=True)
    values = _adapter_folder(source, made)
    head = torch.load(source / "action_head--150000_checkpoint.pt")
    policy = VLAAdapterFullPolicy(made).eval()
    assert torch.equal(policy.model.action_queries.weight, values["action_queries.weight"])
    block = policy.model.action_head.mlp_resnet_blocks[1]
    expected = head["module.model.mlp_resnet_blocks.1.k_task.weight"]
    assert torch.equal(block.k_task.weight, expected)
    policy.save_pretrained(saved)
    loaded = VLAAdapterFullPolicy.from_pretrained(saved)
    assert loaded.config.head_path == ""
    chunk = policy.predict_action_chunk(batch())
    assert torch.equal(loaded.predict_action_chunk(batch()), chunk)


def test_published_checkpoint_becomes_one_that_can_be_evaluated(
    tokenizer: str, tmp_path: Path
) -> None:
    from policies import import_vla_adapter
    from vla_opt.evaluation.inference import CheckpointPolicy

    source, folder = tmp_path / "published", tmp_path / "ours"
    source.mkdir()
    _adapter_folder(source, config(**TINY, published_compat=True))
    import_vla_adapter(str(source), folder, picture_size=64, tokenizer=tokenizer, **TINY)
    rng = np.random.default_rng(0)
    look = {
        "pixels": {
            k: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for k in ("image", "image2")
        },
        "agent_pos": rng.normal(size=8).astype(np.float32),
        "task": TASKS[0],
        "seed": 0,
    }
    (chunk,) = CheckpointPolicy(folder).infer([look])
    policy = VLAAdapterFullPolicy.from_pretrained(folder)
    raw = {f"observation.images.{k}": torch.from_numpy(v).permute(2, 0, 1)[None]
           for k, v in look["pixels"].items()}  # fmt: skip
    state = torch.from_numpy(look["agent_pos"])[None] * 2 - 1  # bounds 0 and 1 to -1 and 1
    expected = policy.predict_action_chunk({**raw, "observation.state": state, "task": [TASKS[0]]})
    np.testing.assert_allclose(chunk[:, :6], 0.5 * expected[0, :, :6], atol=1e-4)
    np.testing.assert_allclose(chunk[:, 6], 1 - 2 * expected[0, :, 6], atol=1e-4)


def test_published_gripper_becomes_that_of_libero(tmp_path: Path) -> None:
    made = config(**TINY, published_compat=True, head_path=str(tmp_path))
    _adapter_folder(tmp_path, made)
    pre, post = make_pre_post_processors(made)
    del pre
    actions = torch.zeros(2, 7)
    actions[:, 0] = 1.0
    actions[:, 6] = torch.tensor([0.0, 1.0])  # published: 0 closed, 1 open
    found = post(actions)
    assert found[:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert found[:, 6].tolist() == pytest.approx([1.0, -1.0])  # LIBERO: +1 closed, -1 open
    with pytest.raises(PretrainedFileError, match="it has \\['libero_object_no_noops'\\]"):
        published_stats(str(tmp_path), "libero_goal_no_noops")


def test_published_files_that_do_not_fit_are_refused(tokenizer: str, tmp_path: Path) -> None:
    made = config(**TINY, tokenizer=tokenizer, vlm_path=str(tmp_path))
    with pytest.raises(PretrainedFileError, match=r"neither \*\.safetensors nor"):
        VLAAdapterFullPolicy(made)
    shapes = published_vlm(made, "transformers")
    del shapes["language_model.model.layers.0.self_attn.q_proj.weight"]
    safetensors.torch.save_file(_values(shapes), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"missing language_model\.layers\.0\.self"):
        VLAAdapterFullPolicy(made)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "latest-checkpoint.pt").write_bytes(b"not a pickle")
    with pytest.raises(PretrainedFileError, match="cannot be read as a file of tensors"):
        VLAAdapterFullPolicy(made)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"variant": "max"}, "variant is 'max'"),
        ({"head_path": "x"}, "set published_compat=true"),
        ({"attention": "none"}, "attention is 'none'"),
        ({"lora_rank": -1}, "lora_rank is -1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(**change)


def test_missing_hub_files_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    policy = VLAAdapterFullPolicy(config(**TINY, tokenizer="nobody/no-such-tokenizer"))
    with pytest.raises(PretrainedFileError, match=r"--policy\.tokenizer=/path"):
        policy.predict_action_chunk(batch())
    with pytest.raises(PretrainedFileError, match="neither a folder here nor in the hub's cache"):
        VLAAdapterFullPolicy(config(**TINY, vlm_path="nobody/no-such-backbone"))
