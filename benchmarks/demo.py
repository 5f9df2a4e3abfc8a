"""How soon the demo page answers: seconds to the first text and to the end, for one visitor and for ten at once.

python benchmarks/demo.py [--repetitions 10]    # the checkpoints of this machine's run, of the profile RLHF_PROFILE
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from rlhf import demo

import pandas as pd
import torch
from gradio_client import Client

VISITORS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10, help="prompts of the lone visitor")
    options = parser.parse_args()
    answerer, prompts = demo.load()
    page, decoding = demo.page(answerer, prompts), answerer.profile.decoding
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.SERVER)
    client, longest = Client(url, verbose=False), decoding.max_new_tokens
    print(f"profile {answerer.profile.name}, {torch.get_num_threads()} CPU threads, at most {longest} tokens")

    def seconds(prompt: str) -> tuple[float, float]:
        """From sending a prompt to the first text of any model, and to the last reward."""
        started, first = time.perf_counter(), None
        job = client.submit(prompt, decoding.temperature, longest, api_name="/answer")
        for shown in job:
            if first is None and any(shown):
                first = time.perf_counter() - started
        assert all(job.result()[1::2]), f"not all were answered: {job.result()}"
        return first, time.perf_counter() - started

    alone = [seconds(prompt) for prompt in islice(cycle(prompts), options.repetitions + 1)][1:]
    with ThreadPoolExecutor(VISITORS) as pool:
        crowd = list(pool.map(seconds, islice(cycle(prompts), VISITORS)))
    for who, measured in (("alone", alone), (f"{VISITORS} at once", crowd)):
        table = pd.DataFrame(measured, columns=["first text", "all three answers with rewards"])
        print(f"{who}, in seconds:\n{table.agg(['median', 'min', 'max']).round(2)}")
    page.close()


if __name__ == "__main__":
    main()
