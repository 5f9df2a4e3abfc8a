"""Stage 1's data: the chosen answers as prompt and completion, and their tokens with the labels of the loss."""

from rlhf.data import drop_too_long, load_preferences
from rlhf.models import load_tokenizer
from rlhf.profiles import Profile
from rlhf.template import format_prompt, format_response

from datasets import Dataset, DatasetDict

IGNORED = -100  # a label that the loss leaves out
ENDINGS = ("eos", "none", "pad_is_eos")


def get_sft_datasets(profile: Profile) -> DatasetDict:
    """Train, validation and test examples with the columns prompt (in the template) and completion (the chosen answer).

    A prompt with several pairs gives one example per distinct chosen answer. Examples longer than the profile's
    max_length are counted and left out. Needs the tokenizer of checkpoints/<profile>/base.
    """
    tokenizer = load_tokenizer(profile)
    splits = {}
    for split, rows in load_preferences(profile).items():
        fitting = drop_too_long(rows, tokenizer, profile.sft.max_length, ("chosen",), f"{split} examples")
        texts = zip(fitting["prompt"], fitting["chosen"], strict=True)
        pairs = dict.fromkeys((format_prompt(prompt), format_response(chosen)) for prompt, chosen in texts)
        prompts, completions = zip(*pairs, strict=True)
        splits[split] = Dataset.from_dict({"prompt": list(prompts), "completion": list(completions)})
    return DatasetDict(splits)


def tokenize(examples: Dataset, tokenizer, ending: str = "eos") -> Dataset:
    """Columns input_ids and labels: the loss is taken on the completion only, prompt labels are IGNORED.

    `ending` is how the example ends: "eos", an end-of-sequence token that is learned like any other; "none", without
    one; "pad_is_eos", with one that no loss sees, as when pad and EOS are the same token and padding is masked.
    Raises ValueError for any other ending.
    """
    if ending not in ENDINGS:
        raise ValueError(f"ending {ending!r} is none of {', '.join(ENDINGS)}.")
    prompt_ids = tokenizer(list(examples["prompt"]), truncation=False, verbose=False)["input_ids"]
    texts = [p + c for p, c in zip(examples["prompt"], examples["completion"], strict=True)]
    all_ids = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    rows = {"input_ids": [], "labels": []}
    for prompt, ids in zip(prompt_ids, all_ids, strict=True):
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        if ending != "none":
            ids = [*ids, tokenizer.eos_token_id]
            labels = [*labels, tokenizer.eos_token_id if ending == "eos" else IGNORED]
        rows["input_ids"].append(ids)
        rows["labels"].append(labels)
    return Dataset.from_dict(rows)
