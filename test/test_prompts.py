from __future__ import annotations

import pytest

from decaf_ros.config.method import PROMPT_VARIANTS
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


SUBJECT = "Focus on the **primary subject or agent** involved in the described action or behavior. "
ONE_WORD = "Respond with a single word (e.g., 'cat', 'person', 'dog') that best describes the target object(s). "
SHORT = "Answer the question using a single word or phrase."
PUBLISHED = {
    (
        "object",
        "original",
    ): "which red mug? \nWhat is the main object (or objects) referred to in the given expression or "
    f"question? \n{SUBJECT}{ONE_WORD}",
    ("object", "v1"): "which red mug? \nIdentify the primary object referred to in the expression and answer with a "
    "single word. \n",
    ("object", "v2"): "which red mug? \nIdentify the primary object referred to in the expression. \n"
    f"{SUBJECT}{ONE_WORD}",
    (
        "object",
        "v3",
    ): "which red mug? \nDetermine the primary subject or agent mentioned in the expression or question, "
    "and provide the object's label within a single word or phrase. ",
    ("background", "original"): f"Describe the background scene of the video, excluding any mug.. {SHORT}",
    ("background", "v1"): f"Describe the background scene of the video. {SHORT}",
    ("background", "v2"): "Describe the background of the video while excluding any mug., using a single word or short "
    "phrase.",
    ("background", "v3"): "Describe the background scene of the video, excluding the objects referred to in the given "
    f"expression or question 'which red mug?'. {SHORT}",
    ("choice", "original"): "Given:\n- Expression: 'which red mug?'\n- Candidate object class list: mug.,cup,mug.\n"
    "Goal: Identify the object class referred to by the expression. Instructions:\n"
    "1. If the expression is **clear**, rely on it directly (e.g., 'a person driving a car' \u2192 'person').\n"
    "2. If the expression is **vague**, use the object class list to support your decision (e.g., check frequency and "
    "plausibility).\n"
    "3. Avoid defaulting to the most frequent class unless the expression lacks clarity.\n"
    "Output the most likely referred object class - just the label.\n",
    ("choice", "v1"): "Given the expression \u2018which red mug?\u2019 and the candidate object classes mug.,cup,mug., "
    "select the single class label that best matches the object referred to in the expression.\n",
    ("choice", "v2"): "Using the expression \u2018which red mug?\u2019 and the candidate object classes mug.,cup,mug., "
    "determine which object class the expression refers to.\n"
    "If the reference is explicit, rely on the expression; if ambiguous, use the class list as support.\n"
    "Output only the most likely object class.\n",
    ("choice", "v3"): "Given:\n- Expression: 'which red mug?'\nGoal: Identify the object class referred to by the "
    "expression. (e.g., 'a person driving a car' \u2192 'person').\n"
    "Output the most likely referred object class - just the label.\n",
}


@pytest.mark.parametrize(("kind", "variant"), PUBLISHED)
def test_the_published_wording_to_the_letter(kind, variant):
    """The expected line ends and quotes were read off the published implementation."""
    query = "Which Red Mug?"
    prompt = {
        "object": lambda: ask(query, variant, "published"),
        "background": lambda: background_prompt(query, "mug.", variant, "published"),
        "choice": lambda: choice_prompt(query, ("mug.", "cup", "mug."), variant, "published"),
    }[kind]()
    assert prompt == PUBLISHED[kind, variant]


def test_without_a_category_the_published_background_prompt_names_the_query():
    assert background_prompt("Which Red Mug?", "", "original", "published") == PUBLISHED["background", "v3"]


def test_braces_in_a_query_are_literal():
    assert ask("the {red} mug", "original").startswith("the {red} mug.")


def test_unknown_variant_and_wording_raise():
    with pytest.raises(ValueError, match="variant: .* got 'v9'"):
        ask("it", "v9")
    with pytest.raises(ValueError, match="wording: .* got 'mine'"):
        ask("it", "v1", "mine")
