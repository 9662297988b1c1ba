"""Text and ciphertext of somebody else: no escape sequence reaches a terminal, and no header costs hours."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import time

import pyrage
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ptm.cli.commands import run
from ptm.cli.show import print_json
from ptm.cli.watching import plain_formatter
from ptm.envelope import key_id, verify_request
from ptm.errors import Malformed, PtmError, SealError
from ptm.seal import seal_bytes, unseal, unseal_bytes

ESCAPE = "\x1b]0;owned\x07\x9b2J"


def test_a_request_with_escape_sequences_in_a_field_name_is_refused_in_plain_words() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw().hex()
    signed: dict[str, int | str] = {"type": "ptm/request@1", "name": "x", ESCAPE: 1}
    sig = key.sign(rfc8785.dumps(signed)).hex()
    raw = json.dumps({"signed": signed, "signatures": [{"keyid": key_id(public), "sig": sig}]}).encode()
    with pytest.raises(Malformed) as error:
        verify_request(raw)
    assert str(error.value).isprintable()


def test_an_error_is_printed_without_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise PtmError(f"said {ESCAPE}", hint=f"do {ESCAPE}")

    monkeypatch.setattr("ptm.cli.commands.cli.main", fail)
    assert run(["task", "list"]) == 1
    assert not any(c in capsys.readouterr().err for c in "\x1b\x07\x9b")


def test_a_log_line_of_the_node_is_one_plain_line() -> None:
    record = logging.LogRecord("ptm.node", logging.WARNING, "x", 1, "pull: %s", (f"{ESCAPE}\nERROR forged",), None)
    line = plain_formatter().format(record)
    assert line.isprintable()


def test_a_traceback_in_the_nodes_log_keeps_its_lines_and_nothing_else() -> None:
    try:
        raise ValueError(ESCAPE)
    except ValueError as e:
        record = logging.LogRecord("ptm.node", logging.ERROR, "x", 1, "fault", (), (type(e), e, e.__traceback__))
    text = plain_formatter().format(record)
    assert len(text.splitlines()) > 3
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_header_of_very_many_recipients_is_refused_at_once() -> None:
    """To parse one takes time that grows with the square of its length: 10 MB would take an hour, and nobody would hear of it."""

    def line() -> bytes:
        return base64.b64encode(os.urandom(32)).rstrip(b"=") + b"\n"

    header = b"age-encryption.org/v1\n" + b"".join(b"-> x " + line() + line() for _ in range(20_000))
    begun = time.monotonic()
    with pytest.raises(SealError, match="header"):
        unseal(io.BytesIO(header + b"--- " + line() + b"x" * 100), io.BytesIO(), pyrage.x25519.Identity.generate())
    assert time.monotonic() - begun < 5


def test_the_longest_header_that_ptm_writes_is_read() -> None:
    """An input for a thousand sites and the researcher."""
    identity = pyrage.x25519.Identity.generate()
    others = [str(pyrage.x25519.Identity.generate().to_public()) for _ in range(1000)]
    assert unseal_bytes(seal_bytes(b"hello", [*others, str(identity.to_public())]), identity, 10) == b"hello"


def test_json_for_programs_steers_no_terminal_and_stays_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"reason": "a\x9b31mred\u202egnp.exe \x1b]0;title\x07 é"}

    print_json(said)

    printed = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert json.loads(printed) == said
