"""What a SPARQL source takes for a query: every form of reading, and no trick."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptm.node.sparql import objection

READ = [
    "ASK {}",
    "select * where { ?s ?p ?o } limit 10",
    'SELECT (COUNT(?x) AS ?n) WHERE { ?x a <http://example.org/Drop> ; <p> \'INSERT DATA {}\'@en-GB, """LOAD "x" """ }',
    "# DROP ALL\nPREFIX insert: <http://example.org/>\nCONSTRUCT { ?insert insert:delete ?load } WHERE { ?insert insert:delete ?load }",  # noqa: E501
    "PREFIX : <http://e.org/> BASE <http://e.org/> DESCRIBE :drop <#load> $service",
    "PREFIX ncit:<http://e.org/> SELECT ?a WHERE { ?p ncit:C28421 ?s ; ^ncit:up/ncit:x*|!ncit:y+ ?b . FILTER(?b<=3.5e-2 && ?b!=.5 || REGEX(?s, \"\\\\d\", 'i')) }",  # noqa: E501
    "SELECT ?s { ?s ?p _:b1 . [] ?q (1 2) . MINUS { ?s ?p true } OPTIONAL { GRAPH ?g { ?s ?p 5 } } VALUES ?x { UNDEF } } GROUP BY ?s HAVING (SUM(?x) > 1)",  # noqa: E501
    "SELECT (GROUP_CONCAT(DISTINCT ?x; SEPARATOR=', ') AS ?y) { BIND(IF(BOUND(?x), ENCODE_FOR_URI(?x), 'a') AS ?z) FILTER NOT EXISTS { ?x ex:a\\,b%20c 1 } }",  # noqa: E501
    "SELECT * { ?s <p> 'na\\u00efve', \"it\\'s\\n\" }",
    "SELECT ?s WHERE { ?s ?p ?o FILTER(?o<?s&&?s>?o) }",
]
NOT = [
    *(
        "",
        "   ",
        "# nothing",
        "hello",
        "DROP ALL",
        "INSERT DATA { <a> <b> <c> }",
        "DELETE WHERE { ?s ?p ?o }",
        "LOAD <http://e.org>",
    ),
    *(
        "CLEAR ALL",
        "CREATE GRAPH <g>",
        "COPY <a> TO <b>",
        "MOVE <a> TO <b>",
        "ADD <a> TO <b>",
        "WITH <g> DELETE { ?s ?p ?o } WHERE {}",
    ),
    *(
        "ASK {} ; DROP ALL",
        "ASK {}\nINSERT DATA {}",
        "PREFIX a: <b> INSERT DATA {}",
        "BASE <b> DELETE DATA {}",
        "select * {} insert data {}",
    ),
    *(
        "ASK { '# ' } \nDROP ALL",
        "ASK { <a#b> } DROP ALL",
        "ASK { ?a<?b } DROP ALL",
        "ASK {} #\rDROP ALL",
        'ASK { "a\\"" } DROP ALL',
    ),
    *(
        "ASK { '''a''''} DROP ALL '",
        "ASK { ?x } # \\u000A DROP ALL",
        "\\u0044ROP ALL",
        'ASK { "\\u0022 } DROP ALL #" }',
        "ASK {}\u2028DROP ALL",
    ),
    *(
        "ASK { SERVICE <http://evil.example/> { ?s ?p ?o } }",
        "ASK { service silent ?x {} }",
        "DEFINE get:soft 'soft' SELECT * {}",
    ),
    *("SELECT * FROM <http://evil.example/?all> {}", "SELECT * FROM NAMED <http://evil.example/> {}", "SELECT * FROM evil:x {}"),
    *(
        "SELECT * FROM # <http://g.example/1>\n <http://evil.example/> {}",
        "ASK { \x00 }",
        "ASK { ` }",
        "<DROP> ALL",
        "ex:drop ALL",
        "'a' ASK {}",
    ),
    *('ASK { "unterminated }', "ASK {} DROP ALL", "ask{} ;;; drop/**/all", "ASK {} @prefix x DROP", "ASK { ?x \\u0061 ?y }"),
]


@pytest.mark.parametrize("query", READ)
def test_queries_that_read_are_taken(query: str) -> None:
    assert objection(query) is None


@pytest.mark.parametrize("query", NOT)
def test_what_writes_fetches_or_is_no_query_is_refused(query: str) -> None:
    why = objection(query, graphs=("http://g.example/1",))
    assert why is not None and "\n" not in why


def test_listed_graphs_and_federation_are_allowed_only_where_the_site_says_so() -> None:
    query = "SELECT * FROM <http://g/1> FROM NAMED <http://g/2> { SERVICE SILENT <http://x/> {} }"
    assert objection(query, graphs=("http://g/1", "http://g/2"), federation=True) is None
    assert "SERVICE" in (objection(query, graphs=("http://g/1", "http://g/2")) or "")
    assert "http://g/2" in (objection(query, graphs=("http://g/1",), federation=True) or "")


@given(st.sampled_from(READ), st.sampled_from(["DROP ALL", "INSERT DATA {}", "load <x>", "CLEAR DEFAULT"]), st.integers(0, 400))
def test_property_an_update_between_the_words_of_a_query_is_refused(query: str, update: str, at: int) -> None:
    words = query.split(" ")
    quoted = {"'", '"', "#"} & set(query)
    at %= len(words) + 1
    mixed = " ".join([*words[:at], update, *words[at:]])
    if not quoted:
        assert objection(mixed) is not None


@given(st.text(max_size=300))
def test_property_no_text_makes_it_raise(text: str) -> None:
    objection(text)


@pytest.mark.parametrize("part", ["a-", "<", "'", '"""', "\\", "a.", "_:", "?", "#\r", "(", "<a", "@a-", "a:a", "1e", "^"])
def test_hostile_repetition_takes_no_time(part: str) -> None:
    begun = time.monotonic()
    objection("ASK {" + part * (1_000_000 // len(part)))
    assert time.monotonic() - begun < 5
