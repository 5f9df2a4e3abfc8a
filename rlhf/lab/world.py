"""The facts and the wording of the lab world, and the questions that can be asked in it."""

import itertools
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Which of an activity's facts answer which kind of question, and how many of them make a complete answer.
POINTS = {"how": ("steps", 4), "why": ("reasons", 3), "avoid": ("mistakes", 3), "need": ("tools", 3)}


@dataclass(frozen=True)
class Activity:
    """Something that is done to each object of a family: its plan, and what else is true of it."""

    family: str
    verb: str
    gerund: str
    steps: tuple[str, ...]  # in order; "{o}" stands for the object
    reasons: tuple[str, ...]
    mistakes: tuple[str, ...]
    tools: tuple[str, ...]
    tips: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    name: str
    objects: tuple[str, ...]
    conditions: dict[str, tuple[str, ...]]  # condition -> what to do under it
    activities: tuple[Activity, ...]


@dataclass(frozen=True)
class Question:
    """A prompt and what it means. A combination is (activity, object, kind): what the splits keep apart."""

    text: str
    activity: Activity
    object: str
    kind: str  # one of POINTS
    condition: str | None

    @property
    def combination(self) -> tuple[str, str, str]:
        return self.activity.verb, self.object, self.kind


@cache
def families() -> tuple[Family, ...]:
    tables = tomllib.loads((Path(__file__).parent / "world.toml").read_text(encoding="utf-8"))
    return tuple(
        Family(
            name=name,
            objects=tuple(table["objects"]),
            conditions={key: tuple(phrases) for key, phrases in table["conditions"].items()},
            activities=tuple(
                Activity(
                    family=name,
                    verb=entry["verb"],
                    gerund=entry["gerund"],
                    **{field: tuple(entry[field]) for field in ("steps", "reasons", "mistakes", "tools", "tips")},
                )
                for entry in table["activities"]
            ),
        )
        for name, table in tables.items()
    )


@cache
def family_of(activity: Activity) -> Family:
    return next(family for family in families() if family.name == activity.family)


@cache
def phrases() -> dict:
    return tomllib.loads((Path(__file__).parent / "phrases.toml").read_text(encoding="utf-8"))


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
    asked = []
    for family in families():
        for activity, object_, kind in itertools.product(family.activities, family.objects, POINTS):
            for pattern in phrases()["questions"][kind]:
                for condition in (None, *family.conditions) if "{condition}" in pattern else (None,):
                    text = fill(pattern, activity, object_, condition)
                    asked.append(Question(text, activity, object_, kind, condition))
    return tuple(asked)


def normalise(text: str) -> str:
    """Lower case, letters only, single spaces: how prompts and sentences are compared."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


@cache
def _questions_by_text() -> dict[str, Question]:
    return {normalise(question.text): question for question in questions()}


def parse_question(prompt: str) -> Question:
    """The question that `prompt` asks. Raises ValueError where it is none of the lab world's."""
    question = _questions_by_text().get(normalise(prompt))
    if question is None:
        raise ValueError(
            f"{prompt[:80]!r} is not a question of the lab world; the gold judge knows only prompts that "
            f"rlhf.lab generates (load_preferences with the lab or smoke profile)."
        )
    return question
