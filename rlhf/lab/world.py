"""The facts and the wording of the lab world, and the questions that can be asked in it."""

import itertools
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Which of an activity's facts answer which kind of question, and how many of them make a complete answer.
POINTS = {"how": ("steps", 4), "why": ("reasons", 3), "avoid": ("mistakes", 3), "need": ("tools", 3)}
FACTS = ("steps", "reasons", "mistakes", "tools", "tips")  # of an activity


class Activity(NamedTuple):
    """Something that is done to each object of a family: its plan, and what else is true of it."""

    family: str
    verb: str
    gerund: str
    steps: tuple[str, ...]  # in order; "{o}" stands for the object
    reasons: tuple[str, ...]
    mistakes: tuple[str, ...]
    tools: tuple[str, ...]
    tips: tuple[str, ...]


class Family(NamedTuple):
    name: str
    objects: tuple[str, ...]
    conditions: dict[str, tuple[str, ...]]  # condition -> what to do under it
    activities: tuple[Activity, ...]


class Question(NamedTuple):
    """A prompt and what it means. A combination is (activity, object, kind): what the splits keep apart."""

    text: str
    activity: Activity
    object: str
    kind: str  # one of POINTS
    condition: str | None

    @property
    def combination(self) -> tuple[str, str, str]:
        return self.activity.verb, self.object, self.kind


def _table(name: str) -> dict:
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


@cache
def phrases() -> dict:
    return _table("phrases.toml")


@cache
def families() -> tuple[Family, ...]:
    found = []
    for name, table in _table("world.toml").items():
        activities = [
            Activity(name, entry["verb"], entry["gerund"], *(tuple(entry[field]) for field in FACTS))
            for entry in table["activities"]
        ]
        found.append(Family(name, tuple(table["objects"]), table["conditions"], tuple(activities)))
    return tuple(found)


@cache
def family_of(activity: Activity) -> Family:
    return next(family for family in families() if family.name == activity.family)


def fill(pattern: str, activity: Activity, object_: str, condition: str | None = None) -> str:
    """A phrase with its verb, object and condition put in."""
    return pattern.format(
        verb=activity.verb,
        gerund=activity.gerund,
        Gerund=capitalise(activity.gerund),
        object=object_,
        condition=f" {condition}" if condition else "",
    )


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


@cache
def questions() -> tuple[Question, ...]:
    """Every question of the world, in a fixed order."""
    return tuple(
        Question(fill(pattern, activity, object_, condition), activity, object_, kind, condition)
        for family in families()
        for activity, object_, kind in itertools.product(family.activities, family.objects, POINTS)
        for pattern in phrases()["questions"][kind]
        for condition in (None, *(family.conditions if "{condition}" in pattern else ()))
    )


def normalise(text: str) -> str:
    """Lower case, words only (of any script, digits too), single spaces: how prompts and sentences are compared."""
    return " ".join(re.findall(r"\w+", text.lower()))


def written_sentences(text: str) -> list[str]:
    """The sentences of a text as they are written."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences of a text, normalised; those without a word are left out."""
    return [sentence for part in written_sentences(text) if (sentence := normalise(part))]


@cache
def _questions_by_text() -> dict[str, Question]:
    return {normalise(question.text): question for question in questions()}


def parse_question(prompt: str) -> Question:
    """The question that `prompt` asks. Raises ValueError where it is none of the lab world's."""
    question = _questions_by_text().get(normalise(prompt))
    if question is None:
        raise ValueError(
            f"{prompt[:80]!r} is not a question of the lab world; the gold score knows only prompts that "
            f"rlhf.lab generates (load_preferences with the lab or smoke profile)."
        )
    return question
