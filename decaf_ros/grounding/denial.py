"""Recognises decoded answers that name no object: "none", "there is no mug", "the mug is not visible".

English only, like the prompts. In doubt an answer counts as an object ("no parking sign", "Nothing Phone"), because the
presence score still decides about it.
"""

from __future__ import annotations

import re

# Words that may continue a denial: "none of them", "nothing moved". Anything else is a name ("Nothing Phone").
_CONTINUES = (
    r"(of|in|on|at|to|is|are|was|were|here|there|visible|present|found|seen|shown|detected|identified|listed|such|that|"
    r"which|like|matches|matching|fits|applies|applicable|else|else .*|exists?|appears?|moves|moved|moving|falls|fell|"
    r"happens|happened|stops|stopped|specific|relevant|with|from|can|could|has|have|enters?|entered|leaves|left|drops|dropped|rolls|rolled|picks|picked|passes|passed)"
)
_STATES = (
    r"(visible|present|there|here|found|seen|shown|detected|identified|identifiable|recognizable|recognisable|depicted|"
    r"available|applicable|listed|mentioned|specified|given|provided|clear|known|sure|certain|determined|determinable|"
    r"possible|discernible|pictured|captured|featured|included|in (the|this|any|view|sight)\b.*|on (the|this)\b.*)"
)
_SCENE = r"(video|videos|image|images|clip|scene|frame|frames|footage|picture|pictures|view|expression)"
# Not after "that": "the cup that is not on the table" names a cup.
_CLAUSE = r"(?!.*\b(that|which|who|whose)\b)"
# Nor of another place: "the mug not in the box" names a mug.
_SOMEWHERE = rf"(?!(in|on) (the|this|any) (?!.*\b{_SCENE}\b))"
_NEGATED = r"(is|are|was|were|do|does|did|can|could|has|have|will)(n't| not)\b|cannot\b|can't\b"

_DENIALS = re.compile(
    "|".join(
        (
            # One word, or one word and a remark: "no", "none", "No, there is no mug", "none (no mug)", "nothing - ...".
            r"(no|nope|not|none|nothing|nobody|no[ -]one|neither|nowhere)(\s*[,;:!(/].*|\.(?!\s*\d).*|\s+[-–—]\s.*)?$",
            rf"(none|nothing|nobody|no[ -]one|neither|nowhere) {_CONTINUES}\b(?![-'])",
            r"(n/a|n\.a|na|nil|null|undefined|absent|missing|non-?existent|unclear|uncertain|ambiguous|invisible|"
            r"undetermined|unspecified|unidentified|unidentifiable|unable to\b.*|impossible to\b.*)$",
            r"unknown( (object|objects|item|thing|target|category|class))?(\s*[,;:(].*)?$",
            # "not visible", "not in the video", "not a mug"; not "not-so-large ball".
            rf"not (currently |clearly |actually )?({_STATES}|any|a|an|the|existing|existent|enough)\b(?!-)",
            # "there is no mug", "there isn't one", "there are none".
            r"there('s| is| are| was| were| seems to be| appears to be) (no|not|none|nothing|nobody)\b(?!-)",
            r"there (is|are|was|were|do|does)n't\b|there (does|do) not\b",
            # "I don't see any mug", "sorry, I cannot find it", "I see no mug", "I'm not sure".
            rf"((i'm |i am )?sorry[,.]? |unfortunately,? )?(but )?"
            rf"(i|we)( am|'m|'ve| have| was)? ?(not\b|unable\b|{_NEGATED})",
            r"(i|we) (can |could )?(see|find|found|saw|detect|notice) (no|nothing|none|nobody)\b",
            # "The video does not show a mug", "this clip contains no mug".
            rf"(in )?(the|this|these|provided|given)? ?(provided |given )?{_SCENE} ({_NEGATED}|(has|have|shows?|"
            r"contains?|includes?|depicts?) (no|nothing|none|nobody)\b|lacks?\b)",
            # "The mug is not visible", "mug not found", "the mug does not appear", "it cannot be determined".
            rf"{_CLAUSE}.*((\bis|\bare|\bwas|\bwere) not|n't|\bnever|\bno longer) "
            rf"(currently |clearly |actually |be |been )*{_STATES}$",
            rf"{_CLAUSE}.*\bnot (currently |clearly |actually |be |been )*{_SOMEWHERE}{_STATES}$",
            r".*\b(does|do|did|has|have)(n't| not) (appear|exist|appeared|existed|occur|happen)"
            r"( (in|on|at|here)\b.*)?$",
            r".*\b(cannot|can't|can not|could not|couldn't) be (seen|found|determined|identified|detected|located)"
            r"( (in|on|at|from|here)\b.*)?$",
            # "Can't see it", "cannot find the mug".
            r"(can't|cannot|can not|could not|couldn't) (see|find|identify|locate|detect|tell)\b",
            r"\w+( \w+)* (is|are) (out of (view|sight|frame)|nowhere( to be (seen|found))?)$",
            rf"{_CLAUSE}\w+( \w+)* (is|are|was|were|seems|appears)( to be)? (absent|missing|nonexistent)$",
        )
    )
)
# "no ..." of names: signs, numbers, brands.
_NAMES = re.compile(
    r"\W*\d|(parking|smoking|trespassing|stopping|standing|littering|swimming|diving|cycling|entry|overtaking|vaping|"
    r"admittance|frills)\b|(waiting|photography|passing|honking|fishing|entrance|vacancy|outlet|exit|access|u-turn|"
    r"(left |right )?turns?|drinking|dumping|hunting|camping|fear|brand|face|limits?|logo|\w+ (allowed|permitted)) \w|"
    r"(dogs|pets|phones|cars|trucks|bikes|bicycles|food|pedestrians) (sign|symbol|sticker|poster)$|"
    r"name (brand|can|bag)|\w+ing (sign|symbol|sticker|poster)$|slip \w"
)
_PREFIX = re.compile(
    r"(the )?((final )?answer|(object|target)( category| class)?|category|class|label|output|response)( is|:)\s+"
)
_EDGES = " .!\"'`*[]()<>"


def names_nothing(category: str) -> bool:
    """Whether a decoded category names no object. False for an empty one."""
    original = " ".join(category.replace("’", "'").split()).strip(_EDGES)
    text = _PREFIX.sub("", original.casefold(), count=1).lstrip(_EDGES)
    if _DENIALS.match(text):
        return True
    return text.startswith("no ") and _denies(text[3:], original[-len(text) + 3 :])


def _denies(rest: str, original: str) -> bool:
    """Whether "no REST" denies an object. original: `rest` as the model wrote it."""
    if rest.startswith(("sign of ", "signs of ", "such ")):
        return True
    if _NAMES.match(rest) or re.search(r"'s \w", rest):
        return False
    if re.search(rf"\b{_STATES}$", rest):
        return True
    # "No Frills bag": a capitalised name and its kind. "No Mug" and "No Red Mug" deny.
    words = original.split()
    return not (words[0][:1].isupper() and words[-1][:1].islower())
