"""Print the README's results table from the committed CSVs of the lab profile, or check that it is not stale.

python scripts/results_table.py           # rewrite the part of README.md between the markers
python scripts/results_table.py --check   # exit with 1 if that part is not what the CSVs say
"""

import argparse
import itertools
import sys
from pathlib import Path

from rlhf import outputs
from rlhf.evaluation import MODELS, PUBLISHED
from rlhf.profiles import LAB

import pandas as pd

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
LABELS = {
    "base": "base",
    "sft_qlora": "QLoRA SFT",
    "sft_full": "full SFT",
    "ppo": "PPO (TRL)",
    "ppo_scratch": "PPO (from scratch)",
}
# Column title, file, metric, digits.
COLUMNS = (
    ("ROUGE-1", "rouge.csv", "rouge1", 3),
    ("ROUGE-2", "rouge.csv", "rouge2", 3),
    ("ROUGE-L", "rouge.csv", "rougeL", 3),
    ("ends by itself", "behaviour.csv", "stop_rate_sample", 2),
    ("reward", "reward.csv", "reward", 2),
    ("gold score", "gold.csv", "gold", 2),
    ("KL from SFT", "kl.csv", "kl_from_sft", 1),
)


def _cell(frame: pd.DataFrame, model: str, metric: str, digits: int) -> str:
    row = frame[(frame.model == model) & (frame.metric == metric)].iloc[0]
    return f"{row['mean']:.{digits}f} [{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def results() -> str:
    """The text between the markers: our table, the paired differences, the reward model, the published table."""
    files = {name: outputs.read_csv(LAB, name) for _, name, _, _ in COLUMNS}
    ours = [
        [LABELS[model], *(_cell(files[name], model, metric, digits) for _, name, metric, digits in COLUMNS)]
        for model in MODELS
    ]
    n = files["reward.csv"].n.iloc[0]
    run = outputs.read_json(LAB, "run.json")
    minutes, pretraining = sum(run["notebooks"].values()) / 60, run["pretraining"]["seconds"] / 60
    lines = [
        f"Lab profile, {n} test prompts, mean [95 % bootstrap interval]. ROUGE by the published decoding, the rest on "
        f"sampled answers; reward in logits of this run's reward model, KL in nats per answer.",
        "",
        f"The run took {minutes:.1f} minutes on {run['device']}, {pretraining:.1f} of them for pretraining the base "
        f"model; the largest notebook took {max(run['peak_memory_mb'].values()):,} MB of memory.",
        "",
        *_table(["model", *(title for title, *_ in COLUMNS)], ours),
        "",
        "PPO minus full SFT, paired by prompt:",
        "",
    ]
    paired = outputs.read_csv(LAB, "paired.csv")
    for row in paired[paired.model.str.startswith("ppo") & (paired.seed == LAB.seed)].itertuples():
        verdict = "up" if row.ci_low > 0 else "down" if row.ci_high < 0 else "not told apart from zero"
        difference = f"{row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]"
        lines.append(f"- {LABELS[row.model]}, {row.metric}: {difference}, {verdict}")
    reward = outputs.read_csv(LAB, "reward_model.csv").set_index("metric").value
    lines += [
        "",
        f"Reward model on {reward.test_pairs:.0f} test pairs: accuracy {reward.accuracy:.3f} "
        f"[{reward.accuracy_ci_low:.3f}, {reward.accuracy_ci_high:.3f}]; the rule that the longer answer is better "
        f"reaches {reward.length_rule:.3f}, untrained heads from {reward.untrained_head_min:.2f} to "
        f"{reward.untrained_head_max:.2f}.",
        "",
        *_seeds(),
        "Published by `nabeelshan/rlhf-gpt2-pipeline` (GPT-2, Dahoas data, 1,658 test prompts, rewards on 200 of them; "
        "another model and other data than the lab's, so only the order of the rows can be compared):",
        "",
    ]
    published = PUBLISHED.pivot(index="model", columns="metric", values="value")
    rows = [
        [LABELS[m], *("" if pd.isna(published.loc[m, c]) else f"{published.loc[m, c]:.3f}" for c in published.columns)]
        for m in MODELS
        if m in published.index
    ]
    titles = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "reward": "reward"}
    return "\n".join([*lines, *_table(["model", *(titles[c] for c in published.columns)], rows)])


def _seeds() -> list[str]:
    """What `make seeds` found, where it has run: one row per seed."""
    if not (outputs.evaluation_dir(LAB) / "seeds.csv").exists():
        return []
    means, paired = outputs.read_csv(LAB, "seeds.csv"), outputs.read_csv(LAB, "paired.csv")
    accuracy = means[means.model == "reward_model"].set_index("seed")
    shown = list(itertools.product(("ppo", "ppo_scratch"), ("reward", "gold")))
    rows = []
    for seed, model in accuracy.iterrows():
        row = [str(seed), f"{model['mean']:.3f} [{model.ci_low:.3f}, {model.ci_high:.3f}]"]
        for name, metric in shown:
            ours = paired[(paired.seed == seed) & (paired.model == name) & (paired.metric == metric)].iloc[0]
            row.append(f"{ours.difference:+.2f} [{ours.ci_low:+.2f}, {ours.ci_high:+.2f}]")
        rows.append(row)
    titles = [f"{LABELS[name]}, {metric}" for name, metric in shown]
    return [
        "The whole run with other seeds (`make seeds`), PPO minus full SFT, paired by prompt:",
        "",
        *_table(["seed", "reward model accuracy", *titles], rows),
        "",
    ]


def replaced(text: str) -> str:
    """README text with the part between the markers made anew. Raises ValueError where a marker is missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md needs the markers {BEGIN} and {END}, once each.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{results()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the table is stale")
    arguments = parser.parse_args()
    path: Path = outputs.ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if replaced(text) == text:
        print("README.md: the results table is what the CSVs say")
        return 0
    if arguments.check:
        print("README.md: the results table is stale; run `make results`")
        return 1
    outputs.write_text(path, replaced(text))
    print("README.md: results table rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
