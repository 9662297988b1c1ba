"""Looks for what nobody may see: names, the linkage key and pseudonyms, byte by byte, wherever a party's things lie.

Rule: a search that finds nothing proves something only if it finds what is there; `play` also has it look where the names are.
It looks for them as they were written, in either party's spelling and encoding, and as the images normalise them; not for what
somebody may have disguised on purpose."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ptm.store.base import Store

STEP = 8
"""Everything looked for has at least so many bytes; shorter names could be in anything."""
MOST = 1024**3
AGE_HEADER = b"age-encryption.org/v1\n"
PSEUDONYM = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
Things = Iterable[tuple[str, bytes]]
"""Where something lies, and its bytes."""


class Sought:
    """Texts to find, each with what it is ("a name"). One pass over the bytes, however many there are."""

    def __init__(self, what: Mapping[bytes, str]) -> None:
        self._by_start: dict[bytes, list[bytes]] = {}
        self._what = {text: kind for text, kind in what.items() if len(text) >= STEP}
        for text in self._what:
            self._by_start.setdefault(text[:STEP], []).append(text)

    def in_(self, things: Things) -> dict[str, set[str]]:
        """Kind to the places where one was found."""
        found: dict[str, set[str]] = {}
        for where, body in things:
            for kind in self._kinds(body):
                found.setdefault(kind, set()).add(where)
        return found

    def _kinds(self, body: bytes) -> Iterator[str]:
        for at in range(len(body) - STEP + 1):
            for text in self._by_start.get(body[at : at + STEP], ()):
                if body.startswith(text, at):
                    yield self._what[text]


def spellings(names: Iterable[str]) -> dict[bytes, str]:
    """Names as they are written, as words, and as words in order; in any case, with accents and without; in both encodings."""
    found = {}
    for name in names:
        words = re.findall(r"\w+", name)
        for text in {
            name,
            name.replace(",", ""),
            " ".join(words),
            " ".join(sorted(words)),
            " ".join(sorted(words, key=str.casefold)),
        }:
            for shown in {text, text.lower(), text.casefold(), text.upper()}:
                plain = "".join(c for c in unicodedata.normalize("NFKD", shown) if not unicodedata.combining(c))
                for written in {shown, unicodedata.normalize("NFC", shown), plain}:
                    found[written.encode()] = "a name"
                    found[written.encode("cp1252", errors="ignore")] = "a name"
    return found


def shapes(key: bytes) -> dict[bytes, str]:
    """The linkage key as it is, in hex and in base64 (which may begin anywhere in a longer text, hence three of them)."""
    texts = [key, key.hex().encode(), key.hex().upper().encode()]
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + key)
        texts.append(whole[4 if shift else 0 : len(whole) - 4])
    return dict.fromkeys(texts, "the linkage key")


def in_folder(folder: Path) -> Things:
    """Every file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def in_store(store: Store) -> Things:
    """Every object, with its key before its bytes: a name could be in a key, too."""
    for info in sorted(store.list(""), key=lambda info: info.key):
        yield info.key, info.key.encode() + b"\n" + store.get(info.key, MOST)


def pseudonyms_in(things: Things, known: set[str]) -> set[str]:
    """Where any of the known pseudonyms stands."""
    return {where for where, body in things if any(text.decode() in known for text in PSEUDONYM.findall(body))}
