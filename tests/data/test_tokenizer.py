"""Token ids against literal values that open_clip 3.3.0's own tokenizer gives."""

import pickle

import numpy as np
import pytest

from rwkv_jax.data.tokenizer import END_TOKEN, START_TOKEN, Tokenizer, clean

# fmt: off
HARD_TEXTS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "": [],
    " \t\n ": [],
    "Crème brûlée à l\u2019Élysée": [1075, 12138, 614, 711, 127, 119, 75, 13489, 21259, 331, 262,
        3459, 1251, 82, 13489],
    "naïve NAÏVE nai\u0308ve": [1097, 35689, 563] * 3,
    "😀 👩\u200d👩\u200d👧 👍🏽": [7334, 26304, 26304, 964, 356, 43722],
    "你好\uff0c世界": [47466, 254, 29290, 377, 267, 19759, 244, 163, 243, 490],
    "fish &amp;amp; chips &lt;b&gt;": [2759, 261, 8855, 283, 321, 285],
    "I'm we'll they've don't she'd it's you're": [328, 880, 649, 1342, 889, 1200, 847, 713, 1043,
        1896, 585, 568, 592, 982],
    "In 1984, 3.14 km²": [530, 272, 280, 279, 275, 267, 274, 269, 272, 275, 4590, 41175],
    "â€œmojibakeâ€\x9d": [257, 617, 3252, 11878, 257],
}
# fmt: on


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_ids_of_hard_texts(text):
    expected = np.zeros((1, 77), np.int32)
    ids = [START_TOKEN, *HARD_TEXTS[text], END_TOKEN]
    expected[0, : len(ids)] = ids
    np.testing.assert_array_equal(Tokenizer()([text]), expected, strict=True)


@pytest.mark.parametrize(("text", "token"), [("word " * 2000, 2653), ("x" * 10_000, 32035)])
def test_a_text_of_10000_characters_keeps_the_end_token(text, token):
    assert len(text) == 10_000
    np.testing.assert_array_equal(Tokenizer()([text])[0], [START_TOKEN, *[token] * 75, END_TOKEN])


def test_a_shorter_context_cuts_the_same_ids():
    texts = list(HARD_TEXTS)
    long, short = Tokenizer()(texts), Tokenizer(context_length=8)(texts)
    assert short.shape == (len(texts), 8)
    fits = long[:, 7:].max(axis=1) == 0
    assert fits.any()
    assert not fits.all()
    np.testing.assert_array_equal(short[fits], long[fits, :8])
    np.testing.assert_array_equal(short[~fits, :7], long[~fits, :7])
    np.testing.assert_array_equal(short[long[:, 7] != 0, 7], END_TOKEN)


def test_the_special_tokens_cannot_be_written_in_a_text():
    ids = Tokenizer()(["<end_of_text> <start_of_text>"])[0]
    assert list(ids).count(START_TOKEN) == 1
    assert list(ids).count(END_TOKEN) == 1


def test_cleaning():
    assert clean("  A&amp;lt;B\u3000\n c ") == "a<b c"


def test_an_instance_pickles_small_and_gives_the_same_ids():
    tokenizer = Tokenizer(context_length=16)
    packed = pickle.dumps(tokenizer)
    assert len(packed) < 1000
    texts = list(HARD_TEXTS)
    np.testing.assert_array_equal(pickle.loads(packed)(texts), tokenizer(texts))


def test_no_texts_give_no_rows():
    assert Tokenizer()([]).shape == (0, 77)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: Tokenizer()("one text"), TypeError, r"got one text: 'one text'.*\[text\]"),
        (lambda: Tokenizer()(["a", b"b"]), TypeError, "expected a text, got bytes"),
        (lambda: Tokenizer(context_length=2), ValueError, "context_length = 2"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
