"""How soon the demo page answers: seconds to the first text and to the end, for one visitor and for ten at once.

python benchmarks/demo.py [--repetitions 10]    # the checkpoints of this machine's run, of the profile RLHF_PROFILE
python benchmarks/demo.py --load 1000           # so many prompts in a row, then 50 at once: failures and memory
"""

import argparse
import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from rlhf import demo

import pandas as pd
import psutil
import torch
from gradio_client import Client

VISITORS, CROWD = 10, 50


def megabytes() -> float:
    """The memory of this process, in which both the page and its visitors are."""
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10, help="prompts of the lone visitor")
    parser.add_argument("--load", type=int, default=0, metavar="PROMPTS", help="measure the memory instead")
    options = parser.parse_args()
    demo.A_MINUTE = math.inf
    answerer, prompts = demo.load()
    page, decoding = demo.page(answerer, prompts), answerer.profile.decoding
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.SERVER)
    client = Client(url, verbose=False, max_workers=CROWD, httpx_kwargs={"timeout": 60})
    longest = decoding.max_new_tokens
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

    def load(count: int) -> None:
        """Ask `count` prompts in a row and CROWD at once, and say what became of the memory after the first tenth."""
        memory, started = {}, time.perf_counter()
        for number, prompt in enumerate(islice(cycle(prompts), count), start=1):
            seconds(prompt)
            if number in (max(1, count // 10), count):
                memory[f"{number} in a row"] = megabytes()
        took = time.perf_counter() - started
        with ThreadPoolExecutor(CROWD) as pool:
            list(pool.map(seconds, islice(cycle(prompts), CROWD)))
        memory[f"{CROWD} at once"] = megabytes()
        print(f"{count} prompts in {took:.0f} s and {CROWD} at once, all answered; memory in MB after")
        print(pd.Series(memory).round().to_string())

    if options.load:
        load(options.load)
        page.close()
        return

    alone = [seconds(prompt) for prompt in islice(cycle(prompts), options.repetitions + 1)][1:]
    with ThreadPoolExecutor(VISITORS) as pool:
        crowd = list(pool.map(seconds, islice(cycle(prompts), VISITORS)))
    for who, measured in (("alone", alone), (f"{VISITORS} at once", crowd)):
        table = pd.DataFrame(measured, columns=["first text", "all three answers with rewards"])
        print(f"{who}, in seconds:\n{table.agg(['median', 'min', 'max']).round(2)}")
    page.close()


if __name__ == "__main__":
    main()
