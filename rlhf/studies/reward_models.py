"""Studies of reward models: how many pairs one needs, whether it must read the prompt, and who may judge a policy.

Each returns its table by the name of its CSV, where the column seed comes first.
"""

from rlhf import metrics, models
from rlhf.evaluation.answers import DRAWS, draw, per_prompt
from rlhf.lab import gold_table
from rlhf.studies.common import SHARES, Proxy, Study

import numpy as np
import pandas as pd

SHOWN_BY_PROMPT = ("off_topic", "wrong_object", "wrong_action")  # kinds of error that only the prompt shows


def data_size(study: Study) -> dict[str, pd.DataFrame]:
    """Accuracy on the test pairs after training on parts of the training pairs.

    Inputs: the checkpoints sft_full_final and reward_model_final. Writes data_size.csv: pairs, share (of the
    training pairs), slice ("all" or a kind of error), accuracy, ci_low, ci_high, n.
    """
    for name, share in SHARES.items():
        study.train_reward_model(name, study.part_of_pairs(share))
    tables = []
    groups = pd.DataFrame({"error": study.error_kinds, "all": "all"})
    for name, share in (SHARES | {"final": 1.0}).items():
        rows = metrics.sliced(Proxy(study, name).correct(), groups).rename(columns={"mean": "accuracy"})
        tables.append(rows.assign(pairs=round(share * len(study.pairs["train"])), share=share))
    return {"data_size.csv": pd.concat(tables)[["pairs", "share", "slice", "accuracy", "ci_low", "ci_high", "n"]]}


def relevance(study: Study) -> dict[str, pd.DataFrame]:
    """Whether PPO makes answers more relevant if its reward model does not read the prompt.

    The run's reward model ("seeing") is compared with a blind one, which was trained without the pairs that only the
    prompt decides. Inputs: the checkpoints sft_full_final, reward_model_final and ppo_scratch_final. Writes
    relevance.csv: reward_model, metric, mean, ci_low, ci_high, n. Metrics: accuracy on all test pairs and on each
    kind of error in SHOWN_BY_PROMPT; of PPO minus SFT, paired by prompt, the reward (in standard deviations of SFT's
    answers), and in the lab the gold score and its relevance (the parts object and activity).
    """
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
            measured |= {"gold": per_prompt(change.gold), "relevance": per_prompt(change.object + change.activity)}
        tables.append(metrics.summary_rows(label, {k: v for k, v in measured.items() if len(v)}))
    return {"relevance.csv": pd.concat(tables).rename(columns={"model": "reward_model"})}


def judge(study: Study) -> dict[str, pd.DataFrame]:
    """Win rates against SFT by a judge: a second reward model, from another seed and pairs that the proxy has not seen.

    The policy ppo_half is trained against the reward model of the first half of the pairs, which is the proxy here; the
    others against the run's own, which has seen the judge's pairs too. Inputs: the checkpoints of all policies of the
    run. Writes judge.csv: model, metric, mean, ci_low, ci_high, n. Metrics: win_by_proxy, win_by_judge, and in the
    lab win_by_gold, proxy_agrees and judge_agrees: of the prompts where the gold score prefers one of the two answers,
    the share where the proxy or the judge prefers the same one.
    """
    study.train_halves()
    scorers = {"proxy": Proxy(study, "half"), "judge": Proxy(study, "judge"), "gold": study.gold}
    before = {by: score(study.sft_answers) for by, score in scorers.items()}
    tables = []
    for name in ("base", "sft_qlora", "ppo", "ppo_scratch", "ppo_half"):
        trained = name != "ppo_half"
        policy = models.load_policy(study.profile, name) if trained else study.train_policy(scorers["proxy"])
        answers = study.answer(policy)
        wins = {by: metrics.wins(score(answers), before[by]) for by, score in scorers.items()}
        measured = {f"win_by_{by}": values for by, values in wins.items() if not np.isnan(values).any()}
        if "win_by_gold" in measured and (differ := wins["gold"] != 0.5).any():
            for by in ("proxy", "judge"):
                measured[f"{by}_agrees"] = 1 - np.abs(wins[by] - wins["gold"])[differ]
        tables.append(metrics.summary_rows(name, measured))
    return {"judge.csv": pd.concat(tables)}
