"""How many pairs a reward model needs: its accuracy on the test pairs after training on parts of the training pairs.

Inputs: the checkpoints sft_full_final and reward_model_final.
Writes data_size.csv: seed, pairs, share (of the training pairs), slice ("all" or a kind of error), accuracy, ci_low,
ci_high, n.
"""

from rlhf import metrics
from rlhf.studies.common import SHARES, Proxy, Study

import pandas as pd

FILES = ("data_size.csv",)


def run(study: Study) -> dict[str, pd.DataFrame]:
    for name, share in SHARES.items():
        study.train_reward_model(name, study.part_of_pairs(share))
    tables = []
    for name, share in (SHARES | {"final": 1.0}).items():
        groups = pd.DataFrame({"error": study.error_kinds, "all": "all"})
        rows = metrics.sliced(Proxy(study, name).correct(), groups).rename(columns={"mean": "accuracy"})
        tables.append(rows.assign(pairs=round(share * len(study.pairs["train"])), share=share))
    return {"data_size.csv": pd.concat(tables)[["pairs", "share", "slice", "accuracy", "ci_low", "ci_high", "n"]]}
