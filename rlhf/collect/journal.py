"""What one rater is asked and has said: a queue of items, and a journal on disk that a kill leaves whole."""

import json
import os
import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rlhf.collect.items import Item

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
REPEATED = 0.1  # of the items, shown a second time


class Rating(NamedTuple):
    time: str  # in UTC
    item: str  # its key
    ranks: list[int] | None  # of its answers in the order of the item; None where it was skipped
    order: list[int]  # the answers as they were shown, from the first to the last


def rater_name(text: str) -> str:
    """The name of a rater, which is that of a file too. Raises ValueError for what can't be one."""
    name = text.strip().lower()
    if not NAME.fullmatch(name):
        raise ValueError(f"{text[:40]!r} is no name of a rater; give 1 to 32 of the signs a-z, 0-9, - and _.")
    return name


def queue_of(items: Sequence[Item], rater: str) -> list[Item]:
    """The items in an order of the rater's own, with REPEATED of the first third once more among the last.

    Between the two showings of an item lies a third of all items or more, so they go unnoticed.
    """
    rng = random.Random(rater)
    queue = rng.sample(items, len(items))
    third = len(queue) // 3
    last = queue[len(queue) - third :] + queue[: min(third, round(REPEATED * len(queue)))]
    return queue[: len(queue) - third] + rng.sample(last, len(last))


class Journal:
    """A rater's queue, and the file <rater>.jsonl: a line for each rating and each undo, on the disk before it counts.

    As a rater it gives the ranks that it holds. Raises ValueError for a name that is none, and for a journal that can't
    be read or is of other items; a last line that a kill cut off was never confirmed, and is dropped.
    """

    def __init__(self, folder: Path, rater: str, items: Sequence[Item]):
        self.name = rater_name(rater)
        self.path, self.queue = folder / f"{self.name}.jsonl", queue_of(items, self.name)
        self.said: list[Rating] = []  # one for each place of the queue that is done
        content = self.path.read_bytes() if self.path.exists() else b""
        self._whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                self.said.pop() if "undo" in entry else self.said.append(self._checked(Rating(**entry), self.place))
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(
                    f"journal {self.path.name}, line {number} fits none of these items ({error}); put the items back "
                    f"that it was written for, or move it away."
                ) from error

    @property
    def place(self) -> int:
        return len(self.said)

    @property
    def done(self) -> bool:
        return self.place == len(self.queue)

    def order(self, place: int) -> list[int]:
        """The answers of the item at a place of the queue, shuffled for this rater, place and item."""
        item = self.queue[place]
        return random.Random(f"{self.name} {place} {item.key}").sample(range(len(item.answers)), len(item.answers))

    def add(self, ranks: list[int] | None) -> None:
        """Put down the ranks of the item whose turn it is; None skips it."""
        self._put([self._rating(self.place, ranks)])

    def ask(self, rater) -> None:
        """Let another rater do the rest of the queue."""
        places = range(self.place, len(self.queue))
        self._put([self._rating(place, rater.rank(self.queue[place])) for place in places])

    def undo(self) -> None:
        """Take the last rating back, if there is one: its item comes again."""
        if self.said:
            self._write([{"time": _now(), "undo": self.said[-1].item}])
            self.said.pop()

    def rank(self, item: Item) -> list[int] | None:
        return self.ranks().get(item.key)

    def ranks(self, again: bool = False) -> dict[str, list[int]]:
        """The ranks by item, of its first or of its second showing, without what was skipped."""
        return {rating.item: rating.ranks for rating in self.showings()[again] if rating.ranks is not None}

    def showings(self) -> tuple[list[Rating], list[Rating]]:
        """The ratings of items that were shown for the first and for the second time."""
        parts, seen = ([], []), set()
        for rating in self.said:
            parts[rating.item in seen].append(rating)
            seen.add(rating.item)
        return parts

    def _rating(self, place: int, ranks: list[int] | None) -> Rating:
        return self._checked(Rating(_now(), self.queue[place].key, ranks, self.order(place)), place)

    def _checked(self, rating: Rating, place: int) -> Rating:
        item, answers = self.queue[place], sorted(rating.order)
        fits = rating.ranks is None or (
            len(rating.ranks) == len(answers) and set(rating.ranks) == set(range(1, max(rating.ranks) + 1))
        )
        if rating.item != item.key or answers != list(range(len(item.answers))) or not fits:
            raise ValueError(f"found {rating.item} {rating.ranks}, expected {item.key}")
        return rating

    def _put(self, ratings: list[Rating]) -> None:
        self._write([rating._asdict() for rating in ratings])
        self.said += ratings

    def _write(self, entries: list[dict]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() > self._whole:  # what a kill or a full disk cut off
                file.truncate(self._whole)
            file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()


def journals_in(folder: Path, items: Sequence[Item]) -> dict[str, Journal]:
    """The journals of all raters in a folder, by name. Raises ValueError as Journal does."""
    return {path.stem: Journal(folder, path.stem, items) for path in sorted(folder.glob("*.jsonl"))}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
