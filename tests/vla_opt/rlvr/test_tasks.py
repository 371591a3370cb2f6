"""Questions, models and tokenizers: what a run is made of before the first reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_opt.errors import ConfigError, UnknownNameError
from vla_opt.optim import OptimizerConfig
from vla_opt.rlvr import (
    ModelConfig,
    ObjectiveConfig,
    RLVRConfig,
    SamplingConfig,
    SmallModelConfig,
    TaskConfig,
    WarmStartConfig,
    examples,
    reward,
)
from vla_opt.rlvr.accuracy import accuracy
from vla_opt.rlvr.tasks import is_held_out
from vla_opt.rlvr.text_models import CHARACTERS, build_model, character_tokenizer
from vla_opt.rlvr.warm_start import answer_loss, warm_start


def calm(examples: int) -> settings:
    """On a crowded machine a microsecond's work may take a second: time decides nothing here."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)


MADE = ("addition", "modular", "copy", "reverse")


@pytest.mark.parametrize("name", MADE)
def test_no_question_is_both_trained_on_and_held_out(name: str) -> None:
    task = TaskConfig(name=name, digits=3, examples=300, held_out=40)
    train, test = (examples(task, split, seed=0) for split in ("train", "test"))
    questions = [{row["prompt"] for row in rows} for rows in (train, test)]
    assert [len(q) for q in questions] == [300, 40]
    assert not {"".join(sorted(q)) for q in questions[0]} & {
        "".join(sorted(q)) for q in questions[1]
    }


@pytest.mark.parametrize("name", MADE)
def test_answers_are_right_and_get_the_reward(name: str) -> None:
    task = TaskConfig(name=name, digits=3, examples=50, held_out=1)
    score = reward(task.reward_name)
    for row in examples(task, "train", seed=1):
        text = row["prompt"].removesuffix("=")
        total = eval(text) if "+" in text else 0  # our own digits and a plus sign
        expected = {
            "addition": str(total),
            "modular": str(total % 10),
            "copy": text,
            "reverse": text[::-1],
        }
        assert row["answer"] == expected[name]
        assert score(row["answer"], row["answer"]) == 1.0
        assert score(row["answer"] + "1", row["answer"]) == 0.0


def test_questions_depend_on_the_seed_alone() -> None:
    task = TaskConfig(examples=20, held_out=5)
    assert examples(task, "train", 3) == examples(task, "train", 3)
    assert examples(task, "train", 3) != examples(task, "train", 4)


def test_too_few_different_questions_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"raise task.digits"):
        examples(TaskConfig(digits=1, examples=101, held_out=1), "train", 0)
    with pytest.raises(ConfigError, match=r"only \d+ different questions to test"):
        examples(TaskConfig(name="copy", digits=1, held_out=10), "test", 0)


def test_gsm8k_and_math_are_read_from_files_with_a_split_by_hash(tmp_path: Path) -> None:
    rows = [
        {"question": f"How many are {k} apples?", "answer": f"They are <<{k}>>.\n#### {k},000"}
        for k in range(1, 41)
    ]
    file = tmp_path / "gsm.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(name="gsm8k", source=str(file), examples=0, held_out=0)
    train, test = (examples(task, split, 0) for split in ("train", "test"))
    assert len(train) + len(test) == 40
    assert test
    assert all(is_held_out(row["prompt"][0]["content"].partition("\n")[0]) for row in test)
    first = train[0]
    assert first["answer"].endswith(",000")
    assert reward("gsm8k")(f"#### {first['answer'].replace(',', '')} apples", first["answer"]) == 1

    problems = [
        {"problem": f"p{k}", "solution": rf"so \boxed{{\frac{{{k}}}{{3}}}}", "level": f"Level {k}"}
        for k in range(1, 6)
    ]
    file = tmp_path / "math.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in problems))
    task = TaskConfig(name="math", source=str(file), examples=0, held_out=0, levels=(3, 4))
    both = [row for split in ("train", "test") for row in examples(task, split, 0)]
    assert {row["answer"] for row in both} == {r"\frac{3}{3}", r"\frac{4}{3}"}
    assert r"\boxed{}" in both[0]["prompt"][0]["content"]


def test_a_source_that_is_not_there_says_what_to_give() -> None:
    task = TaskConfig(name="gsm8k", source="/nowhere/at/all")
    with pytest.raises(ConfigError, match=r"task\.source='/nowhere/at/all'"):
        examples(task, "train", 0)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'addition'"):
        TaskConfig(name="adition")
    with pytest.raises(UnknownNameError, match="Did you mean 'gsm8k'"):
        TaskConfig(reward="gsm8")


# Model and tokenizer -----------------------------------------------------------------------------


@given(st.text(alphabet=CHARACTERS, max_size=30))
@calm(50)
def test_characters_come_back(text: str) -> None:
    tokenizer = character_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_tokenizer_survives_being_stored(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    character_tokenizer("01+=").save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("1+0=")["input_ids"] == [4, 5, 3, 6]
    assert (loaded.padding_side, loaded.pad_token_id, loaded.eos_token_id) == ("left", 0, 1)


def test_small_model_takes_per_head_rules() -> None:
    torch.manual_seed(0)
    model, _ = build_model(ModelConfig(small=SmallModelConfig(heads=4, kv_heads=2)))
    optimizer = OptimizerConfig(name="pion", preset="qwen3", num_heads=4, num_kv_heads=2)
    groups = optimizer.build(model).param_groups
    heads = {(g.get("num_heads"), g.get("head_axis")) for g in groups if g["algorithm"] == "pion"}
    assert heads == {(4, 0), (2, 0), (4, 1), (None, None)}
    adamw = {n for g in groups if g["algorithm"] == "adamw" for n in g["param_names"]}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= adamw


def test_a_model_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_model(ModelConfig(path=str(tmp_path / "nothing")))


def test_warm_start_teaches_the_answers_and_only_them() -> None:
    torch.manual_seed(0)
    sizes = SmallModelConfig(
        hidden_size=32, layers=1, heads=2, kv_heads=1, characters="0123456789="
    )
    model, tokenizer = build_model(ModelConfig(small=sizes))
    data = examples(TaskConfig(name="copy", digits=1, examples=6, held_out=1), "train", 0)
    before = answer_loss(model, tokenizer, data).item()
    losses = warm_start(model, tokenizer, data, WarmStartConfig(steps=60, lr=1e-2), seed=0)
    after = answer_loss(model, tokenizer, data).item()
    assert losses[0] == pytest.approx(before, rel=0.2)
    assert after < 0.5 * before
    found = accuracy(model, tokenizer, data, reward("exact"), max_tokens=3)
    assert found.questions == 6
    assert found.right >= 4
    assert found.reward == found.right / 6
    assert found.row()["low"] < found.right / 6 <= found.row()["high"]


def test_warm_start_repeats_with_its_seed() -> None:
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model, tokenizer = build_model(ModelConfig(small=SmallModelConfig(layers=1)))
        data = examples(TaskConfig(examples=64, held_out=1), "train", 0)
        losses.append(warm_start(model, tokenizer, data, WarmStartConfig(steps=2), seed=5))
    assert losses[0] == losses[1]


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "group", "microbatch", "updates", "processes", "passes"),
    [(16, 8, 128, 1, 1, 1), (16, 8, 32, 2, 1, 2), (16, 8, 16, 2, 2, 2), (1024, 5, 320, 4, 2, 2)],
)
def test_completions_divide_into_updates_and_passes(
    prompts: int, group: int, microbatch: int, updates: int, processes: int, passes: int
) -> None:
    config = RLVRConfig(
        sampling=SamplingConfig(prompts=prompts, group=group, microbatch=microbatch),
        objective=ObjectiveConfig(updates_per_batch=updates),
    )
    assert config.passes_per_update(processes) == passes


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide into 1 updates of microbatches of 100"):
        RLVRConfig(sampling=SamplingConfig(prompts=16, group=8, microbatch=100))
