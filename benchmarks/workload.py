"""What the benchmarks measure: models of GPT-2's shape with random weights, and texts as long as the published data's.

The tokenizer is GPT-2's own where RLHF_TEST_DATA names a folder with gpt2_tokenizer/. Elsewhere a stand-in has as many
tokens, each of them a word, so that models, lengths and work are the same.
"""

import copy
import dataclasses
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rlhf import models, runtime
from rlhf.profiles import Profile, load_profile
from rlhf.template import TEMPLATE, format_prompt

import numpy as np
import tokenizers
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer
from transformers import PreTrainedTokenizerFast as FastTokenizer

EOS = "<|endoftext|>"
# Median and standard deviation of the logarithm of the tokens of a prompt and of an answer, over the eight test rows of
# Dahoas/synthetic-instruct-gptj-pairwise that nabeelshan/rlhf-gpt2-pipeline shows.
PROMPT, ANSWER = (22, 0.19), (89, 0.42)
ON_GPU = 4  # times as many rows: a turn of a few milliseconds would measure the launch of kernels


@dataclass(frozen=True)
class Shape:
    """A size of model with the amount of work of a turn."""

    layers: int
    width: int
    heads: int
    rows: int = 32  # pairs, texts or prompts of a turn; on a GPU ON_GPU times as many
    context: int = 1024
    vocabulary: int = 50_257  # without a pad token
    share: float = 1.0  # of the published lengths
    beam_tokens: int = 100
    ppo_tokens: int = 32  # on a GPU 150, as published


SHAPES = {
    "gpt2": Shape(12, 768, 12),
    "tiny": Shape(2, 32, 2, rows=16, context=256, vocabulary=500, share=0.2, beam_tokens=6, ppo_tokens=6),
}


def on_gpu() -> bool:
    return runtime.device().type == "cuda"


def stand_in(vocabulary: int, context: int) -> FastTokenizer:
    """A tokenizer of so many tokens, each a word between white space."""
    known = ["<unk>", EOS, *dict.fromkeys(TEMPLATE.format(prompt=" ").split())]
    words = [*known, *(f"w{i}" for i in range(vocabulary - len(known)))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    built = tokenizers.Tokenizer(model)
    built.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    specials = {"unk_token": "<unk>", "bos_token": EOS, "eos_token": EOS}
    return FastTokenizer(tokenizer_object=built, model_max_length=context, **specials)


def make_tokenizer(shape: Shape):
    """GPT-2's tokenizer or its stand-in, and its name; both with a pad token of their own."""
    folder = Path(os.environ.get("RLHF_TEST_DATA", ""), "gpt2_tokenizer")
    whole = shape.vocabulary == Shape.vocabulary
    if whole and os.environ.get("RLHF_TEST_DATA") and folder.is_dir():
        tokenizer, name = GPT2Tokenizer.from_pretrained(folder, model_max_length=shape.context), "GPT-2"
    else:
        tokenizer, name = stand_in(shape.vocabulary, shape.context), "stand-in"
    tokenizer.add_special_tokens({"pad_token": models.PAD})
    return tokenizer, name


def random_pairs(tokenizer, shape: Shape, count: int, seed: int = 0) -> Dataset:
    """Columns prompt, chosen, rejected: random words, as many as PROMPT and ANSWER say, that fit into the context."""
    rng = np.random.default_rng(seed)
    words = sorted(word.lstrip("Ġ") for word in tokenizer.get_vocab() if re.fullmatch(r"Ġ[a-z]+|w\d+", word))
    room = shape.context - len(tokenizer(format_prompt("a"))["input_ids"]) - shape.beam_tokens

    def texts(length: tuple[float, float], most: int) -> list[str]:
        drawn = rng.lognormal(np.log(length[0] * shape.share), length[1], count)
        return [" ".join(rng.choice(words, n)) for n in drawn.round().clip(1, most).astype(int)]

    most = room // 4
    columns = {"prompt": texts(PROMPT, most), "chosen": texts(ANSWER, 2 * most), "rejected": texts(ANSWER, 2 * most)}
    return Dataset.from_dict(columns)


@dataclass(frozen=True, eq=False)
class Workload:
    """The models and data of a shape, with the settings of the gpt2 profile."""

    shape: Shape
    profile: Profile
    tokenizer: object
    tokenizer_name: str
    pairs: Dataset

    def config(self) -> GPT2Config:
        shape, ids = self.shape, {f"{kind}_token_id": self.tokenizer.eos_token_id for kind in ("bos", "eos")}
        size = {"n_layer": shape.layers, "n_embd": shape.width, "n_head": shape.heads, "n_positions": shape.context}
        ids |= {"pad_token_id": self.tokenizer.pad_token_id, "vocab_size": len(self.tokenizer), "num_labels": 1}
        return GPT2Config(**size, **ids)

    @functools.cache  # noqa: B019 (a workload lives as long as the benchmark)
    def _start(self, kind: type, published: bool):
        with runtime.isolated_generator(0):
            config = self.config() if published else models.in_one_step(self.config())
            return kind(config).to(runtime.device()).eval()

    def policy(self, published: bool = False) -> GPT2LMHeadModel:
        """A language model; each call gives an equal one, as models.prepare_base has it or as GPT-2 was published."""
        return copy.deepcopy(self._start(GPT2LMHeadModel, published))

    def classifier(self, published: bool = False) -> GPT2ForSequenceClassification:
        return copy.deepcopy(self._start(GPT2ForSequenceClassification, published))


def make_workload(shape: Shape, count: int | None = None) -> Workload:
    """The workload of a shape with `count` pairs; the texts depend on nothing but the shape and the tokenizer."""
    profile = load_profile("gpt2")
    sft = dataclasses.replace(profile.sft, max_length=shape.context)
    reward = dataclasses.replace(profile.reward, max_length=shape.context, evaluations=0)
    profile = dataclasses.replace(profile, max_steps=None, sft=sft, reward=reward)
    tokenizer, name = make_tokenizer(shape)
    count = count or shape.rows * (ON_GPU if on_gpu() else 1)
    return Workload(shape, profile, tokenizer, name, random_pairs(tokenizer, shape, count))
