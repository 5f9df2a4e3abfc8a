"""How soon the demo page answers: seconds to the first text and to the end, for one visitor and for ten at once.

python benchmarks/demo.py [--repetitions 10]    # the checkpoints of this machine's run, of the profile RLHF_PROFILE
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from rlhf import demo

import torch
from gradio_client import Client

VISITORS = 10


def measure(client: Client, prompt: str, temperature: float, length: int) -> tuple[float, float]:
    """Seconds from sending a prompt to the first text of any model, and to the last reward."""
    started, first = time.perf_counter(), None
    job = client.submit(prompt, temperature, length, api_name="/answer")
    for shown in job:
        if first is None and any(shown):
            first = time.perf_counter() - started
    assert all(job.result()[1::2]), f"not all were answered: {job.result()}"
    return first, time.perf_counter() - started


def show(label: str, seconds: list[float]) -> None:
    print(f"{label}: median {statistics.median(seconds):.2f} s, from {min(seconds):.2f} to {max(seconds):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10, help="prompts of the lone visitor")
    options = parser.parse_args()
    answerer, prompts = demo.load()
    page = demo.page(answerer, prompts)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.SERVER)
    decoding = answerer.profile.decoding
    settings = (decoding.temperature, decoding.max_new_tokens)
    client = Client(url, verbose=False)
    print(f"profile {answerer.profile.name}, {torch.get_num_threads()} CPU threads, at most {settings[1]} tokens")
    alone = [measure(client, prompts[i % len(prompts)], *settings) for i in range(options.repetitions + 1)][1:]
    show("alone, first text", [first for first, _ in alone])
    show("alone, all three answers with rewards", [whole for _, whole in alone])
    with ThreadPoolExecutor(VISITORS) as pool:
        crowd = list(pool.map(lambda i: measure(client, prompts[i % len(prompts)], *settings), range(VISITORS)))
    show(f"{VISITORS} at once, first text", [first for first, _ in crowd])
    show(f"{VISITORS} at once, all three answers with rewards", [whole for _, whole in crowd])
    page.close()


if __name__ == "__main__":
    main()
