from __future__ import annotations

import pytest

from decaf_ros.config import PROMPT_VARIANTS
from decaf_ros.grounding.prompts import BACKGROUND, CHOICE, OBJECT, background_prompt, choice_prompt, clean_query
from decaf_ros.grounding.prompts import object_prompt as ask


def test_every_variant_exists():
    for templates in (OBJECT, BACKGROUND, CHOICE):
        assert tuple(templates) == PROMPT_VARIANTS


@pytest.mark.parametrize(
    "query, cleaned", [(" the Mug ", "the Mug."), ("the mug.", "the mug."), ("Which mug?", "Which mug?"), ("a!", "a!.")]
)
def test_query_ends_in_full_stop_or_question_mark(query, cleaned):
    assert clean_query(query) == cleaned


def test_empty_query_is_refused():
    with pytest.raises(ValueError, match="expected some text"):
        clean_query("  \n")


def test_query_is_lower_case_in_object_and_choice_prompts_only():
    for variant in PROMPT_VARIANTS:
        assert ask("The Red Mug", variant).startswith("the red mug.\n")
    assert "the red mug." in choice_prompt("The Red Mug", ("mug",), "v3")
    assert "question The Red Mug.." in background_prompt("The Red Mug", "", "v3")


def test_candidates_and_category_are_inserted():
    assert "list: mug, cup, mug\n" in choice_prompt("it", ("mug", "cup", "mug"), "original")
    assert "excluding any mug.\n" in background_prompt("it", "mug", "original")
    assert "{" not in background_prompt("it", "mug", "v1")


def test_without_a_category_the_background_prompt_names_the_query():
    named = background_prompt("it", "", "v3")
    assert "question it.." in named
    assert [background_prompt("it", "", variant) == named for variant in PROMPT_VARIANTS] == [True, False, True, True]


def test_braces_in_a_query_are_literal():
    assert ask("the {red} mug", "original").startswith("the {red} mug.")


def test_unknown_variant_raises():
    with pytest.raises(ValueError, match="got 'v9'"):
        ask("it", "v9")
