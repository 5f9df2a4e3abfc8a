"""Data files: text stays text, a path is a path, and what can't be read is named with file and line."""

import gzip
import json
import os

from rlhf import files

import pyarrow
import pytest

ROW = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
LINE = json.dumps(ROW) + "\n"


def values(path) -> list[dict]:
    return [row.values for row in files.read(path)["train"]]


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINE.encode()),
        ("a.json", LINE.encode()),
        ("a.json", json.dumps([ROW], indent=1).encode()),
        ("a.JSONL", b"\xef\xbb\xbf" + LINE.encode()),
        ("a.jsonl.gz", gzip.compress(LINE.encode(), mtime=0)),
        ("a.json.gz", gzip.compress(json.dumps([ROW]).encode(), mtime=0)),
        ("a.csv.gz", gzip.compress(b"prompt,chosen,rejected\nWhy?,Because.,No.\n", mtime=0)),
        ("a.jsonl.zst", zstd(LINE.encode())),
        ("a.tsv", b"prompt\tchosen\trejected\r\nWhy?\tBecause.\tNo.\r\n"),
    ],
)
def test_every_ending_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert values(tmp_path / name) == [ROW]


def test_what_stands_in_a_table_is_text_and_only_an_empty_cell_is_empty(tmp_path):
    cells = ["NA", "None", "null", "NaN", "007", "1e5", "True", "12,50", ' a "quoted" word ', "two\nlines"]
    text = "prompt,chosen\n" + "".join(f'"{cell.replace(chr(34), chr(34) * 2)}",\n' for cell in cells)
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    assert values(tmp_path / "a.csv") == [{"prompt": cell, "chosen": ""} for cell in cells]


def test_signs_that_end_a_line_elsewhere_end_none_in_json(tmp_path):
    row = ROW | {"chosen": "one\u2028two\x85three"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert values(tmp_path / "a.jsonl") == [row]


@pytest.mark.parametrize("name", ["[v2] pairs/pairs*.jsonl", "a?b/{x,y}.jsonl", "%s/~.jsonl"])
def test_a_path_is_no_pattern(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(LINE)
    (tmp_path / name).with_name("pairs_other.jsonl").write_text(LINE * 5)
    assert values(tmp_path / name) == [ROW]


def test_a_file_that_was_changed_without_a_new_time_is_read_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(LINE)
    before = path.stat()
    assert len(values(path)) == 1
    path.write_text(LINE * 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(values(path)) == 2


def test_the_names_of_files_and_folders_say_the_split(tmp_path):
    names = {
        "data/train-00000-of-00002.jsonl": "train",
        "data/train-00001-of-00002.jsonl": "train",
        "validation/0.jsonl": "validation",
        "dev.jsonl": "validation",
        "my_test.jsonl.gz": "test",
        "contest.jsonl": "train",
        "dev/train.jsonl": "train",
        "train/test/0.jsonl": "test",
        "README.md": None,
        ".cache/test.jsonl": None,
        "dataset_infos.json": None,
    }
    for name, split in names.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        content = LINE.encode() if split else b"{}"
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = {split: len(rows) for split, rows in files.read(tmp_path).items()}
    assert found == {"train": 4, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", (LINE + LINE[:40]).encode(), r"'a\.jsonl', line 2: not JSON.*cut off"),
        ("a.jsonl", (LINE + "{oops}\n" + LINE).encode(), r"'a\.jsonl', line 2: not JSON.*mend"),
        ("a.json", b'[{"prompt": "Why?"},\n {"prompt"]', r"'a\.json', line 2: not JSON"),
        ("a.jsonl", LINE.encode() + b"[1, 2]\n", r"a\.jsonl line 2: list found; each row must be an object"),
        ("a.jsonl", LINE.encode("utf-16"), r"'a\.jsonl', line 1: not UTF-8, it looks like UTF-16"),
        ("a.jsonl", LINE.encode("utf-16-le"), r"'a\.jsonl', line 1: not UTF-8, it looks like UTF-16"),
        ("a.csv", "prompt,chosen\n".encode("utf-16-be"), r"'a\.csv', line 1: not UTF-8, it looks like UTF-16"),
        ("a.csv", b"prompt,chosen\nWhy?,Because.\nCaf\xe9?,No.\n", r"'a\.csv', line 3: not UTF-8"),
        (
            "a.csv",
            b"prompt;chosen;rejected\na;b;c\n",
            r"'a\.csv', line 1: 'prompt;chosen;rejected' is one column.*commas",
        ),
        ("a.tsv", b"prompt,chosen\na,b\n", r"'a\.tsv', line 1: 'prompt,chosen' is one column.*a tab"),
        ("a.csv", b"prompt,chosen\na,b\na,b,c\n", r"'a\.csv', line 3: 3 fields found where the header has 2"),
        ("a.csv", b'prompt,chosen\na,"b" c\n', r"'a\.csv', line 2: broken quoting"),
        ("a.tsv", b'prompt\tchosen\na\t"b\nc\t"d\n', r"'a\.tsv', line 3: broken quoting"),
        ("a.tsv", b'prompt\tchosen\na\t"b\n', r"'a\.tsv', line 2: broken quoting"),
        ("a.jsonl.gz", b"no gzip", r"'a\.jsonl\.gz' can't be read"),
        ("a.jsonl.gz", gzip.compress(LINE.encode() * 99, mtime=0)[:-9], r"'a\.jsonl\.gz' can't be read"),
        ("a.parquet", b"no parquet", r"'a\.parquet' can't be read"),
        ("a.xlsx", b"", r"'a\.xlsx' has none of the endings"),
    ],
)
def test_what_cant_be_read_is_named_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        files.read(tmp_path / name)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None  # no traceback of another library


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="no data file is in"):
        files.read(tmp_path)


def test_a_folder_with_an_index_of_data_sets_is_read_as_files(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"pairs": {"file_name": "pairs.jsonl", "ranking": true}}')
    (tmp_path / "pairs.jsonl").write_text(LINE)
    assert values(tmp_path) == [ROW]
