"""A web page on which people rank answers by keyboard: `make collect` serves it by scripts/collect.py.

Whoever opens it says their name first. Each name has a queue and a journal of its own (rlhf.collect.journal).
"""

import html
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from rlhf.collect.agreement import krippendorffs_alpha, pair_labels
from rlhf.collect.items import Item
from rlhf.collect.journal import Journal, journals_in, rater_name
from rlhf.collect.pairs import export
from rlhf.demo import SERVER as DEMO

import gradio as gr
import numpy as np

TITLE = "Which answers are better?"
HOW = """Type the numbers of all answers, the best one first: **2 1 3**. A **T** between two says that they are equally
good: **2 T 1 3**. **Enter** confirms, **S** skips the question, **U** takes your last ranking back. Judge whether an
answer is right, complete and about what was asked, not how long it is."""
# Keys go to the order wherever the focus is. S and U press their buttons; a key that is held down counts once.
KEYS = """<script>
document.addEventListener("keydown", (event) => {
  const order = document.querySelector("#order textarea, #order input"), key = event.key.toLowerCase();
  if (!order || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = {s: "skip", u: "undo"}[key];
  if (button || (key === "enter" && event.repeat)) event.preventDefault();
  if (button && !event.repeat) document.querySelector(`#${button}`).click();
  if (/^([1-9t]|enter|backspace)$/.test(key) && event.target !== order) order.focus();
}, true);
</script>"""
SERVER = DEMO | {"server_name": "127.0.0.1", "head": KEYS}  # the raters of this machine alone


def read_order(text: str, order: Sequence[int]) -> list[int]:
    """The ranks of an item's answers from what a rater typed, `order` being the answers as they were shown.

    Raises ValueError for a sign that is no answer, for one that is missing or named twice, and for a T out of place.
    """
    ranks, rank = [0] * len(order), 0
    signs = "".join(text.lower().split())
    if re.search("^t|tt|t$", signs):
        raise ValueError("T stands between two answers that are equally good, as in 2 T 1.")
    for before, sign in zip(" " + signs, signs, strict=False):
        if sign == "t":
            continue
        if sign not in "123456789"[: len(order)]:
            raise ValueError(f"{sign!r} is none of the answers from 1 to {len(order)}; type their numbers.")
        if ranks[order[int(sign) - 1]]:
            raise ValueError(f"answer {sign} is named twice; name each once.")
        rank += before != "t"
        ranks[order[int(sign) - 1]] = rank
    if missing := [str(place) for place, answer in enumerate(order, 1) if not ranks[answer]]:
        raise ValueError(f"answer {', '.join(missing)} is missing; name every answer, or press S to skip.")
    return ranks


class Desk:
    """The items, and the journals of all who rank them: those in the folder, and of everyone who comes.

    Raises ValueError for a journal that can't be read or is of other items.
    """

    def __init__(self, folder: Path, items: Sequence[Item]):
        self.folder, self.items, self.lock = folder, items, threading.Lock()
        self.journals = journals_in(folder / "raters", items)

    def journal(self, name: str) -> Journal:
        """That of a rater, an empty one for a new rater. Raises ValueError for what is no name."""
        name = rater_name(name)
        if name not in self.journals:
            self.journals[name] = Journal(self.folder / "raters", name, self.items)
        return self.journals[name]

    def agreement(self, name: str) -> str:
        """Krippendorff's alpha of a rater with the others, over what they have ranked too, as text."""
        mine, others = self.journals[name].ranks(), (j.ranks() for n, j in sorted(self.journals.items()) if n != name)
        ranks = {str(i): {key: r for key, r in of.items() if key in mine} for i, of in enumerate((mine, *others))}
        alpha = krippendorffs_alpha(pair_labels(self.items, ranks)[0], ordinal=True)
        shared = len(set().union(*list(ranks.values())[1:]))
        return "" if np.isnan(alpha) else f" · agreement with others {alpha:.2f} (alpha) on {shared} questions"

    def export(self) -> tuple[int, int]:
        with self.lock:
            return export(self.folder, self.items, list(self.journals.values()))


def page(desk: Desk) -> gr.Blocks:
    """The page. Texts of models and raters are shown in text boxes, which show text and never HTML."""
    most = max(len(item.answers) for item in desk.items)

    def told(note: str) -> gr.Textbox:
        return gr.Textbox(note, visible=bool(note))

    def shown(journal: Journal, note: str = "") -> list:
        """The values of all components for the place at which a rater is."""
        progress = f"**{journal.place}** of {len(journal.queue)} done{desk.agreement(journal.name)}"
        if journal.done:
            texts, prompt = [], "All are ranked. Thank you!"
        else:
            item = journal.queue[journal.place]
            prompt, texts = item.prompt, [item.answers[i].text for i in journal.order(journal.place)]
        boxes = [gr.Textbox(text, visible=True) for text in texts] + [gr.Textbox(visible=False)] * (most - len(texts))
        return [str(journal.place), progress, prompt, *boxes, "", told(note)]

    def start(name: str) -> list:
        try:
            with desk.lock:
                journal = desk.journal(name)
                return [journal.name, gr.Column(visible=False), gr.Column(visible=True), *shown(journal)]
        except ValueError as error:  # a message may quote the name, and Gradio takes it for HTML
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def act(action: str):
        def change(name: str, place: str, order: str) -> list:
            try:
                with desk.lock:
                    journal = desk.journal(name)
                    if place != str(journal.place):  # another window, or a key pressed before the page had changed
                        return shown(journal, "The question has changed meanwhile; nothing was saved.")
                    if action == "undo":
                        journal.undo()
                    elif not journal.done:
                        journal.add(read_order(order, journal.order(journal.place)) if action == "rank" else None)
                    return shown(journal)
            except (ValueError, OSError) as error:
                return [*[gr.skip()] * (most + 4), told(f"Not saved: {error}")]

        return change

    def write() -> gr.Textbox:
        pairs, ties = desk.export()
        return told(f"{pairs} pairs are in pairs.jsonl and {ties} ties in ties.jsonl, beside the items.")

    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}")
        with gr.Column() as asking:
            name = gr.Textbox(label="Your name", elem_id="name", autofocus=True, max_lines=1)
            begin = gr.Button("Start", variant="primary")
        with gr.Column(visible=False) as ranking:
            gr.Markdown(HOW)
            # Who rates, and where, is said by the page, not kept by the server: it goes on with another after a kill.
            rater, place = gr.Textbox(visible="hidden"), gr.Textbox(visible="hidden")
            progress = gr.Markdown(elem_id="progress")
            prompt = gr.Textbox(label="Question", elem_id="question", interactive=False)
            answers = []
            for row in range(0, most, 2):
                with gr.Row(equal_height=True):
                    for number in range(row + 1, min(row + 2, most) + 1):
                        box = {"label": f"Answer {number}", "elem_id": f"answer-{number}", "interactive": False}
                        answers.append(gr.Textbox(lines=4, max_lines=20, **box))
            order = gr.Textbox(label="Your order, the best first", elem_id="order", autofocus=True, max_length=40)
            note = gr.Textbox(show_label=False, container=False, elem_id="note", visible=False)
            with gr.Row():
                confirm = gr.Button("Confirm (Enter)", elem_id="confirm", variant="primary")
                skip, undo = gr.Button("Skip (S)", elem_id="skip"), gr.Button("Undo (U)", elem_id="undo")
                save = gr.Button("Export", elem_id="export")
        views = [place, progress, prompt, *answers, order, note]
        opening = {"inputs": name, "outputs": [rater, asking, ranking, *views], "show_progress": "hidden"}
        gr.on([begin.click, name.submit], start, **opening)
        said = {"inputs": [rater, place, order], "outputs": views, "show_progress": "hidden"}
        gr.on([confirm.click, order.submit], act("rank"), **said)
        skip.click(act("skip"), **said)
        undo.click(act("undo"), **said)
        save.click(write, None, note, show_progress="hidden")
    return blocks.queue(api_open=False)
