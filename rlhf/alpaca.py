"""Instructions with answers in Alpaca's schema (instruction, input, output; Taori et al. 2023), pairs and probes."""

import json
import random
from collections.abc import Callable, Sequence
from itertools import product

from rlhf import forms, metrics, outputs
from rlhf.data import drop_too_long, keep_short, load_split
from rlhf.files import Row
from rlhf.profiles import Profile
from rlhf.tokens import encode

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
NOUNS = ("cup", "door", "road", "song", "coat", "bridge", "lamp", "garden", "letter", "boat")
ADJECTIVES = (("worn", "new"), ("small", "large"), ("dark", "bright"), ("slow", "quick"), ("cheap", "dear"))
FRAMES = (
    ("Write a sentence about this.", "a {adjective} {noun}", "The {adjective} {noun} is here."),
    ("Name something that is {adjective}, not a {noun}.", "", "A {adjective} {other}."),
    ("What is a {noun} that is not {adjective}?", "", "A {opposite} {noun}."),
)


def load(profile: Profile, tokenizer) -> DatasetDict:
    """Train, validation and test rows with the columns prompt and answer, as text.

    The rows are those of profile.dataset ("own": of the project's own making). Instruction and input become one prompt
    by the rule of rlhf.forms. Left out, and counted in what is printed, are rows that can't be used (rlhf.data), those
    whose answer with its EOS takes more tokens than a policy may write (decoding.max_new_tokens), and those that take
    more than sft.max_length with their prompt. Raises ConnectionError where the Hub can't be reached, and ValueError
    for data of another form, and where no row of a split is left.
    """
    splits, limit = DatasetDict(), profile.decoding.max_new_tokens
    for split, rows in _read(profile).items():
        rows = rows.select_columns(["prompt", "chosen"]).rename_column("chosen", "answer")
        lengths = [len(ids) + 1 for ids in encode(tokenizer, list(rows["answer"]))]
        rows = keep_short(rows, lengths, limit, f"{split} answers")
        if not len(rows):
            raise ValueError(f"no {split} answer fits into {limit} tokens; give more rows, or raise max_new_tokens.")
        splits[split] = drop_too_long(rows, tokenizer, profile.sft.max_length, ("answer",), f"{split} rows")
    return splits


def _read(profile: Profile) -> DatasetDict:
    if profile.dataset == "own":
        return own_rows(120, profile.seed)
    try:
        return load_split(profile.dataset, TEST_SHARE, VALIDATION_SHARE)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error} Without the Hub, set RLHF_ALPACA to a local file of rows with instruction, input and output."
        ) from error


def own_rows(count: int, seed: int) -> DatasetDict:
    """Rows of the project's own making, to try a recipe without data: prompt and chosen, with distinct prompts."""
    rows = []
    pairs = [*ADJECTIVES, *(pair[::-1] for pair in ADJECTIVES)]
    for texts, noun, (adjective, opposite) in product(FRAMES, NOUNS, pairs):
        other = NOUNS[(NOUNS.index(noun) + 1) % len(NOUNS)]
        words = {"noun": noun, "adjective": adjective, "opposite": opposite, "other": other}
        filled = (text.format(**words) for text in texts)
        rows.append(Row("", dict(zip(("instruction", "input", "output"), filled, strict=True))))
    _, read = forms.find_form(rows, "own")
    triples = [read(row.values) for row in random.Random(seed).sample(rows, count)]
    whole = Dataset.from_list([{"prompt": prompt, "chosen": answer} for prompt, answer, _ in triples])
    test, held_out = round(TEST_SHARE * count), round((TEST_SHARE + VALIDATION_SHARE) * count)
    parts = {"train": range(held_out, count), "validation": range(test, held_out), "test": range(test)}
    return DatasetDict({split: whole.select(rows) for split, rows in parts.items()})


def write_answers(profile: Profile, name: str, prompts: Sequence[str], answers: Sequence[str], **about) -> None:
    """Write evaluation/<profile>/<name>, a JSON line in Alpaca's schema for each answer; `about` stands in all of them.

    What is written so can be read as data again, as by RLHF_ALPACA.
    """
    rows = [
        {"instruction": p, "input": "", "output": a} | about for p, a in zip(prompts, answers, strict=True)
    ]  # the input is in the prompt already
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    outputs.write_text(outputs.evaluation_dir(profile) / name, "".join(lines))


def pairs(prompts: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]) -> pd.DataFrame:
    """Pairs as columns prompt, chosen, rejected; those of two equal answers, or of an empty one, are left out."""
    frame = pd.DataFrame({"prompt": list(prompts), "chosen": list(chosen), "rejected": list(rejected)})
    usable = (frame.chosen != frame.rejected) & (frame.chosen != "") & (frame.rejected != "")
    return frame[usable].reset_index(drop=True)


def of_others(answers: Sequence[str], times: int = 1) -> list[list[str]]:
    """`times` lists in which answers stand at other prompts, moved by equal parts of the whole: 1/2 of it for one."""
    answers = list(answers)
    steps = [len(answers) * (k + 1) // (times + 1) for k in range(times)]
    return [answers[step:] + answers[:step] for step in steps]


def probes(
    prompts: Sequence[str], answers: Sequence[str], base: Sequence[str], greedy: Sequence[str], hot: Sequence[str]
) -> dict[str, list[Sequence[str]]]:
    """What a reward model should prefer, by name: prompts and answers, and the prompts and answers that are worse.

    answers are the data's, base those of a weaker policy, greedy and hot those of one policy in two ways of decoding,
    all to the same prompts.
    """
    other = of_others(answers)[0]
    return {
        "against_base": [prompts, answers, prompts, base],
        "other_answer": [prompts, answers, prompts, other],
        "other_prompt": [prompts, answers, of_others(prompts)[0], answers],
        "weaker_decoding": [prompts, greedy, prompts, hot],
        "off_topic_human": [prompts, greedy, prompts, other],
    }


Judge = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # of prompts and answers: higher is better


def judged(judges: dict[str, Judge], probes: dict[str, list[Sequence[str]]]) -> pd.DataFrame:
    """The share of each probe's comparisons that each judge decides rightly, a tie for half: metrics.summary_rows."""
    rows = []
    for name, judge in judges.items():
        right = {probe: metrics.wins(judge(*two[:2]), judge(*two[2:])) for probe, two in probes.items()}
        rows.append(metrics.summary_rows(name, right))
    return pd.concat(rows, ignore_index=True)


def length_judge(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """The rule that the longer answer is better, by words."""
    return np.array([len(answer.split()) for answer in answers])
