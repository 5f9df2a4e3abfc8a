"""What raters rank: prompts with several answers of a policy each, sampled at several temperatures."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf import files, outputs
from rlhf.generation import generate_answers
from rlhf.profiles import Profile

LEAST, MOST = 2, 8  # answers to one prompt
ROUNDS = 3  # how often an answer is drawn anew at most where it is empty or there already


class Candidate(NamedTuple):
    text: str
    ended: bool  # whether the policy stopped by itself
    decoding: dict  # what it was sampled with: temperature, seed, max_new_tokens


class Item(NamedTuple):
    prompt: str
    answers: tuple[Candidate, ...]
    revision: str  # of the policy

    @property
    def key(self) -> str:
        """What the item is called in journals and pairs: a hash of all that it holds."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:12]


def revision(checkpoint: Path) -> str:
    """Name and version of a checkpoint: a hash of its manifest, which holds one of each of its files.

    Raises ValueError for a folder without a manifest: nothing would say which weights gave the answers.
    """
    manifest = checkpoint / outputs.MANIFEST
    if not manifest.exists():
        raise ValueError(f"{outputs.show(manifest)} is missing; outputs.write_manifest writes it for the files there.")
    return f"{checkpoint.name}@{outputs.sha256(manifest)[:12]}"


def sample_items(
    profile: Profile, policy, tokenizer, prompts: Sequence[str], temperatures: Sequence[float], count: int, source: str
) -> list[Item]:
    """`count` different answers to each prompt, the temperatures in turn; `source` is the policy's revision.

    An answer that is empty or there already is drawn again, at the next temperature and with the next seed. Prints how
    many items have fewer answers in the end, and leaves out those with one. Raises ValueError for a count that is not
    from LEAST to MOST, for no temperature and for one that is not positive, and where no item is left.
    """
    if not LEAST <= count <= MOST:
        raise ValueError(f"{count} answers to a prompt can't be ranked here; give from {LEAST} to {MOST}.")
    if not temperatures or min(temperatures) <= 0:
        raise ValueError(f"temperatures {list(temperatures)}: give one or more, all positive.")
    found: dict[str, dict[str, Candidate]] = {prompt: {} for prompt in prompts}
    length = profile.decoding.max_new_tokens
    for turn in range(ROUNDS * count):
        if not (asked := [prompt for prompt, answers in found.items() if len(answers) < count]):
            break
        decoding = {"temperature": temperatures[turn % len(temperatures)], "seed": profile.seed + turn}
        options = {"max_new_tokens": length, "batch_size": profile.decoding.batch_size, "description": "candidates"}
        for prompt, answer in zip(
            asked, generate_answers(policy, tokenizer, asked, **decoding, **options), strict=True
        ):
            if answer.text:
                candidate = Candidate(answer.text, answer.ended, {**decoding, "max_new_tokens": length})
                found[prompt].setdefault(answer.text, candidate)
    items = [Item(prompt, tuple(answers.values()), source) for prompt, answers in found.items() if len(answers) > 1]
    if not items:
        raise ValueError("no prompt has two different answers; give more prompts or higher temperatures.")
    if fewer := sum(len(answers) < count for answers in found.values()):
        print(f"{fewer} of {len(found)} prompts have fewer than {count} different answers; those with one are left out")
    return items


def save(path: Path, items: Sequence[Item]) -> Path:
    rows = ({**item._asdict(), "answers": [answer._asdict() for answer in item.answers]} for item in items)
    return outputs.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def load(path: Path) -> list[Item]:
    """The items of a file that `save` wrote. Raises ValueError, naming the line, for another."""
    if not path.exists():
        raise FileNotFoundError(f"{outputs.show(path)} is missing; run make collect, which samples it.")
    items = []
    for where, row in files.read(path)["train"]:
        try:
            answers = tuple(Candidate(**answer) for answer in row["answers"])
            items.append(Item(row["prompt"], answers, row["revision"]))
        except (TypeError, KeyError) as error:
            raise ValueError(f"{where} is no item ({type(error).__name__}); delete the file to sample anew.") from error
    return items
