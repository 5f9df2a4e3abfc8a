"""The page on which people rank answers: in a real browser, by keyboard alone, two raters at once."""

import json
import runpy
import shutil
from unittest.mock import Mock

from rlhf import outputs, rating
from rlhf.collect.items import load, save
from rlhf.collect.raters import LabRater

import psutil
import pytest
from filelock import FileLock
from playwright.sync_api import expect
from test_collect import lab_items

EVIL = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"


# What is typed


@pytest.mark.parametrize(
    ("text", "ranks"),
    [("1234", [2, 4, 1, 3]), ("2t1 3 4", [1, 3, 1, 2]), ("4T3t2t1", [1, 1, 1, 1]), (" 3 1\n2 t 4", [3, 3, 2, 1])],
)
def test_order_is_read_as_ranks_of_the_answers_and_not_of_their_places(text, ranks):
    assert rating.read_order(text, [2, 0, 3, 1]) == ranks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "answer 1, 2, 3 is missing"),
        ("13", "answer 2 is missing"),
        ("1231", "answer 1 is named twice"),
        ("1234", "'4' is none of the answers from 1 to 3"),
        ("0123", "'0' is none"),
        ("12²", "'²' is none"),
        ("t123", "T stands between two"),
        ("1tt23", "T stands between two"),
        ("123t", "T stands between two"),
        ("1t", "T stands between two"),
    ],
)
def test_order_that_is_none_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        rating.read_order(text, [0, 1, 2])


def test_agreement_is_with_those_who_ranked_the_same(tmp_path):
    desk = rating.Desk(tmp_path, lab_items(9))
    anna, ben = desk.journal("Anna"), desk.journal("ben")
    anna.add([1, 2, 3, 4])
    assert desk.agreement("anna") == ""
    ben.ask(LabRater(0))
    anna.undo()
    for _ in range(3):
        anna.add(ben.rank(anna.queue[anna.place]))
    assert desk.agreement("anna") == " · agreement with others 1.00 (alpha) on 3 questions"


def test_script_writes_what_is_ranked_and_samples_nothing(profile, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    folder, items = outputs.collect_dir(profile), lab_items(4)
    with pytest.raises(FileNotFoundError, match=r"items\.jsonl is missing; run make collect"):
        load(folder / "items.jsonl")
    save(folder / "items.jsonl", items)
    rating.Desk(folder, items).journal("anna").add([2, 1, 1, 3])
    monkeypatch.setattr("sys.argv", ["collect.py", "--export"])
    assert runpy.run_path(str(outputs.ROOT / "scripts" / "collect.py"))["main"]() == 0
    assert "5 pairs and 1 ties are in outputs/collect/smoke" in capsys.readouterr().out
    assert len((folder / "pairs.jsonl").read_text().splitlines()) == 5


def test_script_samples_once_for_all_who_come_and_says_when_the_folder_is_in_use(finished, monkeypatch, capsys):
    served = []
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    monkeypatch.setattr(rating, "page", lambda desk: served.append(desk) or Mock())
    main = runpy.run_path(str(outputs.ROOT / "scripts" / "collect.py"))["main"]
    try:
        for count in ("3", "2"):
            monkeypatch.setattr("sys.argv", ["collect.py", "--prompts", "3", "--answers", count])
            assert main() == 0
        first, second = ([len(item.answers) for item in desk.items] for desk in served)
        assert first == second == [3, 3, 3] and served[0].items == served[1].items
        assert "3 items of sft_full_final@" in capsys.readouterr().out
        with FileLock(served[0].folder / ".lock"):
            assert main() == 2
        assert "is in use: the page is served already" in capsys.readouterr().err
    finally:
        shutil.rmtree(outputs.collect_dir(finished))


# In a browser


@pytest.fixture
def desk(tmp_path):
    items = lab_items(12)
    items[0] = items[0]._replace(prompt=EVIL, answers=(items[0].answers[0], items[0].answers[1]._replace(text=EVIL)))
    return rating.Desk(tmp_path, items)


@pytest.fixture
def visit(chromium, desk):
    """Opens the page as another visitor, who says a name by keyboard; what it asks of another host fails the test."""
    contexts, foreign = [], []
    app = rating.page(desk)
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, **rating.SERVER)

    def start(name: str):
        contexts.append(chromium.new_context(viewport={"width": 1100, "height": 900}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: foreign.append(request.url) if "//127.0.0.1" not in request.url else None)
        page.goto(url)
        expect(page.locator("#name input, #name textarea")).to_be_focused(timeout=20_000)
        page.keyboard.type(name)
        page.keyboard.press("Enter")
        return page

    yield start
    for context in contexts:
        context.close()
    app.close()
    assert [url for url in foreign if not url.startswith(("data:", "blob:"))] == []


def box(page, name: str):
    return page.locator(f"#{name} textarea, #{name} input")


def at(page, journal, place: int) -> None:
    """Wait until the page shows a place of the queue, and check that it shows it as it should."""
    expect(page.locator("#progress")).to_contain_text(f"{place} of {len(journal.queue)} done", timeout=20_000)
    item = journal.queue[place]
    expect(box(page, "question")).to_have_value(item.prompt)
    for number, answer in enumerate(journal.order(place), 1):
        expect(box(page, f"answer-{number}")).to_have_value(item.answers[answer].text)
    expect(page.locator("[id^=answer-]")).to_have_count(len(item.answers))
    assert "sft_full" not in page.content()


def best_first(journal) -> str:
    return "".join(str(n) for n in range(1, len(journal.order(journal.place)) + 1))


def test_two_raters_rank_by_keyboard_at_once_and_go_on_from_what_is_on_the_disk(desk, visit):
    pages = {name: visit(name) for name in ("Anna", "ben")}
    for name, page in pages.items():
        at(page, desk.journal(name), 0)
    journals = dict(desk.journals)
    desk.journal("third").ask(Mock(rank=lambda item: [*range(1, len(item.answers) + 1)]))
    for place in range(4):
        for name, page in pages.items():
            page.keyboard.type(best_first(journals[name.lower()]))
            page.keyboard.press("Enter")
        for name, page in pages.items():
            at(page, journals[name.lower()], place + 1)
    anna, page = journals["anna"], pages["Anna"]
    page.keyboard.press("s")
    at(page, anna, 5)
    page.keyboard.press("u")
    at(page, anna, 4)
    page.keyboard.type("2t1" + best_first(anna)[2:])
    page.keyboard.press("Enter")
    at(page, anna, 5)
    order, said = anna.order(4), anna.said[4].ranks
    assert said[order[0]] == said[order[1]] == 1 and desk.journals["ben"].place == 4
    expect(page.locator("#progress")).to_contain_text("agreement with others")
    page.locator("#export").click()
    expect(box(page, "note")).to_have_value(
        f"{desk.export()[0]} pairs are in pairs.jsonl and {desk.export()[1]} ties in ties.jsonl, beside the items.",
        timeout=20_000,
    )
    rows = [json.loads(line) for line in (desk.folder / "pairs.jsonl").open()]
    assert {row["rater"] for row in rows} == {"anna", "ben", "third"}
    desk.journals.clear()  # as of a server that was killed: what is left is on the disk
    at(visit("anna"), anna, 5)


def test_faulty_order_and_name_are_said_and_nothing_is_saved(desk, visit):
    page = visit("../anna")
    expect(page.get_by_test_id("toast-body")).to_contain_text("is no name of a rater", timeout=20_000)
    box(page, "name").fill("anna")
    page.keyboard.press("Enter")
    anna = desk.journal("anna")
    at(page, anna, 0)
    page.keyboard.type("11")
    page.keyboard.press("Enter")
    expect(box(page, "note")).to_have_value("Not saved: answer 1 is named twice; name each once.", timeout=20_000)
    anna.add(None)  # in another window
    page.keyboard.press("s")
    expect(box(page, "note")).to_have_value("The question has changed meanwhile; nothing was saved.", timeout=20_000)
    at(page, anna, 1)
    assert anna.place == 1 and not list(desk.folder.parent.glob("anna*"))


def test_texts_are_shown_as_text_and_fewer_answers_in_fewer_boxes(desk, visit):
    page = visit("anna")
    anna = desk.journal("anna")
    at(page, anna, 0)
    for place in range(len(anna.queue) - 1):
        page.locator("#answer-1").click()  # the keys need no focus
        page.keyboard.press("s")
        at(page, anna, place + 1)
    page.keyboard.press("s")
    expect(box(page, "question")).to_have_value("All are ranked. Thank you!", timeout=20_000)
    page.keyboard.press("s")
    page.wait_for_timeout(500)
    assert anna.done and page.evaluate("window.hit") is None


def test_page_of_raters_listens_on_this_machine_alone_whatever_the_environment_says(desk, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    app = rating.page(desk)
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, **rating.SERVER)
    port = int(url.rstrip("/").split(":")[-1])
    listening = [it.laddr for it in psutil.Process().net_connections("tcp") if it.status == psutil.CONN_LISTEN]
    app.close()
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]
