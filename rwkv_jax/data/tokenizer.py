"""CLIP's byte-pair tokenizer, on the `tokenizers` library.

Unusual: a word's last symbol carries `</w>` (end-of-word BPE), digits are split one by one, text is
lower-cased, and padding is token 0, which is also the token `!`. The literal strings
`<start_of_text>` and `<end_of_text>` inside a text are ordinary characters here (the original maps
them to the special tokens, so that a caption could end itself).

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", and the table published with it (assets/bpe_simple_vocab_16e6.LICENSE.txt).
"""

import functools
import gzip
import hashlib
import html
from collections.abc import Sequence
from importlib import resources

import ftfy
import numpy as np
from jaxtyping import Int32
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as _BytePairTokenizer

VOCABULARY_SIZE = 49_408
START_TOKEN = 49_406
END_TOKEN = 49_407
PADDING_TOKEN = 0

_TABLE = "bpe_simple_vocab_16e6.txt.gz"
_TABLE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
# 256 byte symbols, the same at a word's end, the merges, two special tokens.
_MERGES = VOCABULARY_SIZE - 2 * 256 - 2
_WORD = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# A data set's texts come again each epoch; longer ones are rare and would fill the cache.
_CACHED_TEXTS = 16_384
_CACHED_TEXT_LENGTH = 512


class Tokenizer:
    """Texts to rows of token ids: start, the text's tokens, end, zeros.

    A text that is too long loses its tail and keeps the end token. The tables are loaded at the
    first call (about 0.15 s) and shared by all instances of a process; an instance pickles as its
    context length alone.
    """

    def __init__(self, context_length: int = 77):
        if context_length < 3:
            raise ValueError(
                f"context_length = {context_length}, but start, end and one token need at least 3"
            )
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "B L"]:
        """Token ids, int32, of a list of texts; an empty text is start and end alone.

        Raises:
            TypeError: `texts` is one string, or holds something that is no string.
        """
        if isinstance(texts, str):
            raise TypeError(f"expected a list of texts, got one text: {texts[:40]!r}; write [text]")
        ids = np.full((len(texts), self.context_length), PADDING_TOKEN, np.int32)
        for row, text in zip(ids, texts, strict=True):
            if not isinstance(text, str):
                raise TypeError(f"expected a text, got {type(text).__name__}: {str(text)[:40]!r}")
            encode = _cached_encode if len(text) <= _CACHED_TEXT_LENGTH else _encode
            tokens = encode(text)[: self.context_length - 2]
            row[0] = START_TOKEN
            row[1 : len(tokens) + 1] = tokens
            row[len(tokens) + 1] = END_TOKEN
        return ids


def clean(text: str) -> str:
    """CLIP's cleaning: mojibake and Unicode forms by ftfy, HTML entities twice, blanks, case."""
    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


def _encode(text: str) -> Int32[np.ndarray, " n"]:
    """Token ids of one text, without start and end."""
    return np.asarray(_byte_pairs().encode(clean(text), add_special_tokens=False).ids, np.int32)


_cached_encode = functools.lru_cache(_CACHED_TEXTS)(_encode)


@functools.lru_cache(1)
def _byte_pairs() -> _BytePairTokenizer:
    packed = resources.files(__package__).joinpath("assets", _TABLE).read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != _TABLE_SHA256:
        raise ValueError(
            f"the byte-pair table {_TABLE} is damaged: sha256 {digest} instead of {_TABLE_SHA256};"
            " install the package again"
        )
    # Line 0 is a comment; the file goes on beyond the merges that CLIP uses.
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : _MERGES + 1]
    merges: list[tuple[str, str]] = []
    for line in lines:
        first, second = line.split()
        merges.append((first, second))
    symbols = _byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    vocabulary |= {"<start_of_text>": START_TOKEN, "<end_of_text>": END_TOKEN}
    tokenizer = _BytePairTokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # invert: what matches is a word, what does not (blanks) is removed.
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes, in the vocabulary's order.

    Bytes that are printable in Latin-1 stand for themselves and come first; the others (blanks,
    controls) become the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
