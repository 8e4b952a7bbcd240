"""Characters of "tiny Shakespeare": 1,115,394 characters of his plays, 65 distinct (Karpathy 2015, in the repository char-rnn).

The text is cut into windows of `length` characters, each predicted from those before it in the window; windows do not overlap,
so examples held out share no character with those trained on. The first nine tenths are for training, the last for testing.
Where the text cannot be had, the topics of Python's own reference manual take its place, under their own name; characters
that Shakespeare's alphabet lacks become spaces.
"""

from __future__ import annotations

import hashlib
import string
import sys
from functools import partial

import torch
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Fetch, Remote, Source, Tensors, locate

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
ALPHABET = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase
TRAINED = 0.9  # share of the text that is trained on


def load_shakespeare(length: int, fetch: Fetch | None = None) -> Dataset:
    """Windows of characters int64 `[N, length]`, and the characters that follow each of them, of the same shape.

    A local file with another content is loaded as `text-unverified`.

    Args:
        length: characters in a window.
        fetch: the downloader; pooch by default.

    Raises:
        ValueError: a local file too short to be cut into windows.
    """
    try:
        paths, source = locate("tinyshakespeare", {"input.txt": Remote((URL,), f"sha256:{SHA256}")}, fetch=fetch)
    except FileNotFoundError as error:
        return _split("python-manual", _stand_in(why=str(error).split(". ")[0]), python_manual(), length)
    content = paths["input.txt"].read_bytes()
    text = content.decode("utf-8", errors="replace")
    if hashlib.sha256(content).hexdigest() == SHA256:
        return _split("tiny-shakespeare", f"{source}, content checked", text, length)
    return _split("text-unverified", f"{source}; the content is not tiny-shakespeare's", text, length)


def python_manual() -> str:
    """Half a million characters that ship with Python: the topics that `help()` shows."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def encode(text: str) -> Tensor:
    """Places of characters in `ALPHABET`, int64 `[len(text)]`; others count as spaces."""
    space, places = ALPHABET.index(" "), {character: place for place, character in enumerate(ALPHABET)}
    return torch.tensor([places.get(character, space) for character in text])


def windows(codes: Tensor, length: int) -> Tensors:
    """Consecutive windows `[N, length]` of codes `[M]`, and the same one place later; what is left at the end is dropped.

    Raises:
        ValueError: not enough for one window.
    """
    count = (len(codes) - 1) // length
    if count < 1:
        raise ValueError(f"a text of {len(codes)} characters is too short for windows of {length}: give a longer one")
    used = count * length
    return Tensors((codes[:used].reshape(count, length), codes[1 : used + 1].reshape(count, length)))


def _stand_in(why: str) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"the topics of the reference manual that ship with Python {version}; a stand-in, because {why}"


def _split(name: str, source: str, text: str, length: int) -> Dataset:
    codes = encode(text)
    border = int(TRAINED * len(codes))
    note = f"windows of {length} characters, the last tenth of the text for testing"
    return Dataset(name, f"{source}; {note}", windows(codes[:border], length), windows(codes[border:], length))


def shakespeare(length: int) -> Source:
    """Tiny Shakespeare in windows of so many characters."""
    note = "tiny-shakespeare from $HEATBATH_DATA/tinyshakespeare, else downloaded, else Python's manual (and named so)"
    return Source("tiny-shakespeare", note, partial(load_shakespeare, length))
