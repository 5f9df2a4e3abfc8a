"""Whether PPO makes answers more relevant if its reward model does not read the prompt.

The run's reward model ("seeing") is compared with a blind one, which was trained without the pairs that only the prompt
decides: which kinds of error each sees, and what PPO against each changes.

Inputs: the checkpoints sft_full_final, reward_model_final and ppo_scratch_final.
Writes relevance.csv: seed, reward_model, metric, mean, ci_low, ci_high, n. Metrics: accuracy on all test pairs and on
each kind of error that only the prompt shows; of PPO minus SFT, paired by prompt, the reward (in standard deviations of
SFT's answers), the gold score, and its relevance (the parts object and activity).
"""

from rlhf import metrics, models
from rlhf.evaluation.answers import DRAWS, draw, per_prompt
from rlhf.lab import gold_table
from rlhf.studies.common import Proxy, Study

import pandas as pd

FILES = ("relevance.csv",)
SHOWN_BY_PROMPT = ("off_topic", "wrong_object", "wrong_action")  # kinds of error that only the prompt shows


def run(study: Study) -> dict[str, pd.DataFrame]:
    profile, asked = study.profile, study.prompts * DRAWS
    study.train_reward_model("blind", study.pairs["train"], mismatched_first=0.0)
    before = draw(profile, study.sft, study.tokenizer, study.prompts)
    parts = gold_table(profile, asked, [a.text for a in before])
    tables = []
    for label, which in (("blind", "blind"), ("seeing", "final")):
        proxy = Proxy(study, which)
        correct = proxy.correct()
        measured = {"accuracy": correct}
        measured |= {f"accuracy {kind}": correct[study.error_kinds == kind] for kind in SHOWN_BY_PROMPT}
        policy = models.load_policy(profile, "ppo_scratch") if label == "seeing" else study.train_policy(proxy)
        after = draw(profile, policy, study.tokenizer, study.prompts)
        measured["reward"] = per_prompt(proxy(after, asked) - proxy(before, asked))
        if not parts.empty:
            change = gold_table(profile, asked, [a.text for a in after]) - parts
            measured["gold"] = per_prompt(change.gold)
            measured["relevance"] = per_prompt(change.object + change.activity)
        tables.append(metrics.summary_rows(label, {k: v for k, v in measured.items() if len(v)}))
    return {"relevance.csv": pd.concat(tables).rename(columns={"model": "reward_model"})}
