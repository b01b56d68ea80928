"""The paper's prompts and their variants (App. B and F), and three questions of our own: whether the target is there,
whether it is one object or several, and whether it is the object that is marked in the images.

Two wordings: verbatim as in the paper, and as the published implementation sends them: the same sentences with other
line ends and quotes.
"""

from __future__ import annotations

from decaf_ros.config.method import PROMPT_VARIANTS

OBJECT = {
    "original": (
        "{expression}\n"
        "What is the main object (or objects) referred to in the given expression or question?\n"
        "Focus on the **primary subject or agent** involved in the described action or behavior.\n"
        "Respond with a single word (e.g., 'cat', 'person', 'dog') that best describes the target object(s)."
    ),
    "v1": ("{expression}\nIdentify the primary object referred to in the expression and answer with a single word."),
    "v2": (
        "{expression}\n"
        "Identify the primary object referred to in the expression.\n"
        "Focus on the **primary subject or agent** involved in the described action or behavior. "
        "Respond with a single word (e.g., 'cat', 'person', 'dog') that best describes the target object(s)."
    ),
    "v3": (
        "{expression}\n"
        "Determine the primary subject or agent mentioned in the expression or question, "
        "and provide the object's label within a single word or phrase."
    ),
}

BACKGROUND = {
    "original": (
        "Describe the background scene of the video, excluding any {category}.\n"
        "Answer the question using a single word or phrase."
    ),
    "v1": "Describe the background scene of the video. Answer the question using a single word or phrase.",
    "v2": ("Describe the background of the video while excluding any {category}, using a single word or short phrase."),
    "v3": (
        "Describe the background scene of the video, excluding the objects referred to in the given expression or "
        "question {expression}. Answer the question using a single word or phrase."
    ),
}

CHOICE = {
    "original": (
        "Given:\n"
        "- Expression: {expression}\n"
        "- Candidate object class list: {candidates}\n"
        "Goal: Identify the object class referred to by the expression.\n"
        "Instructions:\n"
        "1. If the expression is **clear**, rely on it directly (e.g., 'a person driving a car' → 'person').\n"
        "2. If the expression is **vague**, use the object class list to support your decision "
        "(e.g., check frequency and plausibility).\n"
        "3. Avoid defaulting to the most frequent class unless the expression lacks clarity.\n"
        "Output the most likely referred object class - just the label."
    ),
    "v1": (
        "Given the expression {expression} and the candidate object classes {candidates}, select the single class "
        "label that best matches the object referred to in the expression."
    ),
    "v2": (
        "Using the expression {expression} and the candidate object classes {candidates}, determine which object "
        "class the expression refers to.\n"
        "If the reference is explicit, rely on the expression; if ambiguous, use the class list as support.\n"
        "Output only the most likely object class."
    ),
    "v3": (
        "Given:\n"
        "- Expression: {expression}\n"
        "Goal: Identify the object class referred to by the expression.\n"
        "(e.g., 'a person driving a car' → 'person').\n"
        "Output the most likely referred object class - just the label."
    ),
}

PUBLISHED_OBJECT = {
    "original": (
        "{expression} \n"
        "What is the main object (or objects) referred to in the given expression or question? \n"
        "Focus on the **primary subject or agent** involved in the described action or behavior. "
        "Respond with a single word (e.g., 'cat', 'person', 'dog') that best describes the target object(s). "
    ),
    "v1": "{expression} \nIdentify the primary object referred to in the expression and answer with a single word. \n",
    "v2": (
        "{expression} \n"
        "Identify the primary object referred to in the expression. \n"
        "Focus on the **primary subject or agent** involved in the described action or behavior. "
        "Respond with a single word (e.g., 'cat', 'person', 'dog') that best describes the target object(s). "
    ),
    "v3": (
        "{expression} \n"
        "Determine the primary subject or agent mentioned in the expression or question, "
        "and provide the object's label within a single word or phrase. "
    ),
}

PUBLISHED_BACKGROUND = {
    "original": BACKGROUND["original"].replace("\n", " "),
    "v1": BACKGROUND["v1"],
    "v2": BACKGROUND["v2"],
    "v3": BACKGROUND["v3"].replace("{expression}", "'{expression}'"),
}

PUBLISHED_CHOICE = {
    "original": (
        "Given:\n"
        "- Expression: '{expression}'\n"
        "- Candidate object class list: {candidates}\n"
        "Goal: Identify the object class referred to by the expression. Instructions:\n"
        "1. If the expression is **clear**, rely on it directly (e.g., 'a person driving a car' → 'person').\n"
        "2. If the expression is **vague**, use the object class list to support your decision "
        "(e.g., check frequency and plausibility).\n"
        "3. Avoid defaulting to the most frequent class unless the expression lacks clarity.\n"
        "Output the most likely referred object class - just the label.\n"
    ),
    "v1": CHOICE["v1"].replace("{expression}", "‘{expression}’") + "\n",
    "v2": CHOICE["v2"].replace("{expression}", "‘{expression}’") + "\n",
    "v3": (
        "Given:\n"
        "- Expression: '{expression}'\n"
        "Goal: Identify the object class referred to by the expression. "
        "(e.g., 'a person driving a car' → 'person').\n"
        "Output the most likely referred object class - just the label.\n"
    ),
}

_TEMPLATES = {
    "paper": {"object": OBJECT, "background": BACKGROUND, "choice": CHOICE},
    "published": {"object": PUBLISHED_OBJECT, "background": PUBLISHED_BACKGROUND, "choice": PUBLISHED_CHOICE},
}

# Not in the paper. Like the object prompt it ends with the form of the answer, of which only the first token is read.
PRESENCE = (
    "{expression}\nIs there an object in the {medium} that this expression or question refers to?\nAnswer yes or no."
)

# Not in the paper. A question about the words alone, without images.
NUMBER = (
    "{expression}\nDoes this expression or question refer to one object or to several objects?\nAnswer one or several."
)

# Not in the paper. About images in which one object is marked (`decaf_ros.segmentation.marking`).
VERIFICATION = (
    "{expression}\nOne object in the {medium} is outlined, and everything else is faded to grey.\n"
    "Does this expression or question refer to the outlined object?\nAnswer yes or no."
)


def clean_query(query: str) -> str:
    """The stripped query, with a full stop unless it ends in "." or "?". Raises ValueError for an empty query."""
    text = query.strip()
    if not text:
        raise ValueError("query: expected some text, got an empty string")
    return text if text[-1] in ".?" else text + "."


def object_prompt(query: str, variant: str, wording: str = "paper") -> str:
    """Asks for the target's category. The query is lower-cased."""
    return _template("object", variant, wording).format(expression=clean_query(query).lower())


def background_prompt(query: str, category: str, variant: str, wording: str = "paper") -> str:
    """Asks for the background. Variant v3 names the target by the query, lower-cased in the published wording, and
    ignores the category; it takes the place of a variant that names the category if that is empty."""
    template = _template("background", variant, wording)
    if not category and "{category}" in template:
        template = _template("background", "v3", wording)
    expression = clean_query(query)
    return template.format(expression=expression.lower() if wording == "published" else expression, category=category)


def choice_prompt(query: str, candidates: tuple[str, ...], variant: str, wording: str = "paper") -> str:
    """Asks to choose one of the candidate categories. The query is lower-cased, candidates are joined by commas, in the
    published wording without a space."""
    joined = ("," if wording == "published" else ", ").join(candidates)
    return _template("choice", variant, wording).format(expression=clean_query(query).lower(), candidates=joined)


def presence_prompt(query: str, medium: str) -> str:
    """Asks whether the target is there. medium: "video" or "image". The query is lower-cased."""
    return PRESENCE.format(expression=clean_query(query).lower(), medium=medium)


def number_prompt(query: str) -> str:
    """Asks whether the query means one object or several. The query is lower-cased."""
    return NUMBER.format(expression=clean_query(query).lower())


def verification_prompt(query: str, medium: str) -> str:
    """Asks whether the query means the marked object. medium: "video" or "image". The query is lower-cased."""
    return VERIFICATION.format(expression=clean_query(query).lower(), medium=medium)


def _template(kind: str, variant: str, wording: str) -> str:
    for name, value, known in (("variant", variant, PROMPT_VARIANTS), ("wording", wording, _TEMPLATES)):
        if value not in known:
            raise ValueError(f"prompt {name}: expected one of {', '.join(known)}, got {value!r}")
    return _TEMPLATES[wording][kind][variant]
