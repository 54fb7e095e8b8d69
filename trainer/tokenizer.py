"""open_clip's tokenizer, the same tokens in a fraction of the time: words, not whole texts, are what recurs."""

from functools import cache

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

MAX_CACHED_WORDS = 500_000
"""Words whose tokens a worker remembers: about 100 MB."""
SYMBOLS_PER_TOKEN = 64
"""How much of a word is encoded per token of context: no token is longer than 32 symbols, and the second 32 are a
margin, because the cut changes the merges of a few symbols before it."""


class _Tokenizer(SimpleTokenizer):  # type: ignore[misc]  # open_clip is not typed
    """Linear in a word's length: open_clip merges the whole word, then cuts the text."""

    def __init__(self, context_length: int) -> None:
        super().__init__(context_length=context_length)
        self._ids: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the text's tokens, or at least the first `context_length` of them."""
        tokens: list[int] = []
        for match in self.pat.finditer(self._clean(text)):
            if len(tokens) >= self.context_length:
                break
            word = match.group()
            tokens += self._ids.get(word) or self._encode_word(word)
        return tokens

    def _clean(self, text: str) -> str:
        if text.isascii() and text.isprintable() and "&" not in text:  # what ftfy and HTML's rules do not change
            return " ".join(text.split()).lower()
        cleaned: str = self.clean_fn(text)
        return cleaned

    def _encode_word(self, word: str) -> list[int]:
        if len(self._ids) >= MAX_CACHED_WORDS:
            self._ids.clear()
        symbols = "".join(self.byte_encoder[byte] for byte in word.encode())
        near = symbols[: SYMBOLS_PER_TOKEN * self.context_length]
        self._ids[word] = ids = [self.encoder[token] for token in self.bpe(near).split(" ")]
        self.cache = {special: special for special in ("<start_of_text>", "<end_of_text>")}  # `_ids` is the cache
        return ids

    def rows(self, texts: list[str]) -> np.ndarray:
        """Return the texts' tokens between a start and an end, (n, context_length) int64; a cut text keeps its end."""
        result = np.zeros((len(texts), self.context_length), np.int64)
        for row, text in zip(result, texts, strict=True):
            tokens = self.encode(text)[: self.context_length - 2]
            row[0], row[1 : 1 + len(tokens)] = self.sot_token_id, tokens
            row[1 + len(tokens)] = self.eot_token_id
        return result


@cache
def _tokenizer(context_length: int) -> _Tokenizer:
    return _Tokenizer(context_length)


def tokenize(texts: list[str], context_length: int) -> Tensor:
    """Return the texts' tokens, (n, context_length) int64, zero-padded; longer texts are cut (CLIP section 2.4)."""
    return torch.from_numpy(_tokenizer(context_length).rows(texts))
