"""The gold judge: how good an answer really is, by rules over the facts of the lab world.

It is the truth that a reward model only approximates. It reads any text: what it can't match to a fact counts as
filler, so broken text earns nothing. The weights put relevance first.
"""

import re
from collections import Counter
from functools import cache, lru_cache
from typing import NamedTuple

from rlhf.lab.world import POINTS, Activity, Question, families, fill, normalise, parse_question, phrases

WEIGHTS = {
    "object": 1.5,  # relevance: about the thing asked for ...
    "activity": 1.5,  # ... and about what is to be done with it
    "completeness": 1.5,  # share of the facts that a complete answer names
    "order": 1.0,  # they stand in the order of the plan
    "condition": 0.75,  # the condition in the question is answered
    "tip": 0.75,  # one tip that fits
    "ended": 0.5,  # the last sentence is finished
    "repetition": -0.75,  # each, at most three
    "filler": -0.4,  # each sentence that says nothing on the topic, at most four
    "foreign": -0.75,  # each other object, fact of another activity, condition not asked for; at most three
}
_AT_MOST = {"repetition": 3, "filler": 4, "foreign": 3}
_OBJECT = "@"


class Fact(NamedTuple):
    """A phrase of world.toml: whose it is, and which."""

    owner: str  # the verb of its activity, or the family for what is done under a condition
    field: str  # steps, reasons, mistakes, tools, tips, or the condition itself
    index: int


@cache
def _facts() -> dict[tuple[str, ...], list[tuple[tuple[str, ...], Fact]]]:
    """The words of each fact, by the first two of them; the object is one word, `@`."""
    index: dict[tuple[str, ...], list[tuple[tuple[str, ...], Fact]]] = {}

    def add(phrase: str, fact: Fact) -> None:
        words = tuple(_OBJECT if word == "o" else word for word in normalise(phrase).split())
        index.setdefault(words[:2], []).append((words, fact))

    for family in families():
        for condition, answers in family.conditions.items():
            for i, phrase in enumerate(answers):
                add(phrase, Fact(family.name, condition, i))
        for activity in family.activities:
            for field in ("steps", "reasons", "mistakes", "tools", "tips"):
                for i, phrase in enumerate(getattr(activity, field)):
                    add(phrase, Fact(activity.verb, field, i))
    return index


@cache
def _object_pattern() -> re.Pattern:
    names = sorted((name for family in families() for name in family.objects), key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(names) + r")\b")


@cache
def _marker_pattern() -> re.Pattern:
    return re.compile(r"^(?:(?:" + "|".join(phrases()["markers"]) + r")\b\s*)+")


@cache
def _openings(activity: Activity, object_: str) -> frozenset[str]:
    return frozenset(
        _with_object(normalise(fill(pattern, activity, object_)))[0]
        for patterns in phrases()["openings"].values()
        for pattern in patterns
    )


def _with_object(text: str) -> tuple[str, list[str]]:
    """Normalised text with each object replaced by `@`, and the objects that stood there."""
    objects = _object_pattern().findall(text)
    return _object_pattern().sub(_OBJECT, text), objects


def _find_facts(core: str) -> list[Fact]:
    words, index, found = core.split(), _facts(), []
    for i in range(len(words)):
        for phrase, fact in index.get(tuple(words[i : i + 2]), ()):
            if tuple(words[i : i + len(phrase)]) == phrase:
                found.append(fact)
    return found


def _has_loop(core: str) -> bool:
    """Whether four words in a row stand twice in one sentence."""
    words = core.split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(runs) != len(set(runs))


@lru_cache(maxsize=100_000)
def _read(sentence: str) -> tuple[str, list[str], list[Fact], bool]:
    """A normalised sentence without objects and markers, its objects and facts, and whether it loops.

    Answers share most of their sentences, so each is read once.
    """
    core, objects = _with_object(sentence)
    core = _marker_pattern().sub("", core)
    return core, objects, _find_facts(core), _has_loop(core)


def _counts(question: Question, response: str) -> dict[str, float]:
    """What the answer earns or costs of each weight, as a share or a count."""
    verb, family = question.activity.verb, question.activity.family
    field, complete = POINTS[question.kind]
    sentences = [normalise(part) for part in re.split(r"(?<=[.!?])\s+|\n+", response)]
    objects, points, own, foreign, filler, tips, conditions = [], [], 0, 0, 0, 0, 0
    said = Counter()
    loops = 0
    for sentence in filter(None, sentences):
        core, mentioned, facts, loop = _read(sentence)
        objects += mentioned
        said.update(facts or [core])
        loops += loop
        for fact in facts:
            if fact.owner == verb:
                own += 1
                tips += fact.field == "tips"
                if fact.field == field:
                    points.append(fact.index)
            elif fact.owner == family and fact.field == question.condition:
                conditions += 1
            else:
                foreign += 1
        if not facts and core not in _openings(question.activity, question.object):
            filler += 1
    other_objects = sum(name != question.object for name in objects)
    first_places = list(dict.fromkeys(points))
    in_order = first_places == sorted(first_places) or question.kind != "how"
    return {
        "object": objects.count(question.object) / len(objects) if objects else 0.0,
        "activity": own / (own + foreign) if own else 0.0,
        "completeness": min(len(first_places), complete) / complete,
        "order": float(len(first_places) >= 2 and in_order),
        "condition": float(conditions > 0),
        "tip": float(tips > 0),
        "ended": float(response.rstrip().endswith((".", "!", "?"))),
        "repetition": sum(count - 1 for count in said.values()) + loops,
        "filler": filler if said else _AT_MOST["filler"],
        "foreign": foreign + other_objects,
    }


def gold_parts(prompt: str, response: str) -> dict[str, float]:
    """The weighted parts of the gold score, by the names of `WEIGHTS`; their sum is `gold_score`.

    Raises ValueError for a prompt that is no question of the lab world; any response is read.
    """
    counts = _counts(parse_question(prompt), response)
    return {part: weight * min(counts[part], _AT_MOST.get(part, 1)) for part, weight in WEIGHTS.items()}


def gold_score(prompt: str, response: str) -> float:
    """How good the answer really is: at most 7.5 where the question has a condition, 6.75 elsewhere; -6.1 at worst."""
    return round(sum(gold_parts(prompt, response).values()), 6)
