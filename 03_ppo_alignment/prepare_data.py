"""Stage 3's data: the prompts that PPO answers while it trains. Training split only."""

from rlhf.data import drop_too_long, load_preferences
from rlhf.profiles import Profile
from rlhf.template import format_prompt

from datasets import Dataset


def get_ppo_prompts(profile: Profile, tokenizer) -> Dataset:
    """One row per distinct training prompt with the column input_ids: the prompt in the template.

    A prompt that leaves no room for an answer of max_new_tokens in the context is counted and left out. There is no
    other column: TRL's collator would try to turn text into a tensor.
    """
    rows = load_preferences(profile)["train"]
    room = min(tokenizer.model_max_length, profile.sft.max_length) - profile.decoding.max_new_tokens
    rows = drop_too_long(rows, tokenizer, room, (), "PPO prompts")
    prompts = list(dict.fromkeys(format_prompt(prompt) for prompt in rows["prompt"]))
    return Dataset.from_dict({"input_ids": tokenizer(prompts, truncation=False, verbose=False)["input_ids"]})
