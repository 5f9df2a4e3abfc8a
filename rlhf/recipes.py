"""What the notebooks of recipes/ share: parts that are trained once, sentences that a policy goes on with, a judge."""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf import generation, metrics, models, outputs, runtime
from rlhf.generation import Answer
from rlhf.ppo.settings import Settings
from rlhf.profiles import Profile
from rlhf.reward import scoring
from rlhf.tokens import encode

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

NOTE = "part.json"


@dataclasses.dataclass
class Table:
    """A table that is kept in a part's folder, beside its model."""

    name: str
    frame: pd.DataFrame

    def save_pretrained(self, folder) -> None:
        # A lone carriage return in a text that is not quoted would be read as the end of its line.
        self.frame.to_csv(Path(folder) / self.name, index=False, quoting=csv.QUOTE_NONNUMERIC)


@dataclasses.dataclass
class _Note:
    """What a part was made from, and what that took."""

    content: dict

    def save_pretrained(self, folder) -> None:
        outputs.write_text(Path(folder) / NOTE, json.dumps(self.content, indent=1) + "\n")


def part(profile: Profile, name: str, make: Callable[[], Sequence], after: Sequence[str] = (), **settings) -> Path:
    """The folder of a part of a recipe in checkpoints/: made now, or before with the same settings.

    make: trains, and returns what is saved (model, tokenizer, Table). after: the parts that it starts from; where one
    of these was made with other settings, so is this. A part does not know the code that made it: FORCE=1 starts over.
    """
    path = outputs.checkpoint_path(profile, name)
    before = {other: _note(outputs.require_checkpoint(profile, other)).get("made_from") for other in after}
    inputs = {"model": outputs.show_name(profile.model), "data": outputs.show_name(profile.dataset)}
    inputs |= {"encoder": outputs.show_name(profile.encoder)} if profile.encoder else {}
    made_from = inputs | {"seed": profile.seed, "max_steps": profile.max_steps, "settings": settings, "after": before}
    made_from = json.loads(json.dumps(made_from, default=str))
    if path.is_dir() and _note(path).get("made_from") == made_from:
        print(f"{name}: taken up from {outputs.show(path)}")
        return outputs.require_checkpoint(profile, name)
    started, made = runtime.clock(), make()
    cost = {"seconds": round(runtime.clock() - started, 1), "peak_memory_mb": runtime.peak_memory_mb(os.getpid())}
    outputs.save_checkpoint(profile, name, *made, _Note({"made_from": made_from} | cost))
    outputs.forget_training(profile)
    return path


def _note(path: Path) -> dict:
    file = path / NOTE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def costs(profile: Profile) -> pd.DataFrame:
    """What the parts of a recipe took, in the order in which they were made: part, seconds, peak_memory_mb.

    The peak is that of the process until the part was done, so of the parts before it too where one process made them.
    """
    notes = sorted(outputs.checkpoints_dir(profile).glob(f"*/{NOTE}"), key=lambda note: (note.stat().st_mtime_ns, note))
    rows = [(note.parent.name, *(_note(note.parent)[key] for key in ("seconds", "peak_memory_mb"))) for note in notes]
    return pd.DataFrame(rows, columns=["part", "seconds", "peak_memory_mb"])


def prepare(profile: Profile):
    """The base model and its tokenizer (models.prepare_base).

    Raises ValueError for a model that is too large to be trained whole, as the recipes do it.
    """
    base, tokenizer = models.prepare_base(profile)
    if outputs.by_adapters(profile):
        raise ValueError(
            f"model {outputs.show_name(profile.model)!r} is too large for the memory that is there, and recipes train "
            f"whole models; choose a smaller one by RLHF_MODEL, or `make run`, which trains adapters."
        )
    return base, tokenizer


def sized(settings: Settings, profile: Profile) -> Settings:
    """The settings with the profile's length of answers, at most its max_steps updates and its batches."""
    updates = min(settings.updates, profile.max_steps or settings.updates)
    size = min(settings.batch_size, profile.decoding.batch_size)
    return dataclasses.replace(
        settings,
        updates=updates,
        batch_size=size,
        micro_batch_size=min(settings.micro_batch_size, size),
        warmup_updates=min(settings.warmup_updates, updates // 2),
        max_new_tokens=profile.decoding.max_new_tokens,
        temperature=profile.decoding.temperature,
    )


def beginnings(tokenizer, sentences: Sequence[str], seed: int, tokens: tuple[int, int] = (2, 8)) -> list[list[int]]:
    """The first tokens of each sentence, their number drawn between two bounds; a shorter sentence is left out."""
    rng, found = np.random.default_rng(seed), []
    for ids in encode(tokenizer, sentences):
        length = int(rng.integers(tokens[0], tokens[1] + 1))
        if len(ids) > length:
            found.append(ids[:length])
    return found


def sentence_logprobs(
    model, tokenizer, sentences: Sequence[str], batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """log p of each sentence given its first token, in nats, and the number of tokens it sums over, EOS with them."""
    rows = [[*ids, tokenizer.eos_token_id] for ids in encode(tokenizer, sentences)]
    rest = [Answer("", tuple(row[1:]), True) for row in rows]
    first = [row[:1] for row in rows]
    nats = generation.answer_logprobs(model, tokenizer, sentences, rest, encoded=first, batch_size=batch_size)
    return nats, np.array([len(row) - 1 for row in rows])


def continued(profile: Profile, model, reference, tokenizer, starts: Sequence[Sequence[int]]) -> pd.DataFrame:
    """What a policy makes of beginnings (rows of tokens), sampled, and how the reference likes it: one row for each.

    Columns: beginning, sentence, ended, words, kl (log p of the policy minus that of the reference, nats), perplexity
    (of what was written, under the reference), repetition. Policies that are given the same beginnings share the random
    numbers that they are sampled with.
    """
    texts = [tokenizer.decode(ids) for ids in starts]
    answers, own, ref = _sampled(profile, model, reference, tokenizer, texts, starts)
    both = zip(starts, answers, strict=True)
    sentences = [
        tokenizer.decode([*start, *answer.token_ids], skip_special_tokens=True).strip() for start, answer in both
    ]
    return pd.DataFrame(
        {
            "beginning": texts,
            "sentence": sentences,
            "ended": [answer.ended for answer in answers],
            "words": [len(sentence.split()) for sentence in sentences],
            "kl": own - ref,
            "perplexity": np.exp(-ref / [len(answer.token_ids) for answer in answers]),
            "repetition": [repetition(sentence) for sentence in sentences],
        }
    )


def answered(profile: Profile, model, reference, tokenizer, prompts: Sequence[str]) -> pd.DataFrame:
    """What a policy answers to prompts in the template, sampled: one row for each, as `continued` has them.

    Columns: prompt, answer, ended, words, kl (from the reference, nats per answer), repetition.
    """
    answers, own, ref = _sampled(profile, model, reference, tokenizer, prompts)
    texts = [answer.text for answer in answers]
    return pd.DataFrame(
        {
            "prompt": list(prompts),
            "answer": texts,
            "ended": [answer.ended for answer in answers],
            "words": [len(text.split()) for text in texts],
            "kl": own - ref,
            "repetition": [repetition(text) for text in texts],
        }
    )


def _sampled(profile: Profile, model, reference, tokenizer, texts: Sequence[str], encoded=None):
    """Answers as the profile samples them, and their log-probabilities under the model and under the reference."""
    options = {"batch_size": profile.decoding.batch_size, "temperature": profile.decoding.temperature}
    options["encoded"] = encoded
    length = profile.decoding.max_new_tokens
    answers = generation.generate_answers(model, tokenizer, texts, max_new_tokens=length, seed=profile.seed, **options)
    logprobs = (generation.answer_logprobs(m, tokenizer, texts, answers, **options) for m in (model, reference))
    return answers, *logprobs


def repetition(text: str, n: int = 2) -> float:
    """The share of a text's runs of n words that stood in it before."""
    return 1 - metrics.distinct_n([text], n) if len(text.split()) >= n else 0.0


def label_scores(model, tokenizer, sentences: Sequence[str]) -> np.ndarray:
    """2 sigmoid(logit) - 1 of each sentence, read at its last token: between -1 (class 0) and 1, (sentences,)."""
    return 2 * expit(label_logits(model, tokenizer, sentences)) - 1


def label_logits(model, tokenizer, sentences: Sequence[str]) -> np.ndarray:
    """The logit of class 1 of each sentence, read at its last token: (sentences,)."""
    return scoring.score_tokens(model, encode(tokenizer, sentences), tokenizer.pad_token_id)


def word_judge(sentences: Sequence[str], labels: Sequence[int]) -> Pipeline:
    """A classifier that shares nothing with a language model: logistic regression on the words and pairs of words.

    Their counts are weighted by TF-IDF (scikit-learn). It has `predict` and `predict_proba`.
    """
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(counts, LogisticRegression(C=10, max_iter=1000)).fit(list(sentences), list(labels))
