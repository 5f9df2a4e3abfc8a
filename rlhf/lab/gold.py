"""The gold score: how good an answer really is, by rules over the facts of the lab world.

It is the truth that a reward model only approximates. It reads any text: what it can't match to a fact counts as
filler, so broken text earns nothing. The weights put relevance first.
"""

import re
from collections import Counter, defaultdict, namedtuple
from functools import cache, lru_cache

from rlhf.lab.world import FACTS, POINTS, Activity, families, fill, normalise, parse_question, phrases

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
# A phrase of world.toml. owner: the verb of its activity, or the family for what is done under a condition; field: one
# of FACTS, or the condition itself; index: its place there.
Fact = namedtuple("Fact", "owner field index")


@cache
def _facts() -> dict[tuple[str, ...], list[tuple[tuple[str, ...], Fact]]]:
    """The words of each fact, by the first two of them; the object is one word, `@`."""
    told = [(family.name, *of) for family in families() for of in family.conditions.items()]
    told += [(a.verb, field, getattr(a, field)) for family in families() for a in family.activities for field in FACTS]
    index = defaultdict(list)
    for owner, field, said in told:
        for i, phrase in enumerate(said):
            words = tuple(_OBJECT if word == "o" else word for word in normalise(phrase).split())
            index[words[:2]].append((words, Fact(owner, field, i)))
    return index


@cache
def _patterns() -> tuple[re.Pattern, re.Pattern]:
    """What finds an object, and the markers that a sentence begins with."""
    names = sorted((name for family in families() for name in family.objects), key=len, reverse=True)
    objects, markers = "|".join(names), "|".join(phrases()["markers"])
    return re.compile(rf"\b({objects})\b"), re.compile(rf"^(?:(?:{markers})\b\s*)+")


@cache
def _openings(activity: Activity, object_: str) -> frozenset[str]:
    objects, _ = _patterns()
    patterns = [pattern for of_kind in phrases()["openings"].values() for pattern in of_kind]
    return frozenset(objects.sub(_OBJECT, normalise(fill(pattern, activity, object_))) for pattern in patterns)


@lru_cache(maxsize=100_000)
def _read(sentence: str) -> tuple[str, list[str], list[Fact], bool]:
    """A normalised sentence with `@` for objects and without markers, its objects and facts, and whether it loops.

    It loops where four words in a row stand in it twice. Answers share most of their sentences: each is read once.
    """
    objects, markers = _patterns()
    core = markers.sub("", objects.sub(_OBJECT, sentence))
    words, index = core.split(), _facts()
    facts = [
        fact
        for i in range(len(words))
        for phrase, fact in index.get(tuple(words[i : i + 2]), ())
        if tuple(words[i : i + len(phrase)]) == phrase
    ]
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return core, objects.findall(sentence), facts, len(runs) != len(set(runs))


def gold_parts(prompt: str, response: str) -> dict[str, float]:
    """The weighted parts of the gold score, by the names of `WEIGHTS`; their sum is `gold_score`.

    Raises ValueError for a prompt that is no question of the lab world; any response is read.
    """
    question = parse_question(prompt)
    activity = question.activity
    field, complete = POINTS[question.kind]
    sentences = [normalise(part) for part in re.split(r"(?<=[.!?])\s+|\n+", response)]
    read = [_read(sentence) for sentence in sentences if sentence]
    objects = [name for _, mentioned, _, _ in read for name in mentioned]
    facts = [fact for _, _, found, _ in read for fact in found]
    own = [fact for fact in facts if fact.owner == activity.verb]
    met = sum(fact.owner == activity.family and fact.field == question.condition for fact in facts)
    foreign = len(facts) - len(own) - met
    points = list(dict.fromkeys(fact.index for fact in own if fact.field == field))
    in_order = points == sorted(points) or question.kind != "how"
    said = Counter(item for core, _, found, _ in read for item in found or [core])
    openings = _openings(activity, question.object)
    earned = {
        "object": objects.count(question.object) / len(objects) if objects else 0.0,
        "activity": len(own) / (len(own) + foreign) if own else 0.0,
        "completeness": min(len(points), complete) / complete,
        "order": float(len(points) >= 2 and in_order),
        "condition": float(met > 0),
        "tip": float(any(fact.field == "tips" for fact in own)),
        "ended": float(response.rstrip().endswith((".", "!", "?"))),
        "repetition": said.total() - len(said) + sum(loop for _, _, _, loop in read),
        "filler": sum(not found and core not in openings for core, _, found, _ in read) if read else _AT_MOST["filler"],
        "foreign": foreign + len(objects) - objects.count(question.object),
    }
    return {part: weight * min(earned[part], _AT_MOST.get(part, 1)) for part, weight in WEIGHTS.items()}


def gold_score(prompt: str, response: str) -> float:
    """How good the answer really is: at most 7.5 where the question has a condition, 6.75 elsewhere; -6.1 at worst."""
    return round(sum(gold_parts(prompt, response).values()), 6)
