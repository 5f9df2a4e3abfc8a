"""The gold score: how good an answer really is, by rules over the facts of the lab world.

It is the truth that a reward model only approximates. It reads any text, and a fact counts only in a sentence that is
said in one of the world's ways from beginning to end: broken text and lists of the right words earn nothing. The
weights put relevance first.
"""

import re
from collections import Counter, defaultdict, namedtuple
from functools import cache, lru_cache

from rlhf.lab.world import (
    FACTS,
    POINTS,
    Activity,
    families,
    fill,
    normalise,
    parse_question,
    phrases,
    sentences,
    written_sentences,
)

RUBRIC = {  # each part's weight, and what earns it
    "object": (1.5, "share of the objects named that is asked for (half with one point, 0 with none)"),
    "activity": (1.5, "share of the facts on the activity asked for (half with one point, 0 with none)"),
    "completeness": (1.5, "share of the points of a complete answer (0 where most objects are others)"),
    "order": (1.0, "two points or more in their order, the opening before, a first step behind them"),
    "condition": (0.75, "the condition in the question is answered (0 where most objects are others)"),
    "tip": (0.75, "one tip that fits"),
    "ended": (0.5, "the last sentence is finished"),
    "repetition": (-0.75, "each fact or sentence that is said again, at most four"),
    "filler": (-0.4, "each sentence off the topic, each fact of the activity not asked for; at most four"),
    "foreign": (-0.75, "each other object, fact of another activity, other condition; at most three"),
    "garbled": (-0.75, "each sentence that is not one of the world's, at most four"),
}
WEIGHTS = {part: weight for part, (weight, _) in RUBRIC.items()}
_AT_MOST = {"repetition": 4, "filler": 4, "foreign": 3, "garbled": 4}
_OBJECT = "@"
# A phrase of world.toml. owner: the verb of its activity, or the family for what is done under a condition; field: one
# of FACTS, or the condition itself; index: its place there.
Fact = namedtuple("Fact", "owner field index")
# A sentence as it was read. core: with `@` for objects and without its marker; whole: whether it is one of the world's;
# loops: whether four words in a row stand in it twice and it is not whole (two steps of the world may share words).
Sentence = namedtuple("Sentence", "core objects facts whole loops")


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
    """What finds an object, and the marker that a sentence begins with."""
    names = sorted((name for family in families() for name in family.objects), key=len, reverse=True)
    markers = sorted((normalise(m) for of_place in phrases()["markers"].values() for m in of_place), key=len)
    return re.compile(rf"\b({'|'.join(names)})\b"), re.compile(rf"^(?:{'|'.join(markers[::-1])})\b\s*")


@cache
def _openings(activity: Activity, object_: str) -> frozenset[str]:
    return frozenset(
        _core(fill(pattern, activity, object_)) for of_kind in phrases()["openings"].values() for pattern in of_kind
    )


def mask_objects(text: str) -> str:
    """The normalised text with one word, `@`, for each object of the world."""
    return _patterns()[0].sub(_OBJECT, normalise(text))


def objects_in(text: str) -> list[str]:
    """The objects of the world that a text names, in their order."""
    return _patterns()[0].findall(normalise(text))


def _core(text: str) -> str:
    return _patterns()[1].sub("", mask_objects(text))


def _slot(field: str) -> str:
    """The word that stands for a fact of the field in the form of a sentence."""
    return "z" + field.replace(" ", "")


@cache
def _forms() -> frozenset[str]:
    """All sentences of the world, with a word for each fact."""
    said = phrases()
    holds = {way: way if way in FACTS else "steps" for way in said["sentences"]}
    forms = {
        pattern.format(**dict.fromkeys(("fact", "Fact", "facts", "other"), _slot(holds[way])))
        for way, patterns in said["sentences"].items()
        for pattern in patterns
    }
    forms |= {f"{lead} {_slot(condition)}" for condition, leads in said["conditions"].items() for lead in leads}
    forms |= {*said["filler"], *said["evasive"]}
    cores = set(map(_core, forms))
    for family in families():
        for activity in family.activities:
            cores |= _openings(activity, family.objects[0])
            cores |= {_core(fill(pattern, activity, family.objects[0])) for pattern in said["generic"]}
    return frozenset(cores)


@lru_cache(maxsize=100_000)
def _read(sentence: str) -> Sentence:
    """Reads a normalised sentence. Answers share most of their sentences: each is read once."""
    core = _core(sentence)
    words, index, facts, form, i = core.split(), _facts(), [], [], 0
    while i < len(words):
        said = (
            known for known in index.get(tuple(words[i : i + 2]), ()) if tuple(words[i : i + len(known[0])]) == known[0]
        )
        phrase, fact = next(said, ((words[i],), None))
        form.append(_slot(fact.field) if fact else words[i])
        facts += [fact] if fact else []
        i += len(phrase)
    listed = re.sub(r"\bztools(?: ztools)* and ztools\b", "ztools", " ".join(form))
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    objects = objects_in(sentence)
    whole = listed in _forms()
    return Sentence(core, objects, facts, whole, not whole and len(runs) != len(set(runs)))


def gold_parts(prompt: str, response: str) -> dict[str, float]:
    """The weighted parts of the gold score, by the names of `WEIGHTS`; their sum is `gold_score`.

    Raises ValueError for a prompt that is no question of the lab world; any response is read.
    """
    question = parse_question(prompt)
    activity = question.activity
    field, complete = POINTS[question.kind]
    read = [_read(sentence) for sentence in sentences(response)]
    objects = [name for sentence in read for name in sentence.objects]
    wrong = [any(name != question.object for name in sentence.objects) for sentence in read]
    facts = [
        (fact, other) for sentence, other in zip(read, wrong, strict=True) if sentence.whole for fact in sentence.facts
    ]
    share = objects.count(question.object) / len(objects) if objects else 0.0
    off = objects and share < 0.5  # about something else: nothing that it says answers the question
    own = [fact for fact, other in facts if fact.owner == activity.verb and not (other or off)]
    met = sum(fact.owner == activity.family and fact.field == question.condition for fact, _ in facts)
    foreign = sum(fact.owner != activity.verb for fact, _ in facts) - met
    points = list(dict.fromkeys(fact.index for fact in own if fact.field == field))
    openings = _openings(activity, question.object)
    said = Counter(item for sentence in read for item in sentence.facts or [sentence.core])
    relevance = min(len(points), 2) / 2
    earned = {
        "object": relevance * share,
        "activity": relevance * len(own) / (len(own) + foreign) if own else 0.0,
        "completeness": min(len(points), complete) / complete,
        "order": float(len(points) >= 2 and _in_order(question.kind, read, own, points, openings)),
        "condition": float(met > 0 and not off),
        "tip": float(any(fact.field == "tips" for fact in own)),
        "ended": float(bool(read) and read[-1].whole and response.rstrip().endswith((".", "!", "?"))),
        "repetition": said.total() - len(said) + sum(sentence.loops for sentence in read),
        "filler": sum(s.whole and not s.facts and s.core not in openings for s in read) + _unasked(field, own),
        "foreign": foreign + len(objects) - objects.count(question.object),
        "garbled": sum(not sentence.whole for sentence in read) if read else _AT_MOST["garbled"],
    }
    return {part: weight * min(earned[part], _AT_MOST.get(part, 1)) for part, weight in WEIGHTS.items()}


def _unasked(field: str, own: list[Fact]) -> int:
    """How many facts of the activity an answer has beyond those of `field`, a tip and, where not asked for, a step."""
    beside = Counter(fact.field for fact in set(own) if fact.field != field)
    return beside.total() - sum(beside[free] > 0 for free in ("tips", "steps"))


def _in_order(kind: str, read: list[Sentence], own: list[Fact], points: list[int], openings: frozenset[str]) -> bool:
    """Whether openings come first, and steps in the order of the plan or, where they are not asked for, last."""
    if any(sentence.core in openings for sentence in read[1:]):
        return False
    asked = POINTS[kind][0]
    if kind == "how":
        return points == sorted(points)
    fields = [fact.field for fact in own if fact.field in (asked, "steps")]
    return "steps" not in fields or asked not in fields[fields.index("steps") :]


def gold_score(prompt: str, response: str) -> float:
    """How good the answer really is: at most 7.5 where the question has a condition, 6.75 elsewhere; -9.85 at worst."""
    return round(sum(gold_parts(prompt, response).values()), 6)


def gold_by_sentence(prompt: str, response: str) -> list[tuple[str, dict[str, float]]]:
    """Each sentence of the response as written, with what it adds to each part; the sums over them are `gold_parts`.

    What a sentence adds is the part of the answer up to it, less the part of the answer before it: an order is earned
    by the sentence that completes it, and a negative number is what the sentence costs. Only the last one has an end.
    """
    written, before, added = written_sentences(response) or [""], dict.fromkeys(WEIGHTS, 0.0), []
    for count in range(1, len(written) + 1):
        parts = gold_parts(prompt, "\n".join(written[:count]))
        parts["ended"] *= count == len(written)
        added.append((written[count - 1], {part: round(parts[part] - before[part], 9) for part in WEIGHTS}))
        before = parts
    return added
