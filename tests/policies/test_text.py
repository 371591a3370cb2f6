"""Instruction encoders."""

from __future__ import annotations

import pickle

import pytest
import torch

from policies import TEXT_ENCODERS, TextFeatures, UnknownNameError, build_text_encoder
from policies.text import MiniLMEncoder

CPU = torch.device("cpu")
# instruction, a paraphrase without its verb or its exact nouns, another task of the same suite
TRIPLES = [
    (
        "pick up the alphabet soup and place it in the basket",
        "put the can of alphabet soup into the basket",
        "pick up the bbq sauce and place it in the basket",
    ),
    (
        "put the black bowl on the plate",
        "place the dark bowl onto the plate",
        "put the wine bottle on top of the cabinet",
    ),
    ("open the middle drawer of the cabinet", "pull open the central drawer", "turn on the stove"),
]


@pytest.fixture(scope="module")
def encoder() -> MiniLMEncoder:
    return MiniLMEncoder(max_tokens=24)


@pytest.mark.parametrize("triple", TRIPLES)
def test_paraphrase_is_closer_than_another_instruction(
    encoder: MiniLMEncoder, triple: tuple[str, str, str]
) -> None:
    instruction, paraphrase, other = encoder.encode(triple, CPU).pooled
    assert instruction @ paraphrase > instruction @ other + 0.05


def test_embedding_does_not_depend_on_the_rest_of_the_batch(encoder: MiniLMEncoder) -> None:
    short, long = "open it", TRIPLES[0][0]
    together = encoder.encode([short, long, short], CPU)
    fresh = MiniLMEncoder(max_tokens=24).encode([short], CPU)
    assert torch.equal(together.pooled[[0, 2]], fresh.pooled.repeat(2, 1))
    assert torch.equal(together.tokens[0][together.mask[0]], fresh.tokens[0])
    assert together.mask.sum(1).tolist() == [2, 11, 2]
    assert not together.tokens[0][~together.mask[0]].any()


def test_case_and_white_space_make_no_difference(encoder: MiniLMEncoder) -> None:
    plain, shouted = encoder.encode(["open the drawer", " Open\tthe   DRAWER "], CPU).pooled
    assert torch.equal(plain, shouted)


def test_each_instruction_is_encoded_once(
    encoder: MiniLMEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encoder.encode(["close the drawer"], CPU)
    monkeypatch.setattr("policies.text._minilm", lambda: pytest.fail("encoded again"))
    after = encoder.encode(["close the drawer"] * 3, CPU)
    assert torch.equal(after.tokens[2], before.tokens[0])


def test_long_and_empty_instructions_are_accepted() -> None:
    features: TextFeatures = MiniLMEncoder(max_tokens=5).encode(["word " * 600, ""], CPU)
    assert features.tokens.shape == (2, 5, 384)
    assert features.mask.sum(1).tolist() == [5, 1]
    assert features.pooled.isfinite().all()


def test_copy_for_a_worker_carries_embeddings_not_weights(encoder: MiniLMEncoder) -> None:
    encoder.encode(["open the drawer"], CPU)
    copied = pickle.dumps(encoder)
    assert len(copied) < 2_000_000
    again = pickle.loads(copied).encode(["open the drawer"], CPU)
    assert torch.equal(again.pooled, encoder.encode(["open the drawer"], CPU).pooled)


def test_unknown_text_encoder_names_the_nearest() -> None:
    assert "minilm_l6_v2" in list(TEXT_ENCODERS)
    with pytest.raises(UnknownNameError, match="Did you mean 'minilm_l6_v2'"):
        build_text_encoder("minilm", 24)
