"""Win rates against SFT by a judge: a second reward model, from another seed and the pairs that the proxy has not seen.

The policy ppo_half is trained against the reward model of the first half of the pairs, which is the proxy here. The
other policies were trained against the run's own, which has seen the judge's pairs too.

Inputs: the checkpoints of all policies of the run.
Writes judge.csv: seed, model, metric, mean, ci_low, ci_high, n. Metrics: win_by_proxy, win_by_judge, win_by_gold, and,
of the prompts where the gold score prefers one of the two answers, the share where the proxy or the judge prefers the
same one: proxy_agrees, judge_agrees. Those with the gold score are there for the lab alone.
"""

from rlhf import metrics, models
from rlhf.studies.common import Proxy, Study

import numpy as np
import pandas as pd

FILES = ("judge.csv",)


def run(study: Study) -> dict[str, pd.DataFrame]:
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
