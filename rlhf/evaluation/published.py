"""The published models of nabeelshan/rlhf-gpt2-pipeline: their results, and their checkpoints evaluated here."""

from collections.abc import Callable
from pathlib import Path

from rlhf import download, metrics, outputs, runtime
from rlhf.evaluation.answers import DECODINGS, decode
from rlhf.generation import context_of, trunk_of
from rlhf.profiles import Profile

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

PUBLISHED_TEMPLATE = "\n\nHuman: {prompt}\n\nAssistant: {response}"  # that the reward model was trained on, without EOS
# GPT-2 (124M) on 1,658 test prompts; rewards are of the first 200 of them.
_RESULTS = {
    "base": {"rouge1": 0.1793, "rouge2": 0.0492, "rougeL": 0.1444, "reward": -0.455},
    "sft_full": {"rouge1": 0.3534, "rouge2": 0.1487, "rougeL": 0.2622, "reward": 1.545},
    "sft_qlora": {"rouge1": 0.3117, "rouge2": 0.1260, "rougeL": 0.2405},
    "ppo": {"rouge1": 0.3365, "rouge2": 0.1390, "rougeL": 0.2515, "reward": 2.375},
}
_ROWS = [(model, metric, value) for model, of in _RESULTS.items() for metric, value in of.items()]
PUBLISHED = pd.DataFrame(_ROWS, columns=["model", "metric", "value"])


def load_published_policy(folder: Path, stage: str):
    """A policy and its tokenizer out of a folder laid out as a published repository: <folder>/<stage>/.

    Its tokenizer may pad with EOS, as published ones do; for decoding that is no harm. Raises FileNotFoundError where
    the stage is missing, and ValueError for a folder that is not loaded (download.fault_of).
    """
    path = _stage(folder, stage)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    return model.to(runtime.device()).eval(), tokenizer


def load_published_reward(folder: Path, base: str) -> Callable[[list[str], list[str], list[bool]], np.ndarray]:
    """The reward function of a published repository's adapter, <folder>/reward_model_final/, on the base model `base`.

    The adapter brings its score head. It scores texts in PUBLISHED_TEMPLATE, on which it was trained: on other texts
    its numbers mean little. There is no EOS in them, so whether a response has ended is not read. Texts are scored one
    by one and cut to the context from the end, as published. Raises FileNotFoundError where the adapter is missing.
    """
    path = _stage(folder, "reward_model_final")
    tokenizer = AutoTokenizer.from_pretrained(path if (path / "tokenizer_config.json").exists() else base)
    with runtime.isolated_generator(0):  # a head and adapters are drawn before the trained ones replace them
        options = {"num_labels": 1, "dtype": torch.float32, "use_safetensors": True}
        trunk = AutoModelForSequenceClassification.from_pretrained(base, **options)
        model = PeftModel.from_pretrained(trunk, path).merge_and_unload().to(runtime.device()).eval()
    context = context_of(model)

    @torch.no_grad()
    def reward(prompts: list[str], responses: list[str], ended: list[bool]) -> np.ndarray:
        scores = []
        for prompt, response, _ in zip(prompts, responses, ended, strict=True):
            text = PUBLISHED_TEMPLATE.format(prompt=prompt, response=response)
            ids = tokenizer(text, truncation=True, max_length=context, return_tensors="pt")["input_ids"]
            hidden = trunk_of(model)(input_ids=ids.to(model.device)).last_hidden_state
            scores.append(model.score(hidden[0, -1]).item())  # by hand: with pad = EOS, the class would look for it
        return np.array(scores)

    return reward


def _stage(folder: Path, stage: str) -> Path:
    path = Path(folder) / stage
    if not path.is_dir():
        found = ", ".join(sorted(p.name for p in Path(folder).iterdir() if p.is_dir())) or "no folder"
        raise FileNotFoundError(f"{outputs.show(folder)} has no {stage} (found: {found}); give one that has it.")
    if fault := download.fault_of(path):
        raise ValueError(f"{outputs.show(folder)}: {stage} {fault}")
    return path


def evaluate_published(profile: Profile, folder: Path, prompts: list[str], references: list[str]) -> pd.DataFrame:
    """ROUGE (published decoding) and reward (sampled) of the policies of a published repository, by its reward model.

    folder: laid out as the repository, with the adapter's base being the profile's model. Returns the columns of
    metrics.summary_rows. Raises FileNotFoundError for a stage that is missing.
    """
    reward = load_published_reward(folder, profile.model)
    tables = []
    for stage in ("sft_full_final", "ppo_aligned_final"):
        model, tokenizer = load_published_policy(folder, stage)
        answers = {name: decode(profile, model, tokenizer, prompts, name) for name in DECODINGS}
        measured = metrics.rouge_per_example([a.text for a in answers["beam"]], references)
        sampled = answers["sample"]
        measured["reward"] = reward(prompts, [a.text for a in sampled], [a.ended for a in sampled])
        tables.append(metrics.summary_rows(f"published {stage}", measured))
    return pd.concat(tables)
