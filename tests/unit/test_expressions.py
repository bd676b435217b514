"""Expressions: JMESPath's meaning, our variables and functions, and absent told from null."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import MappingError
from bridge.intake.expressions import ABSENT, ExpressionError, Frame, Needs, compile_expression
from bridge.intake.payload import parse_json


def evaluate(text: str, event: Any, frame: Frame | None = None) -> Any:
    return compile_expression(text, ()).get(event, frame or Frame())


KEYS = st.sampled_from(["a", "b", "c", "x"])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["", "a", "x", "1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
SAMPLES = [
    "a", "a.b.c", "a.b.c.x", "a[0]", "a[-1].b", "a[1:3]", "a[::-1]", "a[*].b", "a[].b", "a.*.b", "*.a", "[]", "[*].a.b",
    "[?a]", "[?a == 'x'].b", "[?a == `1`]", "[?a != b]", "[?!a]", "a[?b == 'x'].c | [0]", "a[?b > `0`]",
    "a || b", "a && b", "!a", "a == b", "a != `true`", "a <= b", "{p: a, q: b.c}", "[a, b, c]", "a.{p: b}",
    "a[*].[b, c]",
    "length(a)", "a.length(@)", "not_null(a, b, 'x')", "type(a)", "to_array(a)", "keys(@)", "values(a)", "sort(a)",
    "max(a)", "sum(a)", "map(&b, a)", "sort_by(a, &b)", "max_by(a, &b).c", "join(',', a)", "contains(a, 'x')",
    "to_string(a)", "reverse(a)", "merge(a, b)", "@", "@.a", "a | b", "(a | b).c", "a[?b][?c]", "a[*][0]", "a[?b].c[]",
    "`[1, 2]`[0]", "'raw'", "to_number(a)", "a[?contains(b, 'x')]", "a[?b && c].x", "[?a || b == 'x']",
]  # fmt: skip


@pytest.mark.parametrize("text", SAMPLES)
@given(document=DOCUMENTS)
def test_expressions_mean_what_jmespath_says(text: str, document: Any) -> None:
    """The library is the judge; it raises on comparing unlike things, where we say null."""
    try:
        expected = jmespath.search(text, document)
    except (ValueError, TypeError):
        with contextlib.suppress(ExpressionError):
            evaluate(text, document)
        return
    found = evaluate(text, document)
    assert (None if found is ABSENT else found) == expected
    assert isinstance(found, bool) is isinstance(expected, bool)  # to Python, 1 == True


@pytest.mark.parametrize(
    "text, document, expected",
    [
        ("a", {}, ABSENT),
        ("a", {"a": None}, None),
        ("a.b", {"a": None}, ABSENT),
        ("a.b", {"a": "text"}, ABSENT),
        ("a.b", {"a": {"b": None}}, None),
        ("a.b.c", {"a": {"b": []}}, ABSENT),
        ("a.b.c.d", {"a": {"b": {"c": {"d": 0}}}}, 0),
        ("a[0]", {"a": []}, ABSENT),
        ("a[0]", {"a": [None]}, None),
        ("a[0]", {"a": "text"}, ABSENT),
        ("a[1].b", {"a": [0, {"b": 2}]}, 2),
        ('"a-b"."c d"', {"a-b": {"c d": 1}}, 1),
        ("a || b", {"a": None}, ABSENT),  # no plain path: null means absent
    ],
)
def test_a_plain_path_tells_absent_from_null(text: str, document: Any, expected: object) -> None:
    """The key is there or it is not; what stands on the way is no key."""
    assert evaluate(text, document) is expected or evaluate(text, document) == expected


SCOPE = Frame(
    root={"meta": {"tenant": "t1"}, "events": [{"kind": "t1"}]},
    index=4,
    query={"env": "prod"},
    headers={"x_topic": "orders/create"},
)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("_root.meta.tenant", "t1"),
        ("_index", 4),
        ("_query.env", "prod"),
        ("_headers.x_topic", "orders/create"),
        ("_headers.x_other", ABSENT),
        ("items[?kind == _root.meta.tenant].name | [0]", "mine"),  # within a filter
        ("items[0].name | _headers.x_topic", "orders/create"),  # behind a pipe
        ("items[*].{n: name, i: _index}", [{"n": "mine", "i": 4}, {"n": "theirs", "i": 4}]),
        ("map(&join('/', [name, _query.env]), items)", ["mine/prod", "theirs/prod"]),
        ("split(_headers.x_topic, '/')[1]", "create"),
        ("@._index", "the event's own"),
        ("nested._index", "an ordinary key"),
        ("items[*]._root", ["inner"]),
    ],
)
def test_variables_have_their_meaning_at_the_head_of_a_path(text: str, expected: object) -> None:
    """Also in filters, projections and behind pipes; after a dot the same name is an ordinary key."""
    event = {
        "items": [{"kind": "t1", "name": "mine", "_root": "inner"}, {"kind": "t2", "name": "theirs"}],
        "_index": "the event's own",
        "nested": {"_index": "an ordinary key"},
    }
    assert evaluate(text, event, SCOPE) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("lower('ABC')", "abc"),
        ("upper('abc')", "ABC"),
        ("trim(' a ')", "a"),
        ("split('a,b', ',')", ["a", "b"]),
        ("replace(replace('1.234,50', '.', ''), ',', '.')", "1234.50"),
        ("parse_json('{\"a\": 1.10}').a", Decimal("1.10")),
        ("unescape_html('O&#039;Neill &amp; S&ouml;hne')", "O'Neill & Söhne"),
        ("items(o)", [["k", "v"]]),
        ("items(o)[?[0] == 'k'][1] | [0]", "v"),
        *((f"{name}(absent)", ABSENT) for name in ("lower", "upper", "trim", "parse_json", "items", "unescape_html")),
        ("split(absent, ',')", ABSENT),
        ("replace(absent, 'a', 'b')", ABSENT),
    ],
)
def test_our_functions_pass_null_on(text: str, expected: object) -> None:
    """Null in, null out."""
    assert evaluate(text, {"o": {"k": "v"}}) == expected


NUMBERS = b'{"n": [0.1, 0.3], "neg": -1.5, "o": [{"v": 1}, {"v": 0.5}], "big": 999999999999999999, "huge": 1e30}'


@pytest.mark.parametrize(
    "text, expected",
    [
        ("n[?@ > `0.2`]", [Decimal("0.3")]),
        ("sort(n)", [Decimal("0.1"), Decimal("0.3")]),
        ("sum(n)", Decimal("0.4")),
        ("max(n)", Decimal("0.3")),
        ("avg(n)", Decimal("0.2")),
        ("abs(neg)", Decimal("1.5")),
        ("ceil(neg)", -1),
        ("to_string(neg)", "-1.5"),
        ("to_number('0.10')", Decimal("0.10")),
        ("to_number('1e999999')", ABSENT),
        ("type(neg)", "number"),
        ("to_string(sum([big, big]))", "1999999999999999998"),
        ("to_string(ceil(huge))", "1" + "0" * 30),
        ("[`12345678901234567890`]", [Decimal(12345678901234567890)]),
        ("n[0] == `0.1`", True),
        ("sort_by(o, &v)[0].v", Decimal("0.5")),
        ("to_string(o)", '[{"v":1},{"v":0.5}]'),
    ],
)
def test_numbers_are_exact(text: str, expected: object) -> None:
    """0.1 is a tenth, in comparisons and functions."""
    assert evaluate(text, parse_json(NUMBERS)) == expected


@pytest.mark.parametrize("text", ["lower(`1`)", "split('a', '')", "parse_json('{')", "replace('a', '', 'b')", "sum(a)"])
def test_an_expression_that_fails_says_so_without_the_payload(text: str) -> None:
    """The message names the function, not the value."""
    with pytest.raises(ExpressionError) as caught:
        evaluate(text, {"a": ["secret"]})
    assert "secret" not in str(caught.value)
    assert not compile_expression(text, ()).matches({"a": ["secret"]}, Frame())


def test_html_is_read_as_far_as_a_property_can_hold_it() -> None:
    assert evaluate("unescape_html(t)", {"t": "&lt;".ljust(65_536)}) == "<".ljust(65_533)
    with pytest.raises(ExpressionError, match="takes at most 65536 characters"):
        evaluate("unescape_html(t)", {"t": "&" * 200_000})


def test_what_is_said_of_json_within_a_text_can_be_kept_and_shown() -> None:
    """The place of a flaw is made of the payload's keys."""
    with pytest.raises(ExpressionError, match=r"at /a\\x00\\nb is NaN") as caught:
        evaluate("parse_json(t)", {"t": '{"a\\u0000\\nb": NaN}'})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["", "a..b", "a[", "a ? b", "nosuch(a)", "length()", "length(a, b)", "'open", "a.[?",
     "&a", "{b: &a}", "not_null(&a)", "a[?&b]", "`1e999`", "`NaN`", '`{"a": ["\\ud800"]}`', f"`{'9' * 401}`"],
)  # fmt: skip
def test_what_is_not_jmespath_is_found_when_it_is_compiled(text: str) -> None:
    """Bad syntax, unknown functions, wrong numbers of arguments, and what no event can bear, in one line."""
    with pytest.raises(MappingError) as caught:
        compile_expression(text, ("properties", "x", "from"))
    assert caught.value.path == ("properties", "x", "from")
    assert "\n" not in caught.value.message


def test_only_what_is_looked_at_is_kept() -> None:
    """Header and query names are known in advance; a computed one means all."""
    needs = Needs(
        compile_expression(text, ())
        for text in ("_headers.x_topic", "a[?b == _query.env]", "_root.meta.tenant", "_root.list[0].x", "@._headers.no")
    )
    assert needs.headers == frozenset({"x_topic"})
    assert needs.query == frozenset({"env"})
    assert not needs.index
    root = {"meta": {"tenant": "t", "more": 1}, "list": [{"x": 1}], "events": [1, 2, 3]}
    assert needs.root_of(root) == {"meta": {"tenant": "t"}, "list": [{"x": 1}]}
    everything = Needs([compile_expression("keys(_headers)", ()), compile_expression("_root", ())])
    assert everything.headers is None
    headers = {"X-A": "1", "Cookie": "c"}
    assert everything.headers_of(headers, hidden=frozenset({"cookie"})) == {"x_a": "1"}
    assert everything.root_of(root) == root
