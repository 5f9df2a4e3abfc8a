"""SST-2: rows that can't be used are counted and shown, and its tokeniser is undone."""

from rlhf import sst2
from rlhf.sst2 import detokenise, load, own_sentences

import pyarrow
import pyarrow.parquet
import pytest

GOOD = "a stirring film\t1\none long string of cliches\t0\n"


def write(folder, train: str = GOOD, dev: str = "it 's dull\t0\n", name: str = "dev.tsv"):
    (folder / "train.tsv").write_bytes(train.encode())
    (folder / name).write_bytes(dev.encode())
    return str(folder)


def test_sentences_and_labels_are_read_as_people_write_them(tmp_path):
    splits = load(write(tmp_path, dev="it 's dull , and it wo n't end\t0\n"))
    assert list(splits["train"]) == [
        {"sentence": "a stirring film", "tokenised": "a stirring film", "label": 1},
        {"sentence": "one long string of cliches", "tokenised": "one long string of cliches", "label": 0},
    ]
    expected = {"sentence": "it's dull, and it won't end", "tokenised": "it 's dull , and it wo n't end", "label": 0}
    assert list(splits["validation"]) == [expected]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("no tab here", "without a tab"),
        ("no label\t", "without a label"),
        ("two\t2", "with a label other than 0 and 1"),
        ("twice\t1\t0", "with a label other than 0 and 1"),
        ("  \t1", "with an empty sentence"),
        ("a stirring  film\t0", "seen before"),
    ],
)
def test_row_that_cannot_be_used_is_counted_and_shown(tmp_path, capsys, row, fault):
    splits = load(write(tmp_path, train=GOOD + row + "\n" + "fine\t1\n"))
    assert [example["sentence"] for example in splits["train"]][-1] == "fine" and len(splits["train"]) == 3
    assert f"train: 3 sentences; dropped: 1 {fault} (train.tsv, line 3: " in capsys.readouterr().out


def test_sentence_of_both_splits_is_held_out(tmp_path):
    splits = load(write(tmp_path, dev="a stirring film\t1\n"))
    assert [row["sentence"] for row in splits["train"]] == ["one long string of cliches"]


def test_header_carriage_returns_and_the_other_name_of_the_split_are_read(tmp_path):
    folder = write(tmp_path, "sentence\tlabel\r\n" + GOOD.replace("\n", "\r\n"), name="validation.tsv")
    assert len(load(folder)["train"]) == 2


def test_files_of_the_hub_are_read(tmp_path):
    for split, rows in (("train", [("fun ", 1), ("dull ", 0)]), ("validation", [("warm ", 1)]), ("test", [("x ", -1)])):
        (tmp_path / "data").mkdir(exist_ok=True)
        sentences, labels = zip(*rows, strict=True)
        table = pyarrow.table({"idx": range(len(rows)), "sentence": sentences, "label": labels})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = load(str(tmp_path))
    assert [row["sentence"] for row in splits["train"]] == ["fun", "dull"] and set(splits) == {"train", "validation"}


@pytest.mark.parametrize("dev", ["", "nothing of use\n"])
def test_split_without_a_usable_row_is_named(tmp_path, dev):
    with pytest.raises(ValueError, match=r"no usable validation sentence; give a folder with train\.tsv and dev\.tsv"):
        load(write(tmp_path, dev=dev))


def test_other_encoding_is_named(tmp_path):
    folder = write(tmp_path)
    (tmp_path / "train.tsv").write_bytes("caf\u00e9\t1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.tsv is not UTF-8 \(byte 3\); save it as UTF-8"):
        load(folder)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("it 's a film you wo n't forget , ever !", "it's a film you won't forget, ever!"),
        ("they 've , we 'll , i 'd , i 'm , you 're", "they've, we'll, i'd, i'm, you're"),
        ("as `` real '' as it gets , `` no '' more", 'as "real" as it gets, "no" more'),
        ("he calls it ` art ' and leaves", "he calls it 'art' and leaves"),
        ("the movies ' best , the actors ' worst", "the movies' best, the actors' worst"),
        ("the '70s and the 'em of o'fallon", "the '70s and the 'em of o'fallon"),
        ("lrb the film rrb works , -lrb- and how -rrb-", "(the film) works, (and how)"),
        ("nothing to undo", "nothing to undo"),
        ("  what  ?! ", "what?!"),
    ],
)
def test_tokeniser_of_the_data_is_undone(given, written):
    assert detokenise(given) == written
    assert detokenise(written) == written


def test_sentences_of_our_own_are_distinct_of_both_labels_and_the_same_for_a_seed():
    splits = own_sentences(200, seed=0)
    rows = [*splits["train"], *splits["validation"]]
    assert (len(splits["train"]), len(splits["validation"])) == (150, 50)
    assert len({row["sentence"] for row in rows}) == 200
    assert all({row["label"] for row in splits[split]} == {0, 1} for split in splits)
    assert rows == [*own_sentences(200, seed=0)["train"], *own_sentences(200, seed=0)["validation"]]
    for row in rows:
        assert any(word in row["sentence"] for word in sst2.ADJECTIVES[row["label"]])
