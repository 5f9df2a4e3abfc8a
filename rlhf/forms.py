"""Preference rows in the forms that the field uses, as prompt, chosen and rejected answer.

A dialogue becomes one prompt text by one rule, the same in all stages: a lone user turn is its content; otherwise every
turn is "User: ...", "Assistant: ..." or "System: ...", with an empty line between two. A system turn is kept, and so is
what stands before the first mark of a dialogue as text: it is one.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from rlhf.files import Row

from trl.data_utils import extract_prompt

HUMAN_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # as in hh-rlhf
ROLES = {"System": "system", "Human": "user", "Assistant": "assistant"}
ASKED = ("user", "assistant")
Triple = tuple[str, str, str]


class RowError(ValueError):
    """Why a row can't be used."""


def find_form(rows: Sequence[Row], name: str) -> tuple[str, Callable[[dict], Triple]]:
    """The form of most rows: what it is called, and what makes prompt, chosen and rejected of a row's values.

    That raises RowError for a row that can't be used. In rows for fine-tuning alone the rejected answer is "". Raises
    ValueError where no form fits, naming a column that is missing.
    """
    kinds = Counter(tuple(_kind(row.values.get(column)) for column in ("prompt", "chosen", "rejected")) for row in rows)
    prompt, chosen, rejected = kinds.most_common(1)[0][0]
    columns = set().union(*(row.values for row in rows))
    if chosen == rejected == "list":
        if prompt == "list":
            return "conversational: prompt, chosen and rejected as lists of turns", _conversation
        return "conversational: chosen and rejected as whole dialogues", _dialogues
    if "prompt" in columns and {"chosen", "rejected"} <= columns:
        return "prompt, chosen and rejected as text", _texts
    if {"instruction", "chosen", "rejected"} <= columns:
        return "instruction, input, chosen and rejected as text", _instruction
    if {"chosen", "rejected"} <= columns and any(_is_marked(row.values.get("chosen")) for row in rows[:100]):
        return "dialogues marked Human and Assistant", _marked
    if {"instruction", "output"} <= columns:
        return "instruction, input and output, for fine-tuning alone", _alpaca
    missing = next(column for column in ("prompt", "chosen", "rejected") if column not in columns)
    raise ValueError(
        f"column {missing!r} is not in data set {name!r} (found: {sorted(columns)}); rename one of those, or see "
        f"docs/settings.md for the forms that are read."
    )


def _kind(value) -> str:
    return "list" if isinstance(value, list) else "other"


def _is_marked(value) -> bool:
    return isinstance(value, str) and len(HUMAN_TURN.findall(value)) > 1


def _is_filled(value) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _text(values: dict, column: str) -> str:
    value = values.get(column)
    if not _is_filled(value):
        raise RowError(f"{column} is empty")
    if not isinstance(value, str):
        names = {"list": "a list", "dict": "an object", "bool": "true or false"}
        raise RowError(f"{column} is {names.get(type(value).__name__, 'a number')}, not text")
    if re.search("[\ud800-\udfff]", value):
        raise RowError(f"{column} holds half of a surrogate pair")
    return value.strip()


def _texts(values: dict) -> Triple:
    """A prompt that is marked like a dialogue and ends where the assistant's turn begins is read as one."""
    prompt = _text(values, "prompt")
    if "Human" in HUMAN_TURN.findall(prompt) and prompt.endswith("\n\nAssistant:"):
        prompt = _prompt(_marked_turns(prompt.removesuffix("Assistant:")))
    return prompt, _text(values, "chosen"), _text(values, "rejected")


def _with_input(values: dict) -> str:
    """The instruction, and the input below it where there is one, after what LLaMA-Factory calls system and history."""
    turns = [{"role": "system", "content": _text(values, "system")}] if _is_filled(values.get("system")) else []
    for earlier in values.get("history") or []:
        if not isinstance(earlier, list) or len(earlier) != 2:
            raise RowError("history has something else than pairs of texts")
        turns += [{"role": role, "content": _text({"history": earlier[i]}, "history")} for i, role in enumerate(ASKED)]
    given = f"\n\n{_text(values, 'input')}" if _is_filled(values.get("input")) else ""
    return _prompt([*turns, {"role": "user", "content": _text(values, "instruction") + given}])


def _instruction(values: dict) -> Triple:
    return _with_input(values), _text(values, "chosen"), _text(values, "rejected")


def _alpaca(values: dict) -> Triple:
    return _with_input(values), _text(values, "output"), ""


def _marked(values: dict) -> Triple:
    return _dialogues({column: _marked_turns(_text(values, column)) for column in ("chosen", "rejected")})


def _marked_turns(text: str) -> list[dict[str, str]]:
    before, *parts = HUMAN_TURN.split(text)
    turns = [("System", before), *zip(parts[::2], parts[1::2], strict=True)]
    return [
        {"role": ROLES[role], "content": content.strip()}
        for role, content in turns
        if content.strip() or role != "System"
    ]


def _dialogues(values: dict) -> Triple:
    """The prompt is what both dialogues begin with, up to the last answer."""
    dialogues = {column: _turns(values, column) for column in ("chosen", "rejected")}
    if dialogues["chosen"] == dialogues["rejected"]:
        answer = _answer(dialogues["chosen"][-1:], "chosen")
        return _prompt(dialogues["chosen"][:-1]), answer, answer
    if len(dialogues["chosen"]) == len(dialogues["rejected"]) == 1:  # a prompt of text beside them
        return _text(values, "prompt"), *(_answer(turns, column) for column, turns in dialogues.items())
    return _conversation(extract_prompt(dialogues))


def _conversation(values: dict) -> Triple:
    prompt = _prompt(_turns(values, "prompt"))
    return prompt, *(_answer(_turns(values, column), column) for column in ("chosen", "rejected"))


def _turns(values: dict, column: str) -> list[dict[str, str]]:
    turns = values.get(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"{column} is no list of turns")
    if not turns:
        raise RowError(f"{column} is empty")
    for turn in turns:
        if turn.get("role") not in ("system", "user", "assistant"):
            raise RowError(f"{column} has a turn of another role than system, user and assistant")
    return [{"role": turn["role"], "content": _text(turn, "content")} for turn in turns]


def _answer(turns: list[dict[str, str]], column: str) -> str:
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise RowError(f"{column} has other turns than one answer after the prompt")
    return turns[0]["content"]


def _prompt(turns: list[dict[str, str]]) -> str:
    if not turns or turns[-1]["role"] != "user":
        raise RowError("the prompt does not end with a user's turn")
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
