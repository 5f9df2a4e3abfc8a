"""Answers as tables in Markdown: side by side with what is wrong in each, and one answer sentence by sentence.

The gold score of the lab world finds what is wrong. For real data there is none, and answers are shown as they are.
"""

import re

from rlhf.lab import WEIGHTS, gold_by_sentence, gold_parts, gold_score
from rlhf.lab.gold import objects_in
from rlhf.lab.world import parse_question
from rlhf.profiles import Profile

FAULTS = {part for part, weight in WEIGHTS.items() if weight < 0}
# What a reader calls it where a sentence makes a part of the gold score smaller.
ERRORS = {part: part for part in WEIGHTS if part in FAULTS} | {"foreign": "foreign content", "order": "wrong order"}


def table(header: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """A table in Markdown; `numbers` are the columns that stand to the right."""
    rule = ["---:" if i in numbers else ":---" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def literal(text: str) -> str:
    """Text in which nothing is a sign of Markdown or HTML: such signs by their number, line breaks as <br>."""
    coded = re.sub(r"[^\w\s.,;:!?'()/-]|_", lambda sign: f"&#{ord(sign.group())};", text.strip())
    return re.sub(r"\s*\n\s*", "<br>", coded)


def errors(prompt: str, sentence: str, added: dict[str, float]) -> list[str]:
    """What is wrong with a sentence that adds this to the parts of the gold score: those that it makes smaller."""
    found = [name for part, name in ERRORS.items() if added[part] < 0]
    if any(name != parse_question(prompt).object for name in objects_in(sentence)):
        found = ["wrong object", *(name for name in found if name != "foreign content")]
    return found


def missing(prompt: str, answer: str) -> list[str]:
    """The parts of the gold score of which an answer has earned nothing, those that its question asks for."""
    unasked = {"condition"} if parse_question(prompt).condition is None else set()
    return [part for part, points in gold_parts(prompt, answer).items() if not points and part not in FAULTS | unasked]


def annotated(profile: Profile, prompt: str, answer: str) -> str:
    """An answer in Markdown: sentences with an error in bold, with the error behind; at the end what is missing."""
    if not profile.lab:
        return literal(answer)
    shown = []
    for sentence, added in gold_by_sentence(prompt, answer):
        found = errors(prompt, sentence, added)
        shown.append(f"**{literal(sentence)}** [{', '.join(found)}]" if found and sentence else literal(sentence))
    without = missing(prompt, answer)
    return " ".join([*shown, f"<br>*Missing: {', '.join(without)}.*"] if without else shown).strip()


def examples(
    profile: Profile, chosen: dict[str, int], prompts: list[str], answers: dict[str, list[str]], rewards: dict
) -> list[dict]:
    """The entries of qualitative.json: all answers to each chosen prompt, each with its reward and, in the lab, gold.

    chosen: label -> number of a prompt; answers, rewards: in the order of the prompts, with the same keys.
    """
    shown = []
    for label, i in chosen.items():
        entry = {"chosen as": label, "prompt": prompts[i]}
        for name, texts in answers.items():
            entry[name] = {"answer": texts[i], "reward": round(float(rewards[name][i]), 3)}
            if profile.lab:
                entry[name]["gold"] = gold_score(prompts[i], texts[i])
        shown.append(entry)
    return shown


def beside(profile: Profile, example: dict, names: dict[str, str]) -> str:
    """The answers to one prompt in Markdown, one row each: reward, gold score where it is known, the annotated answer.

    example: an entry of qualitative.json; names: its keys that get a row, with what the row is called.
    """
    columns = {"reward": "reward (logit)"} | ({"gold": "gold (points)"} if profile.lab else {})
    rows = []
    for key, label in names.items():
        numbers = [f"{example[key][column]:.2f}" for column in columns]
        rows.append([label, *numbers, annotated(profile, example["prompt"], example[key]["answer"])])
    title = f"**{example['chosen as'].capitalize()}.** {literal(example['prompt'])}"
    return f"{title}\n\n{table(['', *columns.values(), 'answer'], rows, (1, 2)[: len(columns)])}\n"


def dissection(prompt: str, answer: str) -> str:
    """The sentences of an answer in Markdown, each with the points that it adds to the gold score, part by part."""

    def line(name: str, parts: dict[str, float]) -> list[str]:
        changed = [f"{part} {points:+.2f}" for part, points in parts.items() if abs(points) > 1e-6]
        return [name, ", ".join(changed) or "nothing", f"{sum(parts.values()) + 0.0:+.2f}"]

    added = gold_by_sentence(prompt, answer)
    whole = {part: sum(parts[part] for _, parts in added) for part in WEIGHTS}
    rows = [line(literal(sentence), parts) for sentence, parts in added]
    return table(["sentence", "parts", "points"], [*rows, line("**gold score**", whole)], (2,))
