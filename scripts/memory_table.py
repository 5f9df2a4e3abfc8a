"""Reckon the memory on each GPU: the tables of docs/scaling.md, as Markdown.

Nothing is measured. Every number is that of its rule; the tests hold the tables of the page to them.
"""

import sys

GPUS = 8
SHARE = 0.8  # of a GPU's memory is for weights, gradients and Adam's moments; activations take the rest
# Bytes in float32: of a weight, its gradient, Adam's two moments; of the buckets in which DDP sums up gradients.
WEIGHT, GRADIENT, ADAM, BUCKET = 4, 4, 8, 4
FOUR_BIT = 0.6  # of a weight in NF4 with its scales; embeddings, which stay in float32, are not counted
TRAINED = WEIGHT + GRADIENT + ADAM
ADAPTER = 0.01 * TRAINED  # of one weight in a hundred
PPO = 2 * TRAINED + 2 * WEIGHT  # policy and value model are trained, reference and reward model are not
SIZES = {"124M": 0.124e9, "1.5B": 1.5e9, "7B": 7e9, "13B": 13e9}
# Bytes a weight on each GPU, while it trains and while it loads: the project loads a model whole before it is split.
WAYS = {
    "full fine-tuning, one GPU": (TRAINED, WEIGHT),
    "full fine-tuning, `ddp.yaml`": (TRAINED + BUCKET, WEIGHT),
    "full fine-tuning, `zero2.yaml`": (WEIGHT + (GRADIENT + ADAM) / GPUS, WEIGHT),
    "full fine-tuning, `fsdp2.yaml` or `zero3.yaml`": (TRAINED / GPUS, WEIGHT),
    "QLoRA, one GPU or `ddp.yaml`": (FOUR_BIT + ADAPTER, WEIGHT),
    "reward model on a whole policy": (WEIGHT + ADAPTER, WEIGHT),
    "PPO by TRL, one GPU": (PPO, 4 * WEIGHT),
    "PPO by TRL, `ddp.yaml`": (PPO + 2 * BUCKET, 4 * WEIGHT),
    "PPO by TRL, `zero2.yaml`": (4 * WEIGHT + 2 * (GRADIENT + ADAM) / GPUS, 4 * WEIGHT),
    "PPO by TRL, `zero3.yaml`": (PPO / GPUS, 4 * WEIGHT),
    "PPO by TRL on adapters of one 4-bit base": (FOUR_BIT + 2 * ADAPTER, WEIGHT),
    "PPO by OpenRLHF, ZeRO-3 and vLLM": (PPO / GPUS + 2, 2),  # with the sampler's copy in bfloat16
}
SHAPES = {"GPT-2, 124M": (12, 768, 50257), "GPT-2 XL, 1.5B": (48, 1600, 50257), "Mistral, 7B": (32, 4096, 32000)}


def memory_table() -> str:
    """A row for each way: bytes a weight, GB for some sizes, and the largest model that fits."""
    rows = []
    for way, (training, loading) in WAYS.items():
        most = max(training, loading)
        sizes = [f"{weights * most / 1e9:.3g}" for weights in SIZES.values()]
        largest = [f"{SHARE * memory / most:.2g}B" for memory in (24, 80)]
        rows.append([way, f"{training:.3g}", f"{loading:.3g}", *sizes, *largest])
    return _markdown(["on each of 8 GPUs", "training", "loading", *SIZES, "24 GB holds", "80 GB holds"], rows)


def activation_table() -> str:
    """A row for each model: GB of one text of 1,024 tokens in 16 bit with a fused kernel, and of its logits."""
    rows = [
        [name, f"{34 * 1024 * layers * width / 1e9:.2g}", f"{8 * 1024 * vocabulary / 1e9:.2g}"]
        for name, (layers, width, vocabulary) in SHAPES.items()
    ]
    return _markdown(["a text of 1,024 tokens", "activations", "logits and their gradient"], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def main() -> int:
    print(memory_table(), activation_table(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
