"""Your own pictures with a table of their texts."""

import json
import pickle

import pytest

from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.records import DatasetError, Source


@pytest.fixture
def folder(tmp_path):
    """Two pictures (bytes are not looked at here), one in a subfolder; no table yet."""
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.jpg").write_bytes(b"cat")
    (tmp_path / "dog.png").write_bytes(b"a dog")
    return tmp_path


def open_folder(folder, split="train"):
    return open_dataset(f"folder:{folder}", split, "unused")


def records(source):
    return [source[index] for index in range(len(source))]


def test_csv(folder):
    (folder / "texts.csv").write_text(
        'file,caption,alt,concept\ncats/1.jpg,"a cat, on a mat",tabby,cat\ndog.png,a dog,,dog\n'
    )
    source = open_folder(folder)
    assert isinstance(source, Source)
    assert source.text_kinds == ("caption", "alt")
    assert source.class_names == {"concept": ("cat", "dog")}
    assert records(source) == [
        {
            "key": "cats/1.jpg",
            "image": b"cat",
            "texts": {"caption": ("a cat, on a mat",), "alt": ("tabby",)},
            "labels": {"concept": 0},
        },
        {
            "key": "dog.png",
            "image": b"a dog",
            "texts": {"caption": ("a dog",)},
            "labels": {"concept": 1},
        },
    ]
    assert records(pickle.loads(pickle.dumps(source))) == records(source)


def test_tsv_with_several_rows_a_picture_and_splits(folder):
    (folder / "texts.tsv").write_text(
        "file_name\tsplit\ttext\tlabel:animal\n"
        "dog.png\ttrain\ta dog\tdog\n"
        "cats/1.jpg\ttest\ta cat\tcat\n"
        'dog.png\ttrain\ta "big" dog\t\n',
        encoding="utf-8-sig",  # as spreadsheets write it
    )
    train, test = open_folder(folder), open_folder(folder, "test")
    assert train[0]["texts"] == {"text": ("a dog", 'a "big" dog')}
    assert train[0]["labels"] == {"animal": 1}
    assert test[0]["labels"] == {"animal": 0}
    assert (len(train), len(test)) == (1, 1)
    assert train.content_hash != test.content_hash


def test_json_lines_with_lists(folder):
    rows = [
        {"image": "dog.png", "captions": ["a dog", "ein Hund"], "label": 3},
        {"image": "cats/1.jpg", "captions": "x" * 10_000, "title": None},
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second = records(open_folder(folder))
    assert first["texts"] == {"captions": ("a dog", "ein Hund")}
    assert first["labels"] == {"label": 0}
    assert second["texts"] == {"captions": ("x" * 10_000,)}
    assert second["labels"] == {"label": -1}


def test_a_long_csv_text(folder):
    text = "word " * 50_000
    (folder / "texts.csv").write_text(f"file,text\ndog.png,{text}\n")
    assert open_folder(folder)[0]["texts"] == {"text": (text.strip(),)}


def test_the_hash_changes_with_table_and_pictures(folder):
    table = folder / "texts.csv"
    table.write_text("file,text\ndog.png,a dog\n")
    first = open_folder(folder).content_hash
    assert open_folder(folder).content_hash == first
    (folder / "dog.png").write_bytes(b"another dog")
    second = open_folder(folder).content_hash
    table.write_text("file,text\ndog.png,a cat\n")
    assert len({first, second, open_folder(folder).content_hash}) == 3


def test_spaces_around_a_columns_name_are_no_part_of_it(folder):
    (folder / "texts.csv").write_text("file , caption, concept\ndog.png,a dog,dog\n")
    source = open_folder(folder)
    assert source.text_kinds == ("caption",)
    assert source.class_names == {"concept": ("dog",)}
    assert source[0]["key"] == "dog.png"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (",file,text\n0,dog.png,a dog\n", r"^column 1 of .*texts\.csv has no name: name it, or"),
        ("file, ,text\ndog.png,0,a dog\n", r"^column 2 of .*texts\.csv has no name"),
        ("file,text,alt, text\ndog.png,a,b,c\n", r"^columns 2 and 4 of .* are both named 'text'"),
        ("name,text\ndog.png,a dog\n", r"no column that names the pictures \(file, .* name, text"),
        ("file,concept\ndog.png,dog\n", r"no column of texts; its columns are file, concept"),
        ("", r"has no rows"),
        ("file,text\n", r"has no rows"),
        ("file,text\ndog.png,a,dog\n", r"line 2: not as many values as .* columns \(2\)"),
        ("file,text\ndog.png\n", r"line 2: not as many values"),
        ("file,text\n,a dog\n", r"line 2: the column 'file' is empty"),
        ('file,text\ndog.png,"a dog\n', r"near line .*: unexpected end of data"),
        ("file,text\n../dog.png,a dog\n", r"line 2: '\.\./dog\.png' is outside the folder"),
        ("file,text\n/etc/passwd,a dog\n", r"line 2: '/etc/passwd' is outside the folder"),
        (
            "file,text\na.png,1\nb.png,2\nc.png,3\nd.png,4\ndog.png,5\n",
            r"4 of the 5 pictures in .* are not in the folder: a\.png, b\.png, c\.png, \.\.\.",
        ),
        ("file,text,concept\ndog.png,a,dog\ndog.png,b,cat\n", r"line 3: 'dog.png' has the concept"),
        ("file,text,split\ndog.png,a,test\n", r"no split 'train'; it has test"),
    ],
)
def test_a_wrong_table_is_one_clear_error(folder, table, message):
    (folder / "texts.csv").write_text(table)
    with pytest.raises(DatasetError, match=message):
        open_folder(folder)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b'{"file": "dog.png", "text": "a"}\n{"file": \n', r"near line 2: Expecting value"),
        (b'["dog.png"]\n', r"line 1: not a JSON object"),
        (b'{"file": "dog.png", "text": {"en": "a"}}\n', r"line 1: 'text' must be a text or a list"),
        (b'{"file": "dog.png", "text": "\xff"}\n', r"is not UTF-8 text"),
    ],
)
def test_wrong_json_lines(folder, table, message):
    (folder / "texts.jsonl").write_bytes(table)
    with pytest.raises(DatasetError, match=message):
        open_folder(folder)


def test_no_folder_no_table_or_two(folder):
    with pytest.raises(DatasetError, match="There is no folder"):
        open_folder(folder / "absent")
    with pytest.raises(DatasetError, match=r"exactly one \.csv, \.tsv, \.jsonl file.*has none"):
        open_folder(folder)
    (folder / "a.csv").touch()
    (folder / "b.tsv").touch()
    with pytest.raises(DatasetError, match=r"it has a\.csv, b\.tsv"):
        open_folder(folder)
