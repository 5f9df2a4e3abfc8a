"""The preference data: the one place where it is loaded, cleaned and split.

All three stages use the same split by prompt, so that no test prompt, nor a copy of it, is seen by any training.
"""

import re
from pathlib import Path

from rlhf import download
from rlhf.lab import corpus
from rlhf.profiles import Profile
from rlhf.template import format_prompt, format_response

import datasets
import pandas as pd
from datasets import Dataset, DatasetDict

COLUMNS = ["prompt", "chosen", "rejected"]
SPLITS = ("train", "validation", "test")
# train_test_split(test_size=0.05, seed=42) of the raw rows gives the published 1,658 test rows of 33,143.
TEST_SHARE, SPLIT_SEED = 0.05, 42
VALIDATION_SHARE = 0.03
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def first_sentence(text: str) -> str:
    """The text up to its first full stop, question mark or exclamation mark before white space; all of it without."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def normalise_prompt(prompt: str) -> str:
    """What makes two prompts the same: stripped, case-folded, white space collapsed."""
    return " ".join(prompt.casefold().split())


def load_preferences(profile: Profile) -> DatasetDict:
    """Train, validation and test pairs with the columns prompt, chosen, rejected (strings).

    Prints one line on what was dropped. Raises ValueError for missing columns or where no usable row is left, and
    ConnectionError where a Hub data set can't be reached.
    """
    if profile.lab:
        tables = {split: _lab_table(profile, split)[COLUMNS] for split in SPLITS}
        splits = {split: Dataset.from_pandas(table, preserve_index=False) for split, table in tables.items()}
    else:
        splits = _split_rows(_load_rows(profile.dataset))
    return _clean(splits, profile.dataset)


def _lab_table(profile: Profile, split: str) -> pd.DataFrame:
    return corpus.preference_table(split, profile.lab.pairs[SPLITS.index(split)], profile.seed)


def error_kinds(profile: Profile, rows: Dataset) -> list[str]:
    """The kind of error in the worse answer of each row: known for the lab corpus, "unlabelled" for real data."""
    if not profile.lab:
        return ["unlabelled"] * len(rows)
    tables = pd.concat(_lab_table(profile, split) for split in SPLITS)
    known = dict(zip(zip(tables.prompt, tables.chosen, strict=True), tables.error, strict=True))
    return [known[pair] for pair in zip(rows["prompt"], rows["chosen"], strict=True)]


def _load_local(path: Path):
    """A folder made by save_to_disk, a folder of data files, or one file. Raises ValueError where it can't be read."""
    if path.is_file() and path.suffix not in READERS:
        raise ValueError(f"data file {path.name!r} has none of the endings {', '.join(READERS)}; convert it to one.")
    try:
        if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
            return datasets.load_from_disk(str(path))
        if path.is_dir():
            return datasets.load_dataset(str(path))
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        return datasets.load_dataset(READERS[path.suffix], data_files=str(path), **options)
    except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"data set {path.name!r} can't be read ({type(error).__name__}: {str(error).splitlines()[:1]}); "
            f"it needs rows with the columns {', '.join(COLUMNS)}."
        ) from error


def _load_rows(name: str) -> Dataset:
    """The rows of a local folder or file, or of a data set on the Hub."""
    path = Path(name)
    if not path.exists():
        try:
            path = download.fetch(name, kind="dataset")
        except ConnectionError as error:
            raise ConnectionError(
                f"{error} Without the Hub, set RLHF_DATASET to a local folder or file with the columns "
                f"{', '.join(COLUMNS)}, or use the offline profile: RLHF_PROFILE=lab."
            ) from error
    loaded = _load_local(path)
    if isinstance(loaded, DatasetDict):
        loaded = loaded["train" if "train" in loaded else next(iter(loaded))]
    found = loaded.column_names
    if missing := [column for column in COLUMNS if column not in found]:
        raise ValueError(f"column {missing[0]!r} is not in data set {name!r} (found: {found}); rename one of those.")
    return loaded.select_columns(COLUMNS)


def _split_rows(rows: Dataset) -> dict[str, Dataset]:
    """Test rows as published; validation rows by prompt, out of what is left."""
    if len(rows) < 3:
        raise ValueError(f"{len(rows)} rows can't be split into train, validation and test; give at least 3.")
    parts = rows.train_test_split(test_size=TEST_SHARE, seed=SPLIT_SEED)
    size = max(1, round(VALIDATION_SHARE * len(parts["train"])))
    rest = parts["train"].train_test_split(test_size=size, seed=SPLIT_SEED)
    return {"train": rest["train"], "validation": rest["test"], "test": parts["test"]}


def _clean(splits: dict[str, Dataset], name: str) -> DatasetDict:
    """Drop rows that can't be used, and rows of train and validation whose prompt stands in a later split."""
    counts = dict.fromkeys(("empty or not text", "chosen equals rejected", "duplicate pair", "prompt held out"), 0)
    held_out: set[str] = set()
    cleaned = {}
    for split in reversed(SPLITS):
        kept = {}  # by what makes two pairs the same
        for values in zip(*(splits[split][column] for column in COLUMNS), strict=True):
            if not all(isinstance(value, str) and value.strip() for value in values):
                counts["empty or not text"] += 1
                continue
            prompt, chosen, rejected = row = [value.strip() for value in values]
            key = (normalise_prompt(prompt), chosen, rejected)
            if chosen == rejected:
                counts["chosen equals rejected"] += 1
            elif key in kept:
                counts["duplicate pair"] += 1
            elif key[0] in held_out:
                counts["prompt held out"] += 1
            else:
                kept[key] = dict(zip(COLUMNS, row, strict=True))
        if not kept:
            raise ValueError(f"no usable {split} row is left of data set {name!r} (dropped: {counts}); check the data.")
        held_out |= {prompt for prompt, _, _ in kept}
        cleaned[split] = Dataset.from_list(list(kept.values()))
    sizes = ", ".join(f"{split} {len(cleaned[split]):,}" for split in SPLITS)
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "nothing"
    print(f"{Path(name).name} pairs: {sizes}; dropped: {dropped}")
    return DatasetDict({split: cleaned[split] for split in SPLITS})


def drop_too_long(rows: Dataset, tokenizer, limit: int, answers: tuple[str, ...], name: str) -> Dataset:
    """Rows whose template, prompt, answer and EOS take at most `limit` tokens, for every column in `answers`.

    With no answer columns only template and prompt count. Raises ValueError where no row is left.
    """
    prompts = [format_prompt(row) for row in rows["prompt"]]
    texts = [[p + format_response(a) for p, a in zip(prompts, rows[column], strict=True)] for column in answers]
    ids = [tokenizer(column, truncation=False, verbose=False)["input_ids"] for column in texts or [prompts]]
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
