"""The pairs that follow from rankings: pairs.jsonl, which RLHF_DATASET reads, and ties.jsonl apart from it."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rlhf import outputs
from rlhf.collect.items import Item, save
from rlhf.collect.journal import Journal, Rating


def pairs_of(item: Item, rating: Rating, rater: str) -> tuple[list[dict], list[dict]]:
    """The k (k - 1) / 2 pairs of a ranking of k answers: those with a better answer, and ties.

    A pair says who ranked it, when, which policy answered, how both answers were decoded, and at which places, from 1,
    they were shown. In a tie the two are `first` and `second`, as they stand in the item.
    """
    decided, tied = [], []
    for pair in combinations(range(len(item.answers)), 2) if rating.ranks else ():
        better, worse = sorted(pair, key=rating.ranks.__getitem__)
        tie = rating.ranks[better] == rating.ranks[worse]
        row = {"prompt": item.prompt}
        sides = {"first": better, "second": worse} if tie else {"chosen": better, "rejected": worse}
        row |= {side: item.answers[i].text for side, i in sides.items()}
        row |= {"rater": rater, "time": rating.time, "item": item.key, "model_revision": item.revision}
        for side, i in sides.items():
            row |= {f"{side}_decoding": item.answers[i].decoding, f"{side}_place": rating.order.index(i) + 1}
        (tied if tie else decided).append(row)
    return decided, tied


def collect(folder: Path, items: Sequence[Item], raters: Sequence) -> list[Journal]:
    """Let each of some raters (rlhf.collect.raters) rank all items; what they said, in place of `folder`.

    It gets items.jsonl, a journal for each in raters/, and the two files of `export`.
    """
    with outputs.new_folder(folder) as new:
        save(new / "items.jsonl", items)
        journals = [Journal(new / "raters", rater.name, items) for rater in raters]
        for journal, rater in zip(journals, raters, strict=True):
            journal.ask(rater)
        export(new, items, journals)
    return [Journal(folder / "raters", rater.name, items) for rater in raters]


def export(folder: Path, items: Sequence[Item], journals: Sequence[Journal]) -> tuple[int, int]:
    """Write both files anew with all that the journals hold; returns their numbers of rows.

    Second showings measure a rater and are left out. A pair on which several raters agree has a row for each of them;
    rlhf.data drops all but one of these.
    """
    known, files = {item.key: item for item in items}, {"pairs.jsonl": [], "ties.jsonl": []}
    for journal in journals:
        for rating in journal.showings()[0]:
            for rows, more in zip(files.values(), pairs_of(known[rating.item], rating, journal.name), strict=True):
                rows += more
    for name, rows in files.items():
        outputs.write_text(folder / name, "".join(json.dumps(row) + "\n" for row in rows))
    return tuple(map(len, files.values()))
