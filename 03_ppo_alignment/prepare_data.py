"""Stage 3's data: the prompts that PPO answers while it trains, as TRL's trainer takes them."""

from rlhf.template import format_prompt

from datasets import Dataset


def get_ppo_prompts(prompts: list[str], tokenizer) -> Dataset:
    """One row per prompt with the column input_ids: the prompt in the template.

    There is no other column: TRL's collator would try to turn text into a tensor.
    """
    texts = [format_prompt(prompt) for prompt in prompts]
    return Dataset.from_dict({"input_ids": tokenizer(texts, truncation=False, verbose=False)["input_ids"]})
