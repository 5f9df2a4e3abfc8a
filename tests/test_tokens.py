"""The same text gives the same ids in every stage, whatever a tokenizer puts around it."""

from rlhf import generation, models, sft
from rlhf.reward import scoring
from rlhf.template import format_prompt
from rlhf.tokens import encode, vocabulary_size

import pytest
import torch
from tokenizers import Tokenizer, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

QUESTION, ANSWER = "How do I roast tofu slices?", "First, heat the oven."
SPECIAL = "What does <|endoftext|> mean, and <|pad|>?"


@pytest.fixture
def with_bos(tokenizer):
    """A tokenizer that puts BOS in front of every text and EOS behind it."""
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "<|endoftext|>")]
    template = TemplateProcessing(single="<s> $A <|endoftext|>", special_tokens=ends)
    tokenizer.backend_tokenizer.post_processor = template
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    return tokenizer


def every_way(tokenizer, prompt: str, answer: str) -> list[list[int]]:
    """Template, prompt, answer and EOS as fine-tuning, scoring and a rollout have them."""
    examples = {"prompt": [format_prompt(prompt)], "completion": [answer]}
    written = encode(tokenizer, [format_prompt(prompt) + answer])[0]
    prompt_ids = generation.encode_prompts(tokenizer, [prompt])[0]
    return [
        sft.tokenize(examples, tokenizer)[0]["input_ids"],
        scoring.encode(tokenizer, [prompt], [answer], [True])[0],
        prompt_ids + written[len(prompt_ids) :] + [tokenizer.eos_token_id],
    ]


@pytest.mark.parametrize("text", [QUESTION, SPECIAL, "### Response:\nno", "<s>"])
def test_fine_tuning_scoring_and_rollout_read_the_same_ids_with_one_bos_and_one_eos(with_bos, text):
    first, second, third = every_way(with_bos, text, ANSWER)
    assert first == second == third
    assert first[0] == with_bos.bos_token_id and first[-1] == with_bos.eos_token_id
    assert not {with_bos.bos_token_id, with_bos.eos_token_id, with_bos.pad_token_id} & set(first[1:-1])


def test_without_bos_none_is_added(tokenizer):
    assert encode(tokenizer, [QUESTION]) == tokenizer([QUESTION])["input_ids"]
    assert encode(tokenizer, []) == []


@pytest.mark.parametrize("text", [SPECIAL, "<|endoftext|>", "a<|pad|>b"])
def test_a_special_token_written_in_a_text_is_text_and_comes_back(tokenizer, text):
    ids = encode(tokenizer, [text])[0]
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_tokenizer_that_has_python_code_alone_and_ends_every_text_with_eos():
    tokenizer = ByT5Tokenizer()
    assert tokenizer(QUESTION)["input_ids"][-1] == tokenizer.eos_token_id
    first, second, third = every_way(tokenizer, "What is </s>?", ANSWER)
    assert first == second == third
    assert first.count(tokenizer.eos_token_id) == 1 and first[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("other", ["eos_token", "unk_token", "bos_token"])
def test_a_pad_token_that_has_another_meaning_is_replaced(tokenizer, other):
    tokenizer.add_special_tokens({"bos_token": "<s>", "unk_token": "<unk>"})
    tokenizer.pad_token = getattr(tokenizer, other)
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=vocabulary_size(tokenizer)))
    models.add_pad_token(model, tokenizer)
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_rows_without_a_token_are_cut_off_and_the_new_pad_token_gets_the_mean_of_the_known_ones(tokenizer):
    tokenizer.pad_token = None
    known = vocabulary_size(tokenizer)
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=known + 50))
    rows = model.get_input_embeddings().weight.detach().clone()
    models.add_pad_token(model, tokenizer)
    kept = model.get_input_embeddings().weight
    assert len(kept) == vocabulary_size(tokenizer) == model.config.vocab_size
    assert torch.equal(kept[:known], rows[:known])
    assert all(torch.equal(row, rows[:known].mean(dim=0)) for row in kept[known:])


def test_tokenizer_that_joins_template_and_answer_is_refused():
    """Byte-pair encoding without splitting first: it has learned the end of the template and "Heat" as one token."""
    bpe = Tokenizer(BPE())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    texts = [f"{format_prompt(QUESTION)}Heat the oven."] * 5
    bpe.train_from_iterator(texts, trainer)
    joining = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    examples = {"prompt": [format_prompt(QUESTION)], "completion": ["Heat the oven."]}
    with pytest.raises(ValueError, match=r"as one token, as in '### Instruction.*splits at the end of a line"):
        sft.tokenize(examples, joining)
