"""The preference data: the one place where it is loaded, cleaned and split.

All three stages use the same split by prompt, so that no test prompt, nor a copy of it, is seen by any training.
"""

import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rlhf import download, files, forms
from rlhf.lab import corpus
from rlhf.profiles import Profile
from rlhf.template import format_prompt, format_response
from rlhf.tokens import encode

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

COLUMNS = ["prompt", "chosen", "rejected"]
SPLITS = ("train", "validation", "test")
# train_test_split(test_size=0.05, seed=42) of the raw rows gives the published 1,658 test rows of 33,143.
TEST_SHARE, SPLIT_SEED = 0.05, 42
VALIDATION_SHARE = 0.03
LARGEST_LOSS = 0.05  # of the rows, to prompts that stand on both sides of a split


def first_sentence(text: str) -> str:
    """The text up to its first full stop, question mark or exclamation mark before white space; all of it without."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def normalise_prompt(prompt: str) -> str:
    """What makes two prompts the same: stripped, case-folded, white space collapsed."""
    return " ".join(prompt.casefold().split())


class Pair(NamedTuple):
    """A row that was read: where it stands, and its texts, or why it can't be used."""

    where: str
    texts: tuple[str, str, str] | None  # prompt, chosen, rejected
    fault: str = ""


def load_preferences(profile: Profile) -> DatasetDict:
    """Train, validation and test pairs with the columns prompt, chosen, rejected (strings).

    The forms that are read are those of rlhf.forms, in the files of rlhf.files; data for fine-tuning alone have empty
    rejected answers. Prints the form that was found, what was dropped, and an example of each fault. Raises ValueError
    for a file that can't be read, for columns of no known form, and where no usable row is left, and ConnectionError
    where a Hub data set can't be reached.
    """
    if profile.lab:
        tables = {split: _lab_table(profile, split)[COLUMNS].itertuples(index=False, name=None) for split in SPLITS}
        return _clean({split: [Pair("", texts) for texts in table] for split, table in tables.items()}, profile.dataset)
    try:
        return load_split(profile.dataset)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error} Without the Hub, set RLHF_DATASET to a local folder or file with the columns "
            f"{', '.join(COLUMNS)}, or use the offline profile: RLHF_PROFILE=lab."
        ) from error


def load_split(name: str, test_share: float = TEST_SHARE, validation_share: float = VALIDATION_SHARE) -> DatasetDict:
    """Train, validation and test pairs of a local folder or file, or of a Hub data set, as load_preferences says.

    The shares hold where the data have no such splits of their own; that of validation is of what the test leaves.
    """
    return _clean(_with_all_splits(_load_pairs(name), test_share, validation_share), name)


def _lab_table(profile: Profile, split: str) -> pd.DataFrame:
    return corpus.preference_table(split, profile.lab.pairs[SPLITS.index(split)], profile.seed)


def error_kinds(profile: Profile, rows: Dataset) -> list[str]:
    """The kind of error in the worse answer of each row: known for the lab corpus, "unlabelled" for real data."""
    if not profile.lab:
        return ["unlabelled"] * len(rows)
    tables = pd.concat(_lab_table(profile, split) for split in SPLITS)
    known = dict(zip(zip(tables.prompt, tables.chosen, strict=True), tables.error, strict=True))
    return [known[pair] for pair in zip(rows["prompt"], rows["chosen"], strict=True)]


def _load_pairs(name: str) -> dict[str, list[Pair]]:
    """The rows of a local folder or file, or of a data set on the Hub, by the splits that it has."""
    path = Path(name)
    if not path.exists():
        path = download.fetch(name, kind="dataset")
    splits = files.read(path)
    rows = [row for part in splits.values() for row in part]
    if not rows:
        raise ValueError(f"data set {name!r} has no rows; it needs some with the columns {', '.join(COLUMNS)}.")
    form, read = forms.find_form(rows, name)
    print(f"{path.name} has {len(rows):,} rows of the form: {form}")

    def pair(row: files.Row) -> Pair:
        try:
            return Pair(row.where, read(row.values))
        except forms.RowError as fault:
            return Pair(row.where, None, str(fault))

    return {split: [pair(row) for row in part] for split, part in splits.items()}


def _with_all_splits(
    splits: dict[str, list[Pair]], test_share: float = TEST_SHARE, validation_share: float = VALIDATION_SHARE
) -> dict[str, list[Pair]]:
    """The data's own splits; those that are missing are taken out of train, or out of all rows where train is."""
    splits = dict(splits)
    if "train" not in splits:
        splits = {"train": [pair for part in splits.values() for pair in part]}
    if len(splits["train"]) < 4 - len(splits):
        raise ValueError(
            f"{len(splits['train'])} rows can't be split into train, validation and test; give at least 3."
        )
    budget = LARGEST_LOSS * len(splits["train"])  # of both
    for split, share in (("test", test_share), ("validation", validation_share)):
        if split not in splits:
            # The published split rounds its 1,658 test rows of 33,143 up.
            size = math.ceil(share * len(splits["train"])) if split == "test" else round(share * len(splits["train"]))
            parts = 4 - len(splits)
            splits["train"], splits[split], lost = _split_off(splits["train"], max(1, size), parts, budget)
            budget -= lost
    return splits


def _split_off(pairs: list[Pair], size: int, parts: int, budget: float) -> tuple[list[Pair], list[Pair], int]:
    """Train without `size` pairs, those, and how many rows are lost: by row, as published, unless it costs too many.

    A prompt of the second part may not stand in the first (_clean). Where prompts repeat that costs rows, so the split
    is by prompt where it would cost more than `budget` of them. `parts` is how many the pairs have to make in the
    end. Raises ValueError for fewer distinct prompts than parts.
    """
    prompts = [normalise_prompt(pair.texts[0]) if pair.texts else None for pair in pairs]
    numbers = Dataset.from_dict({"number": range(len(pairs))}).train_test_split(test_size=size, seed=SPLIT_SEED)
    first, second = numbers["train"]["number"], numbers["test"]["number"]
    held_out = {prompts[i] for i in second} - {None}
    lost = sum(prompts[i] in held_out for i in first)
    if lost > budget:
        held_out, lost = _some_prompts(prompts, size, parts), 0
        first, second = ([i for i, p in enumerate(prompts) if (p in held_out) == held] for held in (False, True))
    return [pairs[i] for i in first], [pairs[i] for i in second], lost


def _some_prompts(prompts: list[str | None], size: int, parts: int) -> set[str]:
    """Random distinct prompts of at least `size` rows, or of fewer where each of the other parts needs one."""
    counts = Counter(prompt for prompt in prompts if prompt is not None)
    if len(counts) < parts:
        raise ValueError(f"{len(counts)} distinct prompts can't be split by prompt; give at least {parts}.")
    distinct, chosen, rows = list(counts), set(), 0
    for i in np.random.default_rng(SPLIT_SEED).permutation(len(distinct))[: len(distinct) - parts + 1]:
        if rows < size:
            chosen.add(distinct[i])
            rows += counts[distinct[i]]
    return chosen


def _clean(splits: dict[str, list[Pair]], name: str) -> DatasetDict:
    """Drop rows that can't be used, and rows of train and validation whose prompt stands in a later split."""
    counts, examples, held_out, cleaned = Counter(), {}, set(), {}
    for split in reversed(SPLITS):
        kept = {}  # by what makes two pairs the same
        for pair in splits[split]:
            fault = pair.fault
            if pair.texts:
                prompt, chosen, rejected = (text.strip() for text in pair.texts)
                key = (normalise_prompt(prompt), chosen, rejected)
                if chosen == rejected:
                    fault = "chosen equals rejected"
                elif key in kept:
                    fault = "duplicate pair"
                elif key[0] in held_out:
                    fault = "prompt held out"
                else:
                    kept[key] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            if fault:
                counts[fault] += 1
                examples.setdefault(fault, pair)
        if not kept:
            found = dict(counts)
            raise ValueError(f"no usable {split} row is left of data set {name!r} (dropped: {found}); check the data.")
        held_out |= {key[0] for key in kept}
        cleaned[split] = Dataset.from_list(list(kept.values()))
    sizes = ", ".join(f"{split} {len(cleaned[split]):,}" for split in SPLITS)
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "nothing"
    print(f"{Path(name).name} pairs: {sizes}; dropped: {dropped}")
    for fault, pair in examples.items():
        text = f" ({pair.texts[0].strip()[:60]!r})" if pair.texts else ""
        print(f"  {fault}, for example {pair.where}{text}")
    return DatasetDict({split: cleaned[split] for split in SPLITS})


def drop_too_long(rows: Dataset, tokenizer, limit: int, answers: tuple[str, ...], name: str) -> Dataset:
    """Rows whose template, prompt, answer and EOS take at most `limit` tokens, for every column in `answers`.

    With no answer columns only template and prompt count. The model's context is a limit too, as the tokenizer has it
    (models.prepare_base). Raises ValueError where no row is left.
    """
    limit = min(limit, tokenizer.model_max_length)
    prompts = [format_prompt(row) for row in rows["prompt"]]
    texts = [[p + format_response(a) for p, a in zip(prompts, rows[column], strict=True)] for column in answers]
    ids = [encode(tokenizer, column) for column in texts or [prompts]]
    longest = [max(map(len, row)) + bool(answers) for row in zip(*ids, strict=True)]
    kept = keep_short(rows, longest, limit, name)
    if not len(kept):
        raise ValueError(f"{name}: no row fits into {limit} tokens; raise max_length or shorten the texts.")
    return kept


def keep_short(rows: Dataset, lengths: list[int], limit: int, name: str) -> Dataset:
    """The rows of at most `limit` tokens. Prints how many are left out: they are never dropped silently."""
    kept = [i for i, length in enumerate(lengths) if length <= limit]
    if len(kept) < len(rows):
        print(f"{name}: {len(rows) - len(kept)} of {len(rows)} rows are longer than {limit} tokens and are left out")
    return rows.select(kept)


def training_prompts(profile: Profile, tokenizer, max_tokens: int) -> list[str]:
    """The distinct prompts of the training split, without template: what PPO answers while it trains.

    A prompt that takes more than `max_tokens` with its template, or leaves no room for an answer of max_new_tokens in
    the context, is counted and left out: a batch is padded to its longest prompt, so one alone costs memory for all.
    """
    rows = load_preferences(profile)["train"]
    room = min(tokenizer.model_max_length, profile.sft.max_length) - profile.decoding.max_new_tokens
    return list(dict.fromkeys(drop_too_long(rows, tokenizer, min(room, max_tokens), (), "PPO prompts")["prompt"]))
