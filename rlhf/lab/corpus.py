"""The lab corpus: preference pairs labelled by a noisy rater over the gold score, and text to pretrain on.

A pair is a question, a good answer and a second answer of a known kind: one of eleven kinds of error, or another
good answer. The rater prefers by a Bradley-Terry model of the gold scores, so labels carry the noise of real ones.
"""

import math
import random
from collections import Counter
from functools import cache, partial

from rlhf.lab.gold import gold_score
from rlhf.lab.world import POINTS, Activity, Question, capitalise, families, family_of, fill, phrases, questions

import pandas as pd

RATER_TEMPERATURE = 0.3
SPLIT_SEED = 7  # of which combinations are held out; independent of the seed of a run
HELD_OUT = {"validation": 0.06, "test": 0.10}  # shares of the topic x form combinations


def _say(rng: random.Random, way: str, marker: str = "", **facts: str) -> str:
    """A sentence of one of phrases.toml's `way`s of saying it, behind a marker where one is given."""
    pattern = rng.choice(phrases()["sentences"][way])
    sentence = pattern.format(Fact=capitalise(facts.get("fact", "")), **facts)
    return f"{marker} {sentence[0].lower()}{sentence[1:]}" if marker else sentence


def _marker(rng: random.Random, question: Question, place: int, count: int) -> str:
    places = ("first", "second", "third")
    if question.kind == "how":
        places = ("begin", *("next",) * (count - 2), "last")
    return rng.choice(phrases()["markers"][places[place]])


def _points(rng: random.Random, question: Question, count: int, markers: bool, repeats: bool) -> list[str]:
    """The sentences that carry the facts: steps in order, or reasons, mistakes or tools and a first step.

    With `repeats` one fact gives way to an earlier one, said again.
    """
    steps = [step.format(o=question.object) for step in question.activity.steps]
    field, complete = POINTS[question.kind]
    how = question.kind == "how"
    if how:
        told = [steps[i] for i in sorted(rng.sample(range(len(steps)), count))]
    else:
        told = rng.sample(getattr(question.activity, field), min(count, complete))
    if repeats:
        first, again = sorted(random.Random(" ".join(told)).sample(range(len(told)), 2))  # leaves `rng` as it is
        told[again] = told[first]
    start = "" if how else rng.choice(steps)
    if question.kind == "need":
        listed = ", ".join(told[:-1]) + " and " + told[-1] if len(told) > 1 else told[0]
        return [_say(rng, field, facts=listed), _say(rng, question.kind, fact=start)]
    joined = rng.randrange(len(told) - 1) if how and not markers and len(told) > 2 and rng.random() < 0.5 else None
    sentences = []
    for i, fact in enumerate(told):
        if i == joined:
            sentences.append(_say(rng, "joined", fact=fact, other=told[i + 1]))
        elif joined is None or i != joined + 1:
            marker = _marker(rng, question, i, len(told)) if markers else ""
            sentences.append(_say(rng, field, marker, fact=fact))
    return sentences if how else [*sentences, _say(rng, question.kind, fact=start)]


def _answer(
    rng: random.Random, question: Question, *, disordered: bool = False, fewest: bool = False, repeats: bool = False
) -> list[str]:
    """The sentences of an answer to `question`, whose condition counts only where its family has it.

    The better the answer (a random quality), the more points it makes, and the likelier a fitting tip and an answered
    condition are.
    """
    quality = rng.random()
    count = rng.choice((2, 3, 3, 4) if quality < 0.6 else (3, 4, 4))
    points = _points(rng, question, 1 if fewest else count, rng.random() < 0.6, repeats)
    if disordered:
        plan = list(points)
        while points == plan:
            rng.shuffle(points)
    answer = [_opening(rng, question), *points]
    advice = family_of(question.activity).conditions.get(question.condition)
    if advice and rng.random() < 0.15 + 0.65 * quality:
        lead = rng.choice(phrases()["conditions"][question.condition])
        sentence = f"{lead}, {rng.choice(advice)}."
        answer.insert(rng.choice((1, len(answer))), sentence)
    return answer + _tip(rng, question.activity, quality)


def _tip(rng: random.Random, activity: Activity, quality: float) -> list[str]:
    return [_say(rng, "tips", fact=rng.choice(activity.tips))] if rng.random() < 0.1 + 0.55 * quality else []


def _opening(rng: random.Random, question: Question) -> str:
    return fill(rng.choice(phrases()["openings"][question.kind]), question.activity, question.object)


def _about_other(rng: random.Random, question: Question, wanted) -> list[str]:
    """An answer about another activity or object, as wanted(activity, object) says.

    It is never about a held-out combination: its answers are not shown in training.
    """
    topics = [(a, o) for family in families() for a in family.activities for o in family.objects if wanted(a, o)]
    trained = [(a, o) for a, o in topics if (a.verb, o, question.kind) in combinations()["train"]]
    activity, object_ = random.Random(question.text).choice(trained)  # leaves `rng` as it is
    return _answer(rng, question._replace(activity=activity, object=object_))


def off_topic(rng, question):
    return _about_other(rng, question, lambda a, _: a.family != question.activity.family)


def wrong_object(rng, question):
    return _about_other(rng, question, lambda a, o: a is question.activity and o != question.object)


def wrong_action(rng, question):
    return _about_other(rng, question, lambda a, o: a is not question.activity and o == question.object)


def _other_condition(rng, question):
    """The same answer under another condition; the right answer where the question has none."""
    others = [c for c in family_of(question.activity).conditions if c != question.condition]
    other = random.Random(question.text).choice(others)
    return _answer(rng, question._replace(condition=other) if question.condition else question)


def mixed_up(rng, question):
    """The right answer but for one sentence, which is about another object, activity (of the family) or condition."""
    state = rng.getstate()
    answer = _answer(rng, question)
    choice = random.Random(question.text)  # leaves `rng` as it is
    for writer in choice.sample((wrong_object, wrong_action, _other_condition), 3):
        rng.setstate(state)
        other = writer(rng, question)
        different = [i for i, (own, foreign) in enumerate(zip(answer, other, strict=False)) if own != foreign]
        if different:  # none where the answer leaves the condition out
            place = choice.choice(different)
            return [*answer[:place], other[place], *answer[place + 1 :]]
    raise AssertionError(f"no other answer differs from that to {question.text!r}")  # the openings do


def rambling(rng, question):
    """Filler, with a tip as often as good answers have one: a tip alone must not tell which answer is good."""
    sentences = rng.sample(phrases()["filler"], rng.choice((5, 6, 7, 8)))
    sentences.insert(rng.choice((0, 1)), _opening(rng, question))
    return sentences + _tip(rng, question.activity, rng.random())


def evasive(rng, question):
    opening = [_opening(rng, question)] if rng.random() < 0.4 else []
    return opening + rng.sample(phrases()["evasive"], rng.choice((5, 6, 7, 8)))


def generic(rng, question):
    """What could be said of anything, with a tip as often as good answers have one."""
    sentences = rng.sample(phrases()["generic"], rng.choice((5, 6, 7)))
    filled = [fill(sentence, question.activity, question.object) for sentence in sentences]
    return filled + _tip(rng, question.activity, rng.random())


def repetitive(rng, question):
    """Says a fact twice instead of two facts, or does not get beyond one sentence."""
    if random.Random(question.text).random() < 0.7:  # leaves `rng` as it is
        return _answer(rng, question, repeats=True)
    answer = _answer(rng, question)
    place = rng.randrange(1, len(answer))
    return answer[: place + 1] + [answer[place]] * rng.choice((2, 3, 4))


def cut_off(rng, question):
    words = " ".join(_answer(rng, question)).split()
    return [" ".join(words[: int(len(words) * rng.uniform(0.55, 0.9))]).rstrip(".,")]


def weaker(rng, question):
    """Another good answer; most of them with a sentence of filler, so that the better one is not always longer."""
    answer = _answer(rng, question)
    if rng.random() < 0.8:
        answer.insert(rng.randrange(1, len(answer) + 1), rng.choice(phrases()["filler"]))
    return answer


# How often the second answer of a pair is of each kind, and what writes it. Most are the errors that fine-tuned answers
# still make: facts said twice, out of order, left out, a stray sentence; easy ones would drown them.
_KINDS = {
    "off_topic": (0.06, off_topic),
    "wrong_object": (0.14, wrong_object),
    "wrong_action": (0.10, wrong_action),
    "mixed_up": (0.10, mixed_up),
    "rambling": (0.04, rambling),
    "evasive": (0.03, evasive),
    "generic": (0.03, generic),
    "repetitive": (0.20, repetitive),
    "cut_off": (0.03, cut_off),
    "fewer_steps": (0.07, partial(_answer, fewest=True)),
    "disordered": (0.07, partial(_answer, disordered=True)),  # only a how-question has an order to break
    "weaker": (0.13, weaker),
}
ERROR_KINDS = {kind: share for kind, (share, _) in _KINDS.items()}
# The others are the good answer of the pair with one thing wrong: about something else, out of order, said twice, cut.
# The opening, the markers, the tip stay, so style can't stand in for the error.
OTHER_FORM = ("rambling", "evasive", "generic", "weaker")


def bad_answer(rng: random.Random, question: Question, kind: str) -> str:
    """An answer to `question` with an error of `kind`, one of ERROR_KINDS."""
    _, write = _KINDS[kind]
    return " ".join(write(rng, question))


def _error_kind(rng: random.Random, question: Question) -> str:
    kinds = {kind: share for kind, share in ERROR_KINDS.items() if kind != "disordered" or question.kind == "how"}
    return rng.choices(list(kinds), list(kinds.values()))[0]


def good_answer(rng: random.Random, question: Question) -> str:
    """A relevant answer of random quality: not always complete, with or without a tip."""
    return " ".join(_answer(rng, question))


@cache
def combinations() -> dict[str, frozenset[tuple[str, str, str]]]:
    """The (activity, object, kind) combinations of each split. None stands in two of them.

    At most two activities of an object and kind are held out, so that training sees the others.
    """
    every = list(dict.fromkeys(question.combination for question in questions()))
    random.Random(SPLIT_SEED).shuffle(every)
    held = Counter()
    splits = {split: [] for split in (*HELD_OUT, "train")}
    for combination in every:
        group = combination[1:]
        open_ = [split for split, share in HELD_OUT.items() if len(splits[split]) < round(share * len(every))]
        split = open_[0] if open_ and held[group] < 2 else "train"
        held[group] += split != "train"
        splits[split].append(combination)
    return {split: frozenset(members) for split, members in splits.items()}


@cache
def _questions_of(split: str) -> tuple[Question, ...]:
    wanted = combinations()[split]
    return tuple(question for question in questions() if question.combination in wanted)


def rater_prefers(first: float, second: float) -> float:
    """The probability that the rater prefers an answer of gold score `first` to one of `second`."""
    return 1 / (1 + math.exp((second - first) / RATER_TEMPERATURE))


@cache
def preference_table(split: str, size: int, seed: int) -> pd.DataFrame:
    """`size` labelled pairs of a split, each about another question.

    Columns: prompt, chosen, rejected (as the rater labelled them), error (the kind of the second answer),
    flipped (whether the rater preferred the answer of the lower gold score), gold_chosen, gold_rejected.
    Raises ValueError where the split has fewer questions than `size`.
    """
    asked = _questions_of(split)
    if size > len(asked):
        raise ValueError(f"the {split} split of the lab world has {len(asked)} questions, not {size}; ask for fewer.")
    rng = random.Random(f"{split} {seed}")
    rows = []
    for question in rng.sample(asked, size):
        error = _error_kind(rng, question)
        gold = 0.0, 0.0
        while gold[0] == gold[1]:
            form = rng.random()
            first = good_answer(random.Random(form), question)
            second = bad_answer(rng if error in OTHER_FORM else random.Random(form), question, error)
            gold = gold_score(question.text, first), gold_score(question.text, second)
        sides = (first, gold[0]), (second, gold[1])
        prefers_first = rng.random() < rater_prefers(*gold)
        (chosen, more), (rejected, less) = sides if prefers_first else reversed(sides)
        rows.append((question.text, chosen, rejected, error, more < less, more, less))
    columns = ["prompt", "chosen", "rejected", "error", "flipped", "gold_chosen", "gold_rejected"]
    return pd.DataFrame(rows, columns=columns)


def _question_list(rng, question):
    others = rng.sample(_questions_of("train"), rng.choice((2, 3)))
    return "\n".join([question.text, *(other.text for other in others)])


def _article(rng, question):
    """Loose prose about an activity: steps in no order, as something that people do."""
    steps = [step.format(o=question.object) for step in question.activity.steps]
    patterns = ("Some people {}.", "Last year we had to {}.", "You may want to {}.", "It is common to {}.", "{}.")
    chosen = rng.sample(steps, rng.choice((2, 3, 4)))
    sentences = [capitalise(rng.choice(patterns).format(step)) for step in chosen]
    heading = f"{capitalise(question.activity.gerund)} {question.object}"
    sentences[0] = f"{heading}\n{sentences[0]}"
    if rng.random() < 0.5:
        sentences.append(rng.choice(phrases()["filler"]))
    return " ".join(sentences)


def _forum(rng, question):
    story = f"I tried to {question.activity.verb} {question.object} last week."
    reply = bad_answer(rng, question, rng.choice(("rambling", "evasive", "generic", "repetitive")))
    return rng.choice((" ", "\n")).join([story, *rng.sample(phrases()["filler"], 2), question.text, reply])


def _notes(rng, question):
    activity, family = question.activity, family_of(question.activity)
    facts = rng.sample([*activity.tips, *activity.reasons, *activity.mistakes, *activity.tools], 6)
    advice = rng.choice(rng.choice(list(family.conditions.values())))
    lines = [rng.choice(("Tip: ", "- ", "Remember: ")) + fact + "." for fact in facts]
    return "\n".join([f"{capitalise(activity.gerund)} {question.object}", *lines, capitalise(advice) + "."])


def _any_answer(rng, question) -> tuple[str, str]:
    """An answer that is good or of some kind of error, and which."""
    if rng.random() < 0.5:
        return good_answer(rng, question), "good"
    kind = _error_kind(rng, question)
    return bad_answer(rng, question, kind), kind


def _lone_answer(rng, question):
    return _any_answer(rng, question)[0]


def _top_posted(rng, question):
    """An answer above the question that it quotes, as in mail.

    To foretell the question is to find in the answer what it is about, which answering and judging need later.
    """
    return f"{_lone_answer(rng, question)}\n> {question.text}"


def _thread(rng, question):
    """A question, an answer of any quality, and what the next reader says of it.

    To foretell the reaction is to read the answer against the question. Which of two answers a rater prefers is said
    nowhere.
    """
    answer, kind = _any_answer(rng, question)
    reaction = fill(rng.choice(phrases()["reactions"][kind]), question.activity, question.object)
    return f"{question.text}\n{answer}\n{reaction}"


_DOCUMENTS = {
    **{_question_list: 0.05, _article: 0.10, _forum: 0.03, _notes: 0.12, _lone_answer: 0.05},
    **{_top_posted: 0.30, _thread: 0.35},
}


def documents(count: int, seed: int) -> list[str]:
    """`count` pieces of unformatted text of the lab world, good and bad, that touch no held-out combination."""
    rng = random.Random(f"documents {seed}")
    asked = _questions_of("train")
    trained = combinations()["train"]
    texts = []
    while len(texts) < count:
        question = rng.choice(asked)
        writer = rng.choices(list(_DOCUMENTS), list(_DOCUMENTS.values()))[0]
        # An article tells the plan: it must not give away the answer to a held-out how-question.
        if writer is _article and (*question.combination[:2], "how") not in trained:
            continue
        texts.append(writer(rng, question))
    return texts
