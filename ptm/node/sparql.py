"""Is this text a SPARQL query that only reads, and only here? Pure; a tokenizer, no parser.

An endpoint that takes queries and updates at one URL, or takes an update for a query (some do), must not be fooled through the
gateway. So every bare word has to be one that SPARQL 1.1 Query knows (https://www.w3.org/TR/sparql11-query/, section 19), the
first one after the prologue a query form, and what makes an endpoint fetch from elsewhere is refused: `SERVICE` unless it is
allowed, `FROM` but for the graphs listed. Words in strings, IRIs, comments, variables and prefixed names are not looked at.
Engines differ on when they undo escapes (`\\u0041`), so an escape that stands for an ASCII character is refused.

What this does not do: check that the query is well formed (the endpoint does), or know functions of one product's own; what those
can do, the account that the node uses at the endpoint must not be allowed to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

MAX_TOKENS = 200_000
FORMS = frozenset({"SELECT", "ASK", "CONSTRUCT", "DESCRIBE"})
_KNOWN = """A ABS AS ASC AVG BASE BIND BNODE BOUND BY CEIL COALESCE CONCAT CONTAINS COUNT DATATYPE DAY DESC DISTINCT
    ENCODE_FOR_URI EXISTS FALSE FILTER FLOOR FROM GRAPH GROUP GROUP_CONCAT HAVING HOURS IF IN IRI ISBLANK ISIRI ISLITERAL
    ISNUMERIC ISURI LANG LANGMATCHES LCASE LIMIT MAX MD5 MIN MINUS MINUTES MONTH NAMED NOT NOW OFFSET OPTIONAL ORDER PREFIX RAND
    REDUCED REGEX REPLACE ROUND SAMETERM SAMPLE SECONDS SEPARATOR SHA1 SHA256 SHA384 SHA512 STR STRAFTER STRBEFORE STRDT STRENDS
    STRLANG STRLEN STRSTARTS STRUUID SUBSTR SUM TIMEZONE TRUE TZ UCASE UNDEF UNION URI UUID VALUES WHERE YEAR"""
WORDS = FORMS | frozenset(_KNOWN.split())
_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n]+|\#[^\n\r]*)
    |(?P<string>\"\"\"(?:[^"\\]++|\\.|\"(?!\"\"))*+\"\"\"(?!\")|'{3}(?:[^'\\]++|\\.|'(?!''))*+'{3}(?!')
        |(?!\"{3})\"(?:[^"\\\n\r]++|\\[^\n\r])*+\"|(?!'{3})'(?:[^'\\\n\r]++|\\[^\n\r])*+')
    |(?P<iri><[^<>"{}|^`\\\x00-\x20]*+>)
    |(?P<variable>[?$][\w]+)
    |(?P<language>@[A-Za-z]+(?:-[A-Za-z0-9]+)*)
    |(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)
    |(?P<prefixed>(?:[^\W\d_][\w.\-]{0,200})?:(?:[\w:.\-]++|%[0-9A-Fa-f]{2}|\\[_~.\-!$&'()*+,;=/?\#@%])*+|_:[\w][\w.\-]*)
    |(?P<word>[^\W\d_]\w*)
    |(?P<sign>\^\^|&&|\|\||[<>!]=|[{}()\[\].,;=<>+*/|^?!\-])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})")


def objection(text: str, graphs: Collection[str] = (), federation: bool = False) -> str | None:
    """Why this is not taken, in one line for the researcher; None if it is."""
    if any(int(match[1] or match[2], 16) < 0x80 for match in _ESCAPE.finditer(text)):
        return "the query has an ASCII character as an escape, which is not allowed"
    return _object(text, graphs, federation)


def _object(text: str, graphs: Collection[str], federation: bool) -> str | None:
    tokens = _tokens(text)
    form = None
    before = ""
    for kind, token in tokens:
        if kind is None:
            return f"the query is no SPARQL at {token[:20]!a}, or has more than {MAX_TOKENS} words"
        word = token.upper() if kind == "word" else ""
        if word and word not in WORDS and not (federation and word in ("SERVICE", "SILENT")):
            return f"{token[:40]!a} is not allowed: queries only" + (", and no SERVICE" if word == "SERVICE" else "")
        if form is None and kind != "iri" and kind != "prefixed" and word not in ("BASE", "PREFIX"):
            if word not in FORMS:
                return "the query is none: it starts with SELECT, ASK, CONSTRUCT or DESCRIBE"
            form = word
        if before in ("FROM", "FROM NAMED") and word != "NAMED" and (kind != "iri" or token[1:-1] not in graphs):
            return f"FROM {token[:100]!a} is not allowed: the site lists no such graph"
        before = f"{before} {word}" if before == "FROM" and word == "NAMED" else word
    return "the query is empty" if form is None else None


def _tokens(text: str) -> Iterator[tuple[str | None, str]]:
    """Kind and text of each token; kind None where there is none, or too many."""
    at, count = 0, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        count += 1
        if match is None or count > MAX_TOKENS:
            yield None, text[at : at + 40]
            return
        at = match.end()
        if match.lastgroup != "skip":
            yield match.lastgroup, match[0]
