"""How a policy is evaluated, the same way in every stage: two decodings, ROUGE, stopping, length, diversity."""

from rlhf import generation, metrics, outputs
from rlhf.data import drop_too_long, load_preferences
from rlhf.generation import Answer
from rlhf.profiles import Profile

import numpy as np
import pandas as pd

MODELS = ("base", "sft_qlora", "sft_full", "ppo", "ppo_scratch")
DECODINGS = ("beam", "sample")

# Results of nabeelshan/rlhf-gpt2-pipeline (GPT-2 124M, 1,658 test prompts; rewards on the first 200), as published.
PUBLISHED = pd.DataFrame(
    [
        (model, metric, value)
        for model, values in {
            "base": (0.1793, 0.0492, 0.1444, -0.455),
            "sft_full": (0.3534, 0.1487, 0.2622, 1.545),
            "sft_qlora": (0.3117, 0.1260, 0.2405, None),
            "ppo": (0.3365, 0.1390, 0.2515, 2.375),
        }.items()
        for metric, value in zip(("rouge1", "rouge2", "rougeL", "reward"), values, strict=True)
        if value is not None
    ],
    columns=["model", "metric", "value"],
)


def prompt_rows(profile: Profile, tokenizer, split: str):
    """The prompts of a split ("test", "validation") that models answer, with the chosen answers as references.

    The first `eval_prompts` of those that leave room for the longer of the two decodings in the context.
    """
    decoding = profile.decoding
    room = min(tokenizer.model_max_length, profile.sft.max_length)
    room -= max(decoding.max_new_tokens, decoding.beam_new_tokens)
    rows = drop_too_long(load_preferences(profile)[split], tokenizer, room, (), f"{split} prompts")
    return rows.select(range(min(profile.eval_prompts, len(rows))))


def answer(profile: Profile, model, tokenizer, prompts: list[str], decoding: str) -> list[Answer]:
    """Answers by "beam", the published decoding, or by "sample", the distribution that PPO trains.

    Raises ValueError for any other decoding.
    """
    settings = profile.decoding
    if decoding == "beam":
        options = {
            "max_new_tokens": settings.beam_new_tokens,
            "num_beams": settings.num_beams,
            "repetition_penalty": settings.repetition_penalty,
        }
    elif decoding == "sample":
        options = {"max_new_tokens": settings.max_new_tokens, "temperature": settings.temperature, "seed": profile.seed}
    else:
        raise ValueError(f"decoding {decoding!r} is none of {', '.join(DECODINGS)}.")
    return generation.answer(model, tokenizer, prompts, batch_size=settings.batch_size, description=decoding, **options)


def evaluate_answers(
    profile: Profile, name: str, prompts: list[str], references: list[str], answers: dict[str, list[Answer]]
) -> None:
    """Write what both decodings of a model give: its rows of rouge.csv and behaviour.csv, and predictions_<name>.json.

    A metric without suffix is that of the published decoding; `_sample` marks sampling. Predictions are those of beam.
    """
    rouge, behaviour = {}, {}
    for decoding in DECODINGS:
        suffix = "" if decoding == "beam" else "_sample"
        texts = [reply.text for reply in answers[decoding]]
        scores = metrics.rouge_per_example(texts, references)
        rouge |= {f"{metric}{suffix}": values for metric, values in scores.items()}
        behaviour[f"stop_rate{suffix}"] = [reply.ended for reply in answers[decoding]]
        behaviour[f"words{suffix}"] = [len(text.split()) for text in texts]
    rows = metrics.summary_rows(name, behaviour)
    for n in (1, 2):  # diversity of all texts together: one number, so no interval over prompts
        value = metrics.distinct_n([reply.text for reply in answers["sample"]], n)
        rows.loc[len(rows)] = (name, f"distinct_{n}_sample", value, np.nan, np.nan, len(prompts))
    outputs.merge_csv(profile, "rouge.csv", metrics.summary_rows(name, rouge), key="model")
    outputs.merge_csv(profile, "behaviour.csv", rows, key="model")
    predictions = [
        {"prompt": prompt, "reference": reference, "prediction": reply.text}
        for prompt, reference, reply in zip(prompts, references, answers["beam"], strict=True)
    ]
    outputs.write_json(profile, f"predictions_{name}.json", predictions)
