"""The margin of one answer against another."""

from __future__ import annotations

import math

import pytest
import torch

from decaf_ros.grounding.mllm import answer_margin


class Words:
    """A tokenizer with a number per word; unknown words get 0."""

    def __init__(self, *words):
        self.words = words

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [self.words.index(text) + 1 if text in self.words else 0, 99]}


def test_the_casings_share_the_probability():
    probabilities = torch.tensor([[0.05, 0.3, 0.2, 0.1, 0.15, 0.1, 0.1]])
    margin = answer_margin(Words("Yes", "yes", "YES", "No", "no", "NO"), probabilities.log(), "yes", "no")
    assert float(margin) == pytest.approx(math.log(0.6 / 0.35))


def test_one_value_per_sequence_in_float32():
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 1.0, 4.0]], dtype=torch.bfloat16)
    # Casings that share a token count once.
    tokenizer = lambda text, add_special_tokens: {"input_ids": [1 if text[0] in "Yy" else 2]}  # noqa: E731
    assert answer_margin(tokenizer, logits, "yes", "no").tolist() == [2.0, -3.0]


def test_a_tokenizer_that_cannot_tell_the_answers_apart_is_refused():
    with pytest.raises(ValueError, match='expected a tokenizer that tells "several" from "one"'):
        answer_margin(Words("Several", "One"), torch.zeros(1, 3), "several", "one")
