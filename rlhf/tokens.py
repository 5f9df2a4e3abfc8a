"""Texts as token ids, in one way for fine-tuning, rollout, scoring and evaluation."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, never cut: BOS in front where the tokenizer puts it there, and no EOS at the end.

    Where a text has an EOS is for the caller to say: some tokenizers add one to every text, a prompt too. What looks
    like a special token in a text, as when someone asks what <|endoftext|> is, is text: it becomes several tokens.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True, "truncation": False, "verbose": False}
    start, bos = tokenizer("a")["input_ids"][:1], tokenizer.bos_token_id
    start = start if bos is not None and start == [bos] else []
    return [start + ids for ids in tokenizer(list(texts), **options)["input_ids"]] if len(texts) else []


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that an embedding needs for the tokenizer, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1
