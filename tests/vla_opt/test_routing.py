"""Which parameter gets which algorithm: rules, presets, configuration, and the optimizer built."""

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from vla_opt.optim import (
    PRESETS,
    MixedOptimizer,
    Muon,
    OptimizerConfig,
    Pion,
    Rule,
    assign_parameters,
    build_optimizer,
    preset_rules,
    published_options,
    routing_table,
)

# Names and dimensions as in the models the presets are for; sizes are small.
MODELS = {
    "vla_adapter": {
        "vision_backbone.featurizer.cls_token": ((1, 1, 8), "excluded"),
        "vision_backbone.featurizer.patch_embed.proj.weight": ((8, 3, 2, 2), "vision"),
        "vision_backbone.featurizer.blocks.0.attn.qkv.weight": ((24, 8), "vision"),
        "vision_backbone.featurizer.blocks.0.norm1.weight": ((8,), "excluded"),
        "language_model.model.embed_tokens.weight": ((50, 8), "excluded"),
        "language_model.model.layers.0.self_attn.q_proj.weight": ((8, 8), "language"),
        "language_model.lm_head.weight": ((50, 8), "excluded"),
        "vision_projector.0.fc2.weight": ((8, 8), "other"),
        "proprio_projector.fc1.weight": ((8, 4), "other"),
        "action_queries.weight": ((6, 8), "excluded"),
        "queries": ((1, 6, 8), "excluded"),
        "action_head.model.fc1.weight": ((8, 8), "action"),
        "action_head.model.mlp_resnet_blocks.0.q_proj.weight": ((8, 8), "action"),
        "action_head.model.mlp_resnet_blocks.0.ffn.fc2.weight": ((8, 8), "action"),
        "action_head.model.mlp_resnet_blocks.0.gating_factor": ((1,), "excluded"),
        "action_head.model.fc2.weight": ((7, 8), "excluded"),
        "action_head.fc2.weight": ((7, 8), "excluded"),
    },
    "vlanext": {
        "lmm.model.visual.patch_embed.proj.weight": ((8, 3, 2, 2), "excluded"),
        "lmm.model.visual.blocks.0.attn.qkv.weight": ((24, 8), "vision"),
        "lmm.model.language_model.layers.0.mlp.up_proj.weight": ((16, 8), "language"),
        "meta_queries": ((16, 8), "other"),
        "action_projector.weight": ((8, 7), "other"),
        "action_head.t_embedder.mlp.0.weight": ((8, 8), "excluded"),
        "action_head.blocks.0.attn.qkv.weight": ((24, 8), "action"),
        "action_head.final_layer.linear.weight": ((7, 8), "excluded"),
    },
    "pi05": {
        "model.paligemma_with_expert.paligemma.lm_head.weight": ((50, 8), "excluded"),
        "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings."
        "patch_embedding.weight": ((8, 3, 2, 2), "excluded"),
        "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0."
        "mlp.fc1.weight": ((16, 8), "language"),
        "model.paligemma_with_expert.gemma_expert.model.layers.0.mlp.up_proj.weight": (
            (16, 8),
            "action",
        ),
        "model.action_in_proj.weight": ((8, 7), "action"),
        "model.time_mlp_in.weight": ((8, 8), "action"),
        "model.action_time_mlp_out.weight": ((8, 8), "action"),
        "model.action_out_proj.weight": ((7, 8), "excluded"),
        "model.something_new.weight": ((8, 8), "other"),
    },
    "smolvla": {
        "model.vlm_with_expert.vlm.model.vision_model.embeddings.patch_embedding.weight": (
            (8, 3, 2, 2),
            "excluded",
        ),
        "model.vlm_with_expert.vlm.model.vision_model.embeddings.position_embedding.weight": (
            (4, 8),
            "excluded",
        ),
        "model.vlm_with_expert.vlm.model.vision_model.encoder.layers.0.mlp.fc1.weight": (
            (16, 8),
            "vision",
        ),
        "model.vlm_with_expert.vlm.model.connector.modality_projection.proj.weight": (
            (8, 8),
            "other",
        ),
        "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight": ((50, 8), "excluded"),
        "model.vlm_with_expert.vlm.model.text_model.layers.0.self_attn.q_proj.weight": (
            (8, 8),
            "language",
        ),
        "model.vlm_with_expert.vlm.lm_head.weight": ((50, 8), "excluded"),
        "model.vlm_with_expert.lm_expert.layers.0.self_attn.q_proj.weight": ((8, 8), "action"),
        "model.vlm_with_expert.lm_expert.norm.weight": ((8,), "excluded"),
        "model.state_proj.weight": ((8, 8), "action"),
        "model.action_in_proj.weight": ((8, 7), "action"),
        "model.action_time_mlp_in.weight": ((8, 16), "action"),
        "model.action_out_proj.weight": ((7, 8), "excluded"),
    },
    "qwen3": {
        "model.embed_tokens.weight": ((50, 8), "excluded"),
        "model.layers.0.self_attn.q_proj.weight": ((8, 8), "matrix"),
        "model.layers.0.self_attn.k_proj.weight": ((4, 8), "matrix"),
        "model.layers.0.self_attn.v_proj.weight": ((4, 8), "matrix"),
        "model.layers.0.self_attn.o_proj.weight": ((8, 8), "matrix"),
        "model.layers.0.mlp.up_proj.weight": ((16, 8), "matrix"),
        "model.layers.0.mlp.experts.down_proj": ((3, 8, 16), "matrix"),
        "model.norm.weight": ((8,), "excluded"),
        "lm_head.weight": ((50, 8), "excluded"),
    },
    "default": {
        "encoder.weight": ((8, 8), "matrix"),
        "encoder.pos_embed": ((1, 4, 8), "excluded"),
        "table": ((2, 4, 8), "excluded"),
        "encoder.bias": ((8,), "excluded"),
    },
}
ACTION_PION = {"vision": "muon", "language": "muon", "action": "pion", "other": "muon"}
UNDER_PION: dict[str, dict[str, str]] = {
    "vla_adapter": ACTION_PION,
    "vlanext": ACTION_PION,
    "pi05": {"language": "muon", "action": "pion", "other": "adamw"},
    "smolvla": ACTION_PION,
    "qwen3": {"matrix": "pion"},
    "default": {"matrix": "pion"},
}


def parameters_of(preset: str) -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    shapes = MODELS[preset]
    return [(name, nn.Parameter(torch.randn(shape))) for name, (shape, _) in shapes.items()]


class Model(nn.Module):
    """A module with the parameters of `MODELS`."""

    def __init__(self, preset: str = "vla_adapter") -> None:
        super().__init__()
        self.pairs = parameters_of(preset)
        for i, (_, parameter) in enumerate(self.pairs):
            self.register_parameter(str(i), parameter)

    def named_parameters(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        return iter(self.pairs)


def with_gradients(pairs: list[tuple[str, nn.Parameter]], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in pairs:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("preset", sorted(MODELS))
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "pion"])
def test_preset_routes_as_the_published_code(preset: str, optimizer: str) -> None:
    routes = assign_parameters(parameters_of(preset), preset_rules(preset, optimizer))
    found = {route.name: (route.rule.role, route.rule.algorithm) for route in routes}
    for name, (_, role) in MODELS[preset].items():
        under = UNDER_PION[preset].get(role, "adamw")
        algorithm = under if optimizer == "pion" else optimizer
        assert found[name] == (role, "adamw" if role == "excluded" else algorithm), name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "pion"])
def test_every_parameter_is_trained_exactly_once(preset: str, optimizer: str) -> None:
    pairs = parameters_of(preset)
    built = build_optimizer(pairs, preset_rules(preset, optimizer), lr=0.1)
    names = [name for group in built.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in pairs)
    before = {name: p.detach().clone() for name, p in pairs}
    with_gradients(pairs)
    built.step()
    assert all(not torch.equal(before[name], p) for name, p in pairs)


def test_names_of_openpi_and_of_lerobot_are_routed_alike() -> None:
    """lerobot's pi_0.5 is openpi's under the prefix "model."."""
    theirs = {name: torch.zeros(shape) for name, (shape, _) in MODELS["pi05"].items()}
    pairs = [(name.removeprefix("model."), nn.Parameter(p)) for name, p in theirs.items()]
    for route in assign_parameters(pairs, preset_rules("pi05", "pion")):
        assert route.rule.role == MODELS["pi05"]["model." + route.name][1], route.name


def test_first_match_wins() -> None:
    rules = [Rule("head", "pion"), Rule("head.out", "adamw"), Rule(".*", "muon")]
    routes = assign_parameters([("head.out", nn.Parameter(torch.zeros(2, 2)))], rules)
    assert routes[0].rule.algorithm == "pion"


def test_dimensions_can_decide() -> None:
    rules = [
        Rule(".*", "adamw", max_ndim=1),
        Rule(".*", "muon", min_ndim=4),
        Rule(".*", "pion"),
    ]
    pairs = [(str(n), nn.Parameter(torch.zeros((2,) * n))) for n in (1, 2, 4)]
    found = {r.name: r.rule.algorithm for r in assign_parameters(pairs, rules)}
    assert found == {"1": "adamw", "2": "pion", "4": "muon"}


def test_parameter_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match=r"'bias' with shape \(2,\) matches none of the 1 rules"):
        build_optimizer(nn.Linear(3, 2), [Rule("weight", "pion")], lr=0.1)


def test_parameter_given_twice_is_named() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="'b' and 'a' are the same"):
        assign_parameters([("a", parameter), ("b", parameter)], [Rule(".*", "pion")])
    with pytest.raises(ValueError, match="two parameters are called 'a'"):
        assign_parameters(
            [("a", parameter), ("a", nn.Parameter(parameter + 1))], [Rule("", "pion")]
        )


def test_tied_parameters_of_a_module_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert [r.name for r in assign_parameters(model, [Rule("", "pion")])] == ["0.weight"]


def test_parameters_that_need_no_gradient_are_left_out() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    built = build_optimizer(model, [Rule("weight", "pion")], lr=0.1)
    assert [g["param_names"] for g in built.param_groups] == [["weight"]]
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to optimize"):
        build_optimizer(model, [Rule("", "pion")], lr=0.1)


def test_table_shows_who_gets_what() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    lines = routing_table(model, preset_rules("default", "pion", adamw_lr_ratio=0.5)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "algorithm role lr x parameter shape count elements",
        "adamw excluded 0.5 *.bias 4 3 12",
        "pion matrix 1 *.weight 4x4 3 48",
    ]


def test_groups_equal_the_single_optimizers() -> None:
    """A mixed optimizer is bit for bit Pion, Muon and torch's AdamW side by side."""
    model, copies = Model(), parameters_of("vla_adapter")
    options = {"weight_decay": 0.1, "momentum": 0.9}
    mixed = OptimizerConfig(lr=0.01, promotion_steps=2, **options).build(model)

    def groups(algorithm: str) -> list[dict[str, list[nn.Parameter]]]:
        chosen = [g["param_names"] for g in mixed.param_groups if g["algorithm"] == algorithm]
        return [{"params": [dict(copies)[name] for name in names]} for names in chosen]

    singles = [
        Pion(groups("pion"), 0.01, promotion_steps=2, **options),
        Muon(groups("muon"), 0.01, **options),
        torch.optim.AdamW(groups("adamw"), 0.01, weight_decay=0.1, fused=True),
    ]
    for seed in range(5):
        with_gradients(model.pairs, seed)
        with_gradients(copies, seed)
        mixed.step()
        for single in singles:
            single.step()
    for (name, ours), (_, theirs) in zip(model.pairs, copies, strict=True):
        assert torch.equal(ours, theirs), name


def test_adamw_takes_any_layout_in_memory() -> None:
    W, G = torch.randn(6, 4), torch.randn(6, 4)
    transposed, plain = nn.Parameter(W.clone().T), nn.Parameter(W.T.contiguous())
    optimizers = (
        MixedOptimizer([{"params": [transposed], "algorithm": "adamw"}], 0.1),
        torch.optim.AdamW([plain], 0.1),
    )
    for _ in range(3):
        transposed.grad, plain.grad = G.T.contiguous(), G.T.contiguous()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(transposed, plain)
    ours, theirs = (o.state_dict()["state"][0]["exp_avg"] for o in optimizers)
    torch.testing.assert_close(ours, theirs)


def test_adamw_gives_bfloat16_weights_masters() -> None:
    parameter = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = MixedOptimizer([{"params": [parameter], "algorithm": "adamw"}], 1e-4)
    for _ in range(100):
        parameter.grad = torch.ones(64, dtype=torch.bfloat16)
        optimizer.step()
    # In bfloat16 1 - 1e-4 rounds to 1: without masters nothing would have moved.
    assert torch.ones(1, dtype=torch.bfloat16) - 1e-4 == 1.0
    torch.testing.assert_close(parameter, torch.full_like(parameter, 0.99))


def test_learning_rates_follow_lr_ratio_under_every_optimizer() -> None:
    for name in ("adamw", "muon", "pion"):
        rules = preset_rules("vla_adapter", name, adamw_lr_ratio=0.1)
        groups = build_optimizer(parameters_of("vla_adapter"), rules, lr=2.0).param_groups
        rates = {group["role"]: group["lr"] for group in groups}
        assert rates == pytest.approx(
            {"excluded": 0.2, "vision": 2.0, "language": 2.0, "action": 2.0, "other": 2.0}
        )


def test_schedulers_keep_the_ratio() -> None:
    rules = preset_rules("vla_adapter", "pion", adamw_lr_ratio=0.1)
    built = build_optimizer(parameters_of("vla_adapter"), rules, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(built, lambda step: 1.0 if step == 0 else 0.5)
    built.step()
    scheduler.step()
    assert {g["role"]: g["lr"] for g in built.param_groups}["excluded"] == pytest.approx(0.05)


def test_heads_of_qwen3() -> None:
    rules = preset_rules("qwen3", "pion", num_heads=4, num_kv_heads=2)
    built = build_optimizer(parameters_of("qwen3"), rules, lr=0.1)
    heads = {
        name.split(".")[-2]: (group["num_heads"], group["head_axis"])
        for group in built.param_groups
        if group["algorithm"] == "pion"
        for name in group["param_names"]
    }
    assert heads["q_proj"] == (4, 0)
    assert heads["k_proj"] == heads["v_proj"] == (2, 0)
    assert heads["o_proj"] == (4, 1)
    assert heads["up_proj"] == (None, None)
    names = [group["name"] for group in built.param_groups]
    assert len(names) == len(set(names))
    with pytest.raises(ValueError, match="per-head rules exist for 'vla_adapter' and 'qwen3'"):
        preset_rules("pi05", "pion", num_heads=4)
    with pytest.raises(ValueError, match="need num_heads"):
        preset_rules("qwen3", "pion", num_kv_heads=4)


def test_heads_of_the_action_head_of_vla_adapter() -> None:
    names = ("action_head.blocks.0.", "language_model.layers.0.")
    layers = ("q_proj", "k_self", "v_self", "k_task", "v_adapter", "o_proj", "feed_forward.up_proj")
    model = torch.nn.Module()
    for name in names:
        block = model
        for part in name.strip(".").split("."):
            block.add_module(part, getattr(block, part, torch.nn.Module()))
            block = block.get_submodule(part)
        block.add_module("feed_forward", torch.nn.Module())
        for layer in layers:
            parent, _, leaf = layer.rpartition(".")
            block.get_submodule(parent).add_module(leaf, torch.nn.Linear(8, 8, bias=False))
    built = build_optimizer(model, preset_rules("vla_adapter", "pion", num_heads=4), lr=0.1)
    heads = {
        name.removesuffix(".weight"): (group["num_heads"], group["head_axis"])
        for group in built.param_groups
        for name in group["param_names"]
    }
    for layer in ("q_proj", "k_self", "v_self", "k_task", "v_adapter"):
        assert heads[names[0] + layer] == (4, 0)
    assert heads[names[0] + "o_proj"] == (4, 1)
    assert heads[names[0] + "feed_forward.up_proj"] == (None, None)
    assert all(heads[names[1] + layer] == (None, None) for layer in layers)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "qwen3"])
def test_preset_is_found_by_the_names_it_was_made_for(preset: str) -> None:
    found, asked = OptimizerConfig(), OptimizerConfig(preset=preset)
    assert found.table(Model(preset)) == asked.table(Model(preset))


def test_roles_can_be_given_another_algorithm() -> None:
    config = OptimizerConfig(roles={"vision": "pion", "language": "adamw"})
    groups = config.build(Model()).param_groups
    assert {g["role"]: g["algorithm"] for g in groups} == {
        "excluded": "adamw",
        "vision": "pion",
        "language": "adamw",
        "action": "pion",
        "other": "muon",
    }


def test_frozen_roles_are_not_trained() -> None:
    model = Model()
    groups = OptimizerConfig(frozen_roles=("action", "excluded")).build(model).param_groups
    assert {g["role"] for g in groups} == {"vision", "language", "other"}
    frozen = {name for name, p in model.pairs if not p.requires_grad}
    expected = {n for n, (_, r) in MODELS["vla_adapter"].items() if r in ("action", "excluded")}
    assert frozen == expected


def test_options_of_the_configuration_reach_their_groups() -> None:
    config = OptimizerConfig(
        lr=3e-4, weight_decay=0.2, momentum=0.8, nesterov=False, betas=(0.8, 0.9), eps=1e-6,
        promotion_steps=2, suppression_steps=3, update_scale=0.5,
    )  # fmt: skip
    for group in config.build(Model()).param_groups:
        assert (group["lr"], group["weight_decay"]) == (3e-4, 0.2)
        if group["algorithm"] == "adamw":
            assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
            continue
        assert (group["momentum"], group["nesterov"]) == (0.8, False)
        assert (group["update_scale"], group["eps"]) == (0.5, 1e-7)
        if group["algorithm"] == "pion":
            assert (group["promotion_steps"], group["suppression_steps"]) == (2, 3)


def test_published_options_reach_the_groups_of_their_algorithm() -> None:
    model = nn.Module()
    for name in ("paligemma_with_expert.paligemma.q_proj", "paligemma_with_expert.gemma_expert.up",
                 "action_out_proj"):  # fmt: skip
        model.register_parameter(name.replace(".", "/"), nn.Parameter(torch.ones(3, 4)))
    named = [(name.replace("/", "."), p) for name, p in model.named_parameters()]
    optimizer = build_optimizer(
        named, preset_rules("pi05", "pion"), lr=1e-4, options=published_options("pi05")
    )
    groups = {group["algorithm"]: group for group in optimizer.param_groups}
    assert set(groups) == {"adamw", "muon", "pion"}
    assert groups["adamw"]["betas"] == (0.9, 0.95)
    for name in ("muon", "pion"):
        assert (groups[name]["update_scale"], groups[name]["nesterov"]) == (2.0, False)
    assert (groups["pion"]["promotion_steps"], groups["pion"]["suppression_steps"]) == (0, 5)
    pion = Pion([torch.nn.Parameter(torch.ones(3, 4))], 1e-4, **published_options("qwen3")["pion"])
    assert pion.param_groups[0]["update_scale"] == 5.0
    with pytest.raises(ValueError, match=r"published recipe 'pi5'\. Did you mean 'pi05'"):
        published_options("pi5")


def test_configuration_defaults() -> None:
    config = OptimizerConfig()
    assert (config.name, config.promotion_steps, config.suppression_steps) == ("pion", 1, 4)
    assert "pion" in config.table(Model())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "poin"}, "Unknown optimizer 'poin'. Did you mean 'pion'"),
        ({"name": "adam"}, "Did you mean 'adamw'"),
        ({"name": "pionoet"}, "Did you mean 'pion_oet'.*2605.19282.*2605.12492"),
        ({"name": "zzz"}, "Valid: adamw, .*muon, .*pion, pion_oet"),
        ({"options": {"promotions": 1}}, "option of pion 'promotions'.*'promotion_steps'"),
        ({"nonfinite": "skipp"}, "Did you mean 'skip'"),
        ({"preset": "vla_adaptor"}, "Unknown preset 'vla_adaptor'. Did you mean 'vla_adapter'"),
        ({"roles": {"lenguage": "pion"}}, "Did you mean 'language'"),
        ({"roles": {"language": "moun"}}, "Did you mean 'muon'"),
        ({"frozen_roles": ("actoin",)}, "Did you mean 'action'"),
    ],
)
def test_unknown_names_come_with_the_nearest(options: Mapping[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


def test_unknown_algorithm_or_option_of_a_rule_comes_with_the_nearest() -> None:
    model = nn.Linear(3, 2, bias=False)
    with pytest.raises(ValueError, match="Did you mean 'pion'"):
        build_optimizer(model, [Rule("", "pionn")], lr=0.1)
    with pytest.raises(ValueError, match=r"option of pion 'promotion_step'.*'promotion_steps'"):
        build_optimizer(model, [Rule("", "pion", options={"promotion_step": 2})], lr=0.1)
    with pytest.raises(ValueError, match="option of muon 'promotion_steps'"):
        build_optimizer(model, [Rule("", "muon")], lr=0.1, options={"muon": {"promotion_steps": 1}})
    with pytest.raises(ValueError, match=r"option of adamw 'beta'.*'betas'"):
        MixedOptimizer([{"params": [model.weight], "algorithm": "adamw", "beta": 0.9}], 0.1)
    with pytest.raises(ValueError, match="without 'algorithm'"):
        MixedOptimizer([{"params": [model.weight]}], 0.1)
    with pytest.raises(ValueError, match="betas"):
        MixedOptimizer([{"params": [model.weight], "algorithm": "adamw", "betas": (1.0, 2)}], 0.1)


def test_rule_refuses_what_cannot_match() -> None:
    with pytest.raises(ValueError, match=r"'\(' is not valid"):
        Rule("(", "pion")
    with pytest.raises(ValueError, match="lr_ratio"):
        Rule("", "pion", lr_ratio=-1.0)


def test_import_needs_torch_and_nothing_of_the_robot_stack() -> None:
    heavy = ("lerobot", "ray", "transformers", "mujoco", "robosuite", "gymnasium", "draccus",
             "envs", "policies", "vla_opt.train", "vla_opt.evaluation")  # fmt: skip
    code = (
        "import sys, json, vla_opt.optim, vla_opt.spectral, vla_opt.diagnostics;"
        f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
