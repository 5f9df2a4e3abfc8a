"""Stage 3's data: the prompts that PPO answers while it trains, as TRL's trainer takes them."""

from rlhf.generation import encode_prompts

from datasets import Dataset


def get_ppo_prompts(prompts: list[str], tokenizer) -> Dataset:
    """One row per prompt with the column input_ids: the prompt in the template.

    There is no other column: TRL's collator would try to turn text into a tensor.
    """
    return Dataset.from_dict({"input_ids": encode_prompts(tokenizer, prompts)})
