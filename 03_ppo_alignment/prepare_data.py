"""Stage 3's data: the prompts that PPO answers while it trains. Training split only."""

from rlhf.data import drop_too_long, load_preferences
from rlhf.profiles import Profile
from rlhf.template import format_prompt

from datasets import Dataset


def training_prompts(profile: Profile, tokenizer, max_tokens: int) -> list[str]:
    """The distinct prompts of the training split, without template.

    A prompt that takes more than `max_tokens` with its template, or leaves no room for an answer of max_new_tokens in
    the context, is counted and left out: a batch is padded to its longest prompt, so one alone costs memory for all.
    """
    rows = load_preferences(profile)["train"]
    room = min(tokenizer.model_max_length, profile.sft.max_length) - profile.decoding.max_new_tokens
    return list(dict.fromkeys(drop_too_long(rows, tokenizer, min(room, max_tokens), (), "PPO prompts")["prompt"]))


def get_ppo_prompts(prompts: list[str], tokenizer) -> Dataset:
    """One row per prompt with the column input_ids: the prompt in the template.

    There is no other column: TRL's collator would try to turn text into a tensor.
    """
    texts = [format_prompt(prompt) for prompt in prompts]
    return Dataset.from_dict({"input_ids": tokenizer(texts, truncation=False, verbose=False)["input_ids"]})
