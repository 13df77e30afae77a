"""What the command line's help says of the loader's fields."""

import dataclasses
import re
from collections import Counter

import pytest
import tyro

from rwkv_jax.data.config import ColourConfig, LoaderConfig


def test_no_two_fields_share_a_text(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")  # a text a line
    with pytest.raises(SystemExit):
        tyro.cli(LoaderConfig, args=["--help"])
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    texts = re.findall(r"([A-Z][^│\n]*?) *\(default: ", shown)
    fields = [f.name for c in (LoaderConfig, ColourConfig) for f in dataclasses.fields(c)]
    assert len(texts) >= len(fields) - 2
    assert [text for text, count in Counter(texts).items() if count > 1] == []
