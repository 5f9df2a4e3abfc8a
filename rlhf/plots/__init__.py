"""Every plot of the case study, in one style, each drawn from the CSV (a DataFrame) that it shows, and two diagrams.

Each function returns a matplotlib Figure: as the last value of a cell a notebook shows it once, and
`outputs.write_figure` writes it. The columns that its frames need stand in the line above it. An interval is the 95 %
one of the CSV's ci_low and ci_high. A model has the same colour and marker in every figure. ValueError names the figure
where a frame is empty or lacks a column.
"""

# ruff: noqa: F401 (all names are imported to be used as plots.name)
from rlhf.plots.benchmarks import benchmark_ratios, growth
from rlhf.plots.beyond import method_answers, method_frontier, method_logprobs
from rlhf.plots.comparison import (
    gold_parts,
    model_metrics,
    paired,
    published_beside,
    reward_against_gold,
    reward_probes,
)
from rlhf.plots.diagrams import lora_block, ppo_data_flow
from rlhf.plots.ensembles import accuracy_and_gain, ensemble_curves, laws
from rlhf.plots.ppo import answer_tokens, clipped_objective, kl_estimators, monitored, ppo_curves
from rlhf.plots.reward import accuracy_slices, calibration, error_kinds, length_difference, margins, reward_curve
from rlhf.plots.sft import cost_bars, learning_rates, loss_curves, stop_and_length, token_lengths
from rlhf.plots.studies import best_of_n, data_size, frontier, judges, labels, overoptimisation, relevance
from rlhf.plots.troubleshooting import alarms, beside_healthy
