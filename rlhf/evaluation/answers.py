"""How a policy is evaluated, in the same way in every stage: two decodings, ROUGE, stopping, length and diversity."""

import dataclasses
from collections.abc import Sequence

from rlhf import generation, metrics, outputs
from rlhf.data import drop_too_long, load_preferences
from rlhf.generation import Answer
from rlhf.lab import gold_table
from rlhf.lab.fluency import foreign_pairs
from rlhf.profiles import Profile
from rlhf.reward import scoring

import numpy as np
import pandas as pd

DECODINGS = ("beam", "sample")
DRAWS = 2  # sampled answers to each prompt in the last evaluation: answers to one prompt differ more than prompts do


def prompt_rows(profile: Profile, tokenizer, split: str):
    """The prompts of a split ("test", "validation") that models answer, with the chosen answers as references.

    The first `eval_prompts` of those that leave room for the longer of the two decodings in the context.
    """
    decoding = profile.decoding
    room = min(tokenizer.model_max_length, profile.sft.max_length)
    room -= max(decoding.max_new_tokens, decoding.beam_new_tokens)
    rows = drop_too_long(load_preferences(profile)[split], tokenizer, room, (), f"{split} prompts")
    return rows.select(range(min(profile.eval_prompts, len(rows))))


def decode(profile: Profile, model, tokenizer, prompts: list[str], decoding: str) -> list[Answer]:
    """Answers by "beam", the published decoding, or by "sample", the distribution that PPO trains.

    Raises ValueError for any other decoding.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"decoding {decoding!r} is none of {', '.join(DECODINGS)}.")
    settings = profile.decoding
    beam = {"num_beams": settings.num_beams, "repetition_penalty": settings.repetition_penalty}
    sample = {"temperature": settings.temperature, "seed": profile.seed}
    length, options = (settings.beam_new_tokens, beam) if decoding == "beam" else (settings.max_new_tokens, sample)
    options |= {"max_new_tokens": length, "batch_size": settings.batch_size, "description": decoding}
    return generation.generate_answers(model, tokenizer, prompts, **options)


def reward_spread(profile: Profile, policy, reward_model, tokenizer, prompts: list[str]) -> float:
    """The standard deviation of the reward over sampled answers of a policy to the first of the prompts, in logits.

    It is the unit in which the settings of PPO are given (rlhf.reward.scoring.rescale).
    """
    asked = prompts[: profile.eval_prompts]
    answers = decode(profile, policy, tokenizer, asked, "sample")
    texts, ended = [answer.text for answer in answers], [answer.ended for answer in answers]
    return float(scoring.score(reward_model, tokenizer, asked, texts, ended).std())


def draw(profile: Profile, model, tokenizer, prompts: list[str], times: int | None = None) -> list[Answer]:
    """Sampled answers to each prompt, DRAWS unless `times` says how many: round after round over all prompts.

    The first round is what `decode` gives; fewer rounds are the start of more.
    """
    rounds = [dataclasses.replace(profile, seed=profile.seed + 1000 * i) for i in range(times or DRAWS)]
    return [answer for of in rounds for answer in decode(of, model, tokenizer, prompts, "sample")]


def per_prompt(values: Sequence[float]) -> np.ndarray:
    """Mean over the draws: (prompts,) from (DRAWS * prompts,). One number per prompt is what an interval needs."""
    return np.reshape(np.asarray(values, dtype=float), (DRAWS, -1)).mean(axis=0)


def evaluate_answers(
    profile: Profile, name: str, prompts: list[str], references: list[str], answers: dict[str, list[Answer]]
) -> None:
    """Write a model's rows of rouge.csv and behaviour.csv, and its answers by beam search: predictions_<name>.json.

    A metric without suffix is that of beam search, the published decoding; `_sample` marks sampling.
    """
    rouge, behaviour = {}, {}
    for decoding in DECODINGS:
        suffix = "" if decoding == "beam" else "_sample"
        texts = [answer.text for answer in answers[decoding]]
        scores = metrics.rouge_per_example(texts, references)
        rouge |= {f"{metric}{suffix}": values for metric, values in scores.items()}
        behaviour[f"stop_rate{suffix}"] = [answer.ended for answer in answers[decoding]]
        behaviour[f"words{suffix}"] = [len(text.split()) for text in texts]
    if profile.lab:
        behaviour["foreign_pairs_sample"] = foreign_pairs(profile, [answer.text for answer in answers["sample"]])
    rows = metrics.summary_rows(name, behaviour)
    for n in (1, 2):  # diversity of all texts together: one number, so no interval over prompts
        value = metrics.distinct_n([answer.text for answer in answers["sample"]], n)
        rows.loc[len(rows)] = (name, f"distinct_{n}_sample", value, np.nan, np.nan, len(prompts))
    outputs.merge_csv(profile, "rouge.csv", metrics.summary_rows(name, rouge), key="model")
    outputs.merge_csv(profile, "behaviour.csv", rows, key="model")
    predictions = [
        {"prompt": prompt, "reference": reference, "prediction": answer.text}
        for prompt, reference, answer in zip(prompts, references, answers["beam"], strict=True)
    ]
    outputs.write_json(profile, f"predictions_{name}.json", predictions)


def length_rows(profile: Profile, prompts: list[str], texts: dict[str, dict[str, list[str]]], against: str):
    """For each decoding and model, the share of answers with more words than that of `against` to the same prompt.

    texts[decoding][model]: "sample" holds DRAWS rounds over the prompts. Columns: model, against, decoding, longer,
    ci_low, ci_high, words, words_against, wins_by_gold (over `against`; empty for real data), n.
    """
    rows = []
    for decoding, of_model in texts.items():
        asked = prompts * (DRAWS if decoding == "sample" else 1)
        words = {name: np.array([len(text.split()) for text in given]) for name, given in of_model.items()}
        gold = {name: gold_table(profile, asked, given).get("gold") for name, given in of_model.items()}
        for name in (name for name in words if name != against):
            longer = words[name] > words[against]
            longer = per_prompt(longer) if decoding == "sample" else longer
            means = words[name].mean(), words[against].mean()
            won = np.nan if gold[name] is None else metrics.wins(gold[name], gold[against]).mean()
            rows.append((name, against, decoding, *metrics.bootstrap_interval(longer), *means, won, len(prompts)))
    columns = ["longer", "ci_low", "ci_high", "words", "words_against", "wins_by_gold", "n"]
    return pd.DataFrame(rows, columns=["model", "against", "decoding", *columns])


def evaluated_before(profile: Profile) -> set[str]:
    """The models that have rows in rouge.csv."""
    there = (outputs.evaluation_dir(profile) / "rouge.csv").exists()
    return set(outputs.read_csv(profile, "rouge.csv").model) if there else set()
