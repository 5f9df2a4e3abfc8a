"""SST-2: sentences of film reviews that people marked as positive or negative (Socher et al. 2013)."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rlhf import download, outputs

import pyarrow.parquet
from datasets import Dataset, DatasetDict

HUB_NAME = "stanfordnlp/sst2"
# The test split of the Hub has no labels, so it is not read.
FILES = {"train": ("train",), "validation": ("dev", "validation")}
NOUNS = ("film", "story", "plot", "cast", "ending", "music", "script", "picture", "dialogue", "comedy")
ADJECTIVES = (
    ("dull", "tired", "clumsy", "hollow", "shrill", "lifeless", "muddled", "bland"),
    ("charming", "moving", "clever", "warm", "gripping", "graceful", "funny", "lovely"),
)
FRAMES = (
    "the {noun} is {adjective}",
    "what a {adjective} {noun}",
    "it's a {adjective} {noun} that stays with you",
    "a {adjective} {noun}, start to finish",
    "this {noun} feels {adjective}",
)
LABELS = {"0": 0, "1": 1}  # negative, positive


def load(source: str) -> DatasetDict:
    """Train and validation sentences: columns sentence (as people write it), tokenised (as it was) and label (0 or 1).

    source: a Hub name, or a local folder of train.tsv and dev.tsv with a sentence, a tab and a label in each line.
    Sentences that stand twice are kept once. Prints what was dropped, and an example of each fault. Raises
    ConnectionError where the Hub can't be reached, and ValueError for a folder without a split or a usable row.
    """
    folder = download.fetch(source, kind="dataset")
    splits, seen = DatasetDict(), set()
    for split in ("validation", "train"):  # what stands in both is held out
        found, kept = Counter(), []
        examples: dict[str, str] = {}
        for where, sentence, label in _rows(folder, split):
            text = detokenise(sentence)
            fault = _fault(sentence, label) or ("seen before" if text in seen else "")
            found[fault] += 1
            if fault:
                examples.setdefault(fault, f"{where}: {sentence[:60]!r}")
                continue
            seen.add(text)
            kept.append({"sentence": text, "tokenised": sentence.strip(), "label": LABELS[label.strip()]})
        dropped = [f"{found[fault]} {fault} ({example})" for fault, example in examples.items()]
        print(f"{split}: {len(kept):,} sentences; dropped: {'; '.join(dropped) or 'nothing'}")
        if not kept:
            raise ValueError(
                f"{outputs.show_name(source)} has no usable {split} sentence; give a folder with train.tsv and "
                f"dev.tsv, of lines with a sentence, a tab, and 0 or 1."
            )
        splits[split] = Dataset.from_list(kept)
    return splits


def _fault(sentence: str, label: str | None) -> str:
    if label is None:
        return "without a tab"
    if not sentence.strip():
        return "with an empty sentence"
    if not label.strip():
        return "without a label"
    return "" if label.strip() in LABELS else "with a label other than 0 and 1"


def _rows(folder: Path, split: str) -> Iterator[tuple[str, str, str | None]]:
    """Where each row stands, its sentence, and its label, None where there is no tab."""
    for file in (folder / f"{name}.tsv" for name in FILES[split]):
        if file.exists():
            yield from _lines(file)
            return
    for file in sorted(folder.rglob(f"{split}-*.parquet")):  # as the Hub has them
        rows = pyarrow.parquet.read_table(file, columns=["sentence", "label"]).to_pylist()
        for number, row in enumerate(rows, 1):
            yield f"{file.name}, row {number}", row["sentence"], str(row["label"])


def _lines(file: Path) -> Iterator[tuple[str, str, str | None]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    for number, line in enumerate(lines, 1):
        sentence, tab, label = line.removesuffix("\r").partition("\t")
        header = number == 1 and (sentence, label) == ("sentence", "label")
        if line and not header:
            yield f"{file.name}, line {number}", sentence, label if tab else None


def detokenise(sentence: str) -> str:
    """The sentence as it was before the data's tokeniser: "it wo n't , ever" becomes "it won't, ever".

    Joined to the word before: , ; : . ? ! and the clitics 's 're 've 'll 'd 'm n't. Quotation marks (`` '' and ` ') and
    brackets (lrb rrb) become " ' ( ) and stand at the words that they enclose. A lone ' that closes nothing is a
    possessive. All else stays, lower case too.
    """
    text = " ".join(sentence.split())
    text = re.sub(r"(?<!\S)-?lrb-? (.*?) -?rrb-?(?!\S)", r"(\1)", text)
    text = re.sub(r"`` ?(.*?) ?''", r'"\1"', text)
    text = re.sub(r"(?<!\S)` (.*?) '(?!\S)", r"'\1'", text)
    text = re.sub(r" (n't|'(?:s|re|ve|ll|d|m))(?!\S)", r"\1", text)
    text = re.sub(r" '(?!\S)", "'", text)
    return re.sub(r" ([,;:.?!]+)(?!\S)", r"\1", text)


def own_sentences(count: int, seed: int) -> DatasetDict:
    """Sentences of the project's own making with the same columns, to try a recipe without data."""
    rng, rows = random.Random(seed), {}
    while len(rows) < count:
        label = rng.randrange(2)
        noun, adjective = rng.choice(NOUNS), rng.choice(ADJECTIVES[label])
        rows[rng.choice(FRAMES).format(noun=noun, adjective=adjective)] = label
    whole = Dataset.from_list([{"sentence": s, "tokenised": s, "label": label} for s, label in rows.items()])
    held_out = count // 4
    return DatasetDict(train=whole.select(range(held_out, count)), validation=whole.select(range(held_out)))
