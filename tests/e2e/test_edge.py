"""F40–F43, F51 and F54 with a real service: hostile requests by the byte, and what is left of them afterwards."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.http.limits import MAX_WRONG_TOKENS
from bridge.sandbox import Crm, SandboxServer
from tests.examples import examples
from tests.raw_http import Answer, chunked, exchange, request
from tests.running import ACME, Running, eventually, running

NONE = "verify: {scheme: none}\n    event_id: id\n    record: {id: client, id_property: acme_client_id}"
#: One value on its way into every type of property.
PROPERTIES = """\
properties:
      text: v
      number: {from: v, type: number}
      scaled: {from: v, type: number, scale: 0.01}
      date: {from: v, type: date}
      datetime: {from: v, type: datetime, timezone: Europe/Madrid}
      flag: {from: v, type: bool}
      choice: {from: v, type: enumeration}
      choices: {from: v, type: enumeration, multiple: true}
      phone: {from: v, type: phone_number}
      email: {from: v, type: string, format: email}"""
SOURCES = f"""{ACME}
  small:
    {NONE}
    max_body: 1000
    properties: {{company_name: name}}
  big:
    {NONE}
    properties: {{company_name: name}}
  asks:
    {NONE}
    properties: {{company_name: _query.q, notes: _headers.x_note, tier: _query.id}}
  typed:
    {NONE}
    occurred_at: at
    {PROPERTIES}
  strict:
    {NONE}
    on_invalid: reject
    {PROPERTIES}
"""
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
CLOSE = "Connection: close"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("edge")
    with SandboxServer(Crm()) as sandbox, running(folder, sandbox.url, sources=SOURCES) as started:
        yield started


def post(service: Running, source: str, body: bytes, *headers: str) -> Answer:
    parts = request("POST", f"/webhooks/{source}", JSON, CLOSE, *headers, body=body)
    return exchange(service.port, parts, wait_s=60).only


def refused(answer: Answer, status: int, slug: str) -> str:
    """The detail of a refusal."""
    document = answer.problem()
    assert (answer.status, document["type"]) == (status, f"urn:partner-bridge:problem:{slug}")
    return str(document["detail"])


def memory(service: Running, figure: str = "VmRSS") -> int:
    """Bytes of the largest process of the service."""
    texts = [Path(f"/proc/{pid}/status").read_text(encoding="utf-8") for pid in service.pids()]
    return max(int(text.partition(f"{figure}:")[2].split()[0]) for text in texts) * 1024


def assert_sound(service: Running) -> None:
    """Everything taken is delivered or parked, and nothing went wrong on the way."""
    assert eventually(service.idle)
    errors = [line for line in service.log.read_text(encoding="utf-8").splitlines() if '"level":"error"' in line]
    assert errors == []
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


# --- sizes --------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    return b'{"id": "padded", "client": "c"}'.ljust(size)


@pytest.mark.parametrize("size, status", [(999, 202), (1000, 202), (1001, 413), (5000, 413)])
def test_f40_the_limit_holds_to_the_byte(service: Running, size: int, status: int) -> None:
    """Announced, in chunks of any size, inflated: never a truncated body that happens to be JSON."""
    body = padded(size)
    sent = [
        request("POST", "/webhooks/small", JSON, CLOSE, body=body),
        request("POST", "/webhooks/small", JSON, CLOSE, CHUNKED) + chunked(body),
        request("POST", "/webhooks/small", JSON, CLOSE, CHUNKED) + chunked(*[body[n : n + 1] for n in range(size)]),
        request("POST", "/webhooks/small", JSON, CLOSE, CHUNKED) + chunked(body[:31], body[31:]),
        request("POST", "/webhooks/small", JSON, CLOSE, "Content-Encoding: gzip", body=gzip.compress(body)),
        request("POST", "/webhooks/small", JSON, CLOSE, "Content-Encoding: gzip", CHUNKED)
        + chunked(gzip.compress(body)),
    ]
    for data in sent:
        answer = exchange(service.port, data).only
        assert answer.status == status
        if status == 413:
            assert "1000" in refused(answer, 413, "too-large")


def test_f40_lengths_that_lie(service: Running) -> None:
    """Too long: the body was cut off. Too short: the rest is no request. None at all: there is no body."""
    body = b'{"id": "lying", "client": "c"}'
    longer = request("POST", "/webhooks/small", JSON, f"Content-Length: {len(body) + 9}") + body
    assert "cut off" in refused(exchange(service.port, longer, ends=True).only, 400, "malformed")
    shorter = exchange(
        service.port, request("POST", "/webhooks/small", JSON, "Content-Length: 9") + body + b"\r\n", answers=2
    )
    assert [answer.status for answer in shorter.answers] == [400, 400]
    assert shorter.closed
    none = exchange(service.port, request("POST", "/webhooks/small", JSON) + body, ends=True)
    assert "empty" in refused(none.answers[0], 400, "malformed")
    claimed = request("POST", "/webhooks/big", JSON, f"Content-Length: {1 << 30}") + body
    assert "1048576" in refused(exchange(service.port, claimed).only, 413, "too-large")
    listed = requests.get(f"{service.admin_url}/api/trace/lying", timeout=5)
    assert listed.status_code == 404


@pytest.mark.parametrize(
    "sent",
    [
        b"1e\r\n{" + b'"id": "lying"',  # within a chunk
        b'1e\r\n{"id": "lying", "client": "c"}',  # before the end of the chunk
        b'1e\r\n{"id": "lying", "client": "c"}\r\n',  # before the last chunk
        b'1e\r\n{"id": "lying", "client": "c"}\r\n0\r\n',  # before the end of the last chunk
        b'1e\r\n{"id": "lying", "client": "c"}\r\n0\r\na: b\r\n',  # within the trailers
        b"1" + b"0" * 16 + b'1e\r\n{"id": "lying", "client": "c"}\r\n0\r\n\r\n',  # a size beyond 64 bits
        b"",
    ],
)
def test_f40_chunks_that_are_cut_off_are_refused(service: Running, sent: bytes) -> None:
    """Also where the JSON in them is complete already; without a traceback."""
    head = request("POST", "/webhooks/small", JSON, CHUNKED)
    refused(exchange(service.port, head + sent, ends=True).only, 400, "malformed")
    assert requests.get(f"{service.admin_url}/api/trace/lying", timeout=5).status_code == 404
    assert_sound(service)


def test_f40_an_endless_body_is_cut_with_flat_memory(service: Running) -> None:
    """Many at a time; the senders hear 413 at once or find the connection closed."""
    before = memory(service)
    head = request("POST", "/webhooks/big", JSON, CHUNKED)
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"

    def send(_: int) -> list[int]:
        return [answer.status for answer in exchange(service.port, head, *[piece] * 160).answers]

    with ThreadPoolExecutor(8) as pool:
        assert all(statuses in ([413], []) for statuses in pool.map(send, range(24)))
    assert memory(service, "VmHWM") - before < 64 << 20
    assert post(service, "big", b'{"id": "after", "client": "c"}').status == 202


def bomb(megabytes: int) -> bytes:
    deflating = zlib.compressobj(9, zlib.DEFLATED, 31)
    blocks = [deflating.compress(bytes(1 << 20)) + deflating.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
    return blocks[0] + blocks[1] * (megabytes - 1)


def test_f42_gzip_bombs_are_cut_with_flat_memory(service: Running) -> None:
    """A megabyte that would be a gigabyte, again and again."""
    body = bomb(950)
    assert len(body) < 1 << 20
    before = memory(service)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(service, "big", body, "Content-Encoding: gzip"), range(16)))
    for answer in answers:
        refused(answer, 413, "too-large")
    assert memory(service, "VmHWM") - before < 64 << 20


def test_f42_other_codings_are_refused(service: Running) -> None:
    """Whatever it is called; gzip twice is one of them, or no JSON."""
    body = b'{"id": "coded", "client": "c"}'
    for coding in ("br", "deflate", "zstd", "compress", "gzip, gzip", "gzip,identity", "x", "gzip;q=1", "*"):
        answer = post(service, "big", gzip.compress(gzip.compress(body)), f"Content-Encoding: {coding}")
        refused(answer, 415, "unsupported-media-type")
        assert answer.headers["accept-encoding"] == "gzip"
    twice = post(service, "big", gzip.compress(gzip.compress(body)), "Content-Encoding: gzip")
    refused(twice, 400, "malformed")
    for damaged in (body, gzip.compress(body)[:-1], gzip.compress(body) + b"x", b"\x1f\x8b"):
        refused(post(service, "big", damaged, "Content-Encoding: gzip"), 400, "malformed")
    assert post(service, "big", gzip.compress(body), "Content-Encoding: GZIP").status == 202


# --- values -------------------------------------------------------------------------------------

#: What stands for a value, and where the refusal says that it stands; None where it is taken.
VALUES: dict[bytes, str | None] = {
    b"1e999": "/v",
    b"-1e401": "/v",
    b"NaN": "/v",
    b"Infinity": "/v",
    b"-Infinity": "/v",
    b"9" * 5_000: "/v",
    b'{"k": [' + b"9" * 401 + b"]}": "/v/k/0",
    b'{"k": 1, "k": 2}': "/v",
    b"{" + b",".join(b'"%d":0' % number for number in range(100_000)) + b"}": "/v",
    b"[" * 70 + b"]" * 70: "64 levels",
    b"[" * 200_000: "64 levels",
    b"\xff": "byte",
    b'"\xed\xa0\x80"': "byte",
    b"01": "line 1",
    b"'a'": "line 1",
    b'"\n"': "line 1",
    b"1e400": None,
    b"-0": None,
    b"-0.0": None,
    b"1e-400": None,
    b"1" * 400: None,
    b"12345678901234567890": None,
    b'"\\u0000"': None,
    b'"\\ud800"': None,
    b'{"\\udfff": 1}': None,
    b'"\\ud83d\\ude00 \\u202e\\u0007\\u001b[31m"': None,
    '{"\u05d0😀": "\u202e"}'.encode(): None,
    b'{"__proto__": {"__class__": "x"}, "constructor": null}': None,
    b"[[[[1]]]]": None,
    b"true": None,
    b"null": None,
    b'""': None,
    b'";a;b"': None,
    b'"' + b"x" * 70_000 + b'"': None,
    b'"9999-12-31T23:59:59.999999+14:00"': None,
    b'"0000-00-00"': None,
    b'"+' + b"9" * 400 + b'"': None,
    b'"1e400"': None,
    b'"1e999999999"': None,
    b'"NaN"': None,
    b"253402300800": None,
    b"-62135596801": None,
}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[:24]))
def test_f41_a_strange_value_is_refused_with_its_place_or_taken(service: Running, value: bytes) -> None:
    """As a property of every type, and as an id and a time; what is taken never stumbles later."""
    place = VALUES[value]
    for source in ("typed", "strict"):
        answer = post(service, source, b'{"id": "v", "client": "v", "at": 1, "v": ' + value + b"}")
        if place is not None:
            assert place in refused(answer, 400, "malformed")
        elif answer.status == 422:
            assert source == "strict"
            assert answer.problem()["errors"]
        else:
            assert answer.status == 202
    for name in ("id", "client", "at"):
        others = {"id": "w", "client": "w", "at": 1, "v": "x"} | {name: "TOKEN"}
        answer = post(service, "typed", orjson.dumps(others).replace(b'"TOKEN"', value))
        assert answer.status == (202 if place is None else 400)
    assert_sound(service)


@pytest.mark.parametrize(
    "body, detail",
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b'"text"', "single value"),
        (b"7", "single value"),
        (b"null", "nothing"),
        (b"[1]", "element 0"),
        (b'[{"id": "x", "client": "x"}, null]', "element 1"),
        ('{"id": "x", "client": "x"}'.encode("utf-16"), "UTF-8"),
        ('{"id": "x", "client": "x"}'.encode("utf-16-be"), "line 1"),
        ('{"id": "x", "client": "x"}'.encode("utf-32"), "UTF-8"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "line 1"),
        (b'{"id": "x", "client": "x"}\0', "line 1"),
        (b'{"id": "x", "client": "x"}{}', "line 1"),
        (b'\x1f\x8b{"id": "x", "client": "x"}', "UTF-8"),
    ],
)
def test_f41_what_is_no_event_is_refused(service: Running, body: bytes, detail: str) -> None:
    """With the reason; a byte order mark alone is skipped."""
    assert detail in refused(post(service, "big", body), 400, "malformed")
    assert post(service, "big", b'\xef\xbb\xbf{"id": "bom", "client": "x"}').status == 202


@pytest.mark.parametrize(
    "query",
    ["q=%00", "q=%ff%ed%a0%80", "q=%", "q=1&q=2", "=&&&;q", "q=" + "%22" * 900, "q=%0a%1b%5b31m", "q[a]=1", "q"],
)
def test_f41_queries_and_headers_that_are_mapped_are_no_way_around(service: Running, query: str) -> None:
    """They become values like any other: taken, or invalid by themselves."""
    for note in ("\xff\xfe\x80", "\tx\t", "x" * 8_000, ""):
        body = b'{"id": "asks", "client": "asks"}'
        data = request("POST", f"/webhooks/asks?{query}", JSON, CLOSE, f"X-Note: {note}", body=body)
        assert exchange(service.port, data).only.status == 202
    assert_sound(service)


def test_f41_the_number_of_events_of_a_request_is_bounded(service: Running) -> None:
    """A megabyte of nothing must not become a gigabyte in memory; more than partners send at once is taken."""
    before = memory(service)
    assert "at most 10000" in refused(post(service, "big", b"[" + b"{}," * 340_000 + b"{}]"), 400, "malformed")
    assert post(service, "big", b"[" + b"{}," * 9_999 + b"{}]").status == 202
    assert memory(service, "VmHWM") - before < 200 << 20


STRANGE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([*range(-2, 3), 10**18, 10**19, 10**400, 1e308, 5e-324, "\0", ";", "1e400", "2026-02-30", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["id", "v"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event=st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "client", "at", "v"), STRANGE)))
def test_f41_no_event_whatever_makes_the_service_stumble(service: Running, event: dict[str, object]) -> None:
    """Python's own idea of JSON, NaN and halves of surrogate pairs too."""
    for source, statuses in (("typed", {202, 400}), ("strict", {202, 400, 422})):
        assert post(service, source, json.dumps(event).encode("utf-8", "surrogatepass")).status in statuses


def test_f41_nothing_of_all_that_stumbled_in_delivery(service: Running) -> None:
    """After everything above."""
    assert_sound(service)


# --- routes -------------------------------------------------------------------------------------

PUBLIC = {
    ("GET", "/"): 404,
    ("GET", "/metrics"): 404,
    ("GET", "/status"): 404,
    ("GET", "/openapi.json"): 404,
    ("GET", "/api/retries"): 404,
    ("POST", "/api/pause"): 404,
    ("GET", "/favicon.ico"): 404,
    ("GET", "/static/x"): 404,
    ("GET", "//livez"): 404,
    ("GET", "/livez/"): 404,
    ("GET", "/LIVEZ"): 404,
    ("GET", "/livez%00"): 404,
    ("GET", "/%2e%2e/status"): 404,
    ("GET", "/../status"): 404,
    ("GET", "/webhooks/../status"): 404,
    ("GET", "/webhooks/..%2fstatus"): 404,
    ("GET", "/%"): 404,
    ("GET", "/%ff%ed%a0%80%zz"): 404,
    ("GET", "//[::1/"): 404,
    ("GET", "/%0d%0aX-Injected:%20yes"): 404,
    ("OPTIONS", "*"): 404,
    ("POST", "/webhooks"): 404,
    ("POST", "/webhooks/"): 404,
    ("POST", "/webhooks/small/"): 404,
    ("POST", "//webhooks//small"): 404,
    ("POST", "/webhooks//small"): 404,
    ("POST", "/webhooks/nobody"): 404,
    ("POST", "/webhooks/" + "n" * 4_000): 404,
    ("POST", "/livez"): 405,
    ("OPTIONS", "/livez"): 405,
    ("DELETE", "/readyz"): 405,
    ("GET", "/webhooks/small"): 405,
    ("OPTIONS", "/webhooks/small"): 405,
    ("PUT", "/webhooks/small"): 405,
    ("TRACE", "/webhooks/small"): 405,
    ("PROPFIND", "/webhooks/small"): 405,
    ("post", "/webhooks/small"): 400,
    ("GET", "/livez?" + "q" * 5_000): 414,
    ("GET", "/livez?" + "q=%00&" * 600): 200,
    ("GET", "http://evil.test/livez"): 200,
    ("GET", "/livez"): 200,
    ("GET", "/readyz"): 200,
}


@pytest.mark.parametrize("method, target", PUBLIC, ids=lambda text: text[:30])
def test_f43_the_public_port_answers_webhooks_and_health_only(service: Running, method: str, target: str) -> None:
    """Everything else is a problem; no answer tells versions, paths or what else there is."""
    status = PUBLIC[method, target]
    found = exchange(service.port, request(method, target, CLOSE))
    assert found.only.status == status
    if status != 200:
        assert found.only.problem()
    if status == 405:
        assert found.only.headers["allow"] in {"POST", "GET, HEAD", "HEAD, GET"}
    assert "x-injected" not in found.only.headers
    assert not any(digit in found.only.headers.get("server", "") for digit in "0123456789")
    assert b"Traceback" not in found.only.body


def test_f43_head_is_answered_without_a_body(service: Running) -> None:
    """200 for health, 405 for webhooks, 404 elsewhere; the connection stays in step."""
    for target, status in (("/livez", 200), ("/readyz", 200), ("/webhooks/small", 405), ("/metrics", 404)):
        found = exchange(service.port, request("HEAD", target), request("HEAD", "/livez", CLOSE), answers=2, head=True)
        assert [answer.status for answer in found.answers] == [status, 200]


@pytest.mark.parametrize(
    "status, data",
    [
        (414, request("GET", "/" + "a" * 5_000)),
        (431, request("GET", "/livez", "X-Long: " + "a" * 9_000)),
        (431, request("GET", "/livez", *[f"X-{number}: a" for number in range(101)])),
        (431, request("GET", "/livez", "User-Agent: " + "a" * 1_000_000)),
        (431, request("GET", "/livez", *[f"X-{number}: {'a' * 8_000}" for number in range(9)])),
        (400, request("GET", "/livez", "no colon")),
        (400, request("GET", "/livez", "X-A: \x1b[31m")),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        (417, request("GET", "/livez", "Expect: the-unexpected")),
        (501, request("POST", "/webhooks/small", JSON, "Transfer-Encoding: x")),
        (400, request("GET", "/livez", host="a" * 300)),
    ],
)
@pytest.mark.parametrize("public", [True, False], ids=["public", "admin"])
def test_f43_what_the_server_refuses_by_itself_is_a_problem_too(
    service: Running, data: bytes, status: int, *, public: bool
) -> None:
    """On both ports; the connection is closed where the next request's beginning is unknown."""
    found = exchange(service.port if public else service.admin_port, data)
    assert found.only.status == status
    assert found.only.problem()
    assert found.closed or b"a" * 300 in data


def test_f43_every_limit_lets_through_what_is_below_it(service: Running) -> None:
    """What partners send fits easily."""
    many = [f"X-{number}: a" for number in range(95)]
    long = "X-Long: " + "a" * 8_000
    for data in (
        request("GET", "/livez?" + "q" * 4_000, CLOSE),
        request("GET", "/livez", CLOSE, *many),
        request("GET", "/livez", CLOSE, long),
    ):
        assert exchange(service.port, data).only.status == 200


def test_f43_a_header_that_is_expected_is_continued(service: Running) -> None:
    """`Expect: 100-continue`, as curl sends it."""
    body = b'{"id": "expected", "client": "c"}'
    found = exchange(service.port, request("POST", "/webhooks/big", JSON, "Expect: 100-continue", body=body))
    assert [answer.status for answer in found.answers] == [100, 202]


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "a" * 999,
    ],
)
def test_f43_other_media_types_are_refused(service: Running, content_type: str) -> None:
    """Whatever the body is."""
    data = request("POST", "/webhooks/big", f"Content-Type: {content_type}", CLOSE, body=b'{"id": "t", "client": "c"}')
    refused(exchange(service.port, data).only, 415, "unsupported-media-type")


# --- logs ---------------------------------------------------------------------------------------

SECRET = "a-token-that-no-log-may-show"
REFUSED_WITH_SECRETS = [
    request("POST", f"/webhooks/acme?token={SECRET}", JSON, f"Authorization: Bearer {SECRET}", body=b"{}"),
    request("POST", "/webhooks/acme", JSON, f"webhook-signature: {SECRET}", "webhook-id: x", body=b"{}"),
    request("POST", f"/webhooks/{SECRET}", JSON, body=b"{}"),
    request("GET", f"/nowhere?token={SECRET}"),
    request("PUT", f"/webhooks/small?token={SECRET}"),
    request("GET", f"/livez?token={SECRET}\x01"),
    request("GET", f"/livez?token={SECRET}" + "x" * 5_000),
    request("GET", "/livez", f"Authorization Bearer {SECRET}"),
    request("GET", "/livez", f"Authorization: Bearer {SECRET}\x00"),
    request("GET", "/livez", f"Expect: {SECRET}"),
    request("POST", "/webhooks/small", JSON, f"Transfer-Encoding: {SECRET}"),
    request("POST", "/webhooks/small", JSON, CHUNKED) + SECRET.encode() + b"\r\n",
    f"GET /{SECRET}\r\n\r\n".encode(),
    request("POST", "/webhooks/small", JSON, body=f'{{"id": "{SECRET}", "client": NaN}}'.encode()),
    request("POST", "/webhooks/strict", JSON, body=f'{{"id": "s", "client": "c", "v": "{SECRET}"}}'.encode()),
]


def test_f51_secrets_in_urls_headers_and_bodies_stay_out_of_the_log(service: Running) -> None:
    """Refused by the server, by the routes, by verification or by the mapping."""
    for data in REFUSED_WITH_SECRETS:
        assert exchange(service.port, data).answers[0].status >= 400
        exchange(service.admin_port, data)
    exchange(service.port, request("GET", "/livez", "marker without a colon"))
    assert eventually(lambda: service.log.read_text(encoding="utf-8").rstrip().endswith("}"))
    shown = service.log.read_text(encoding="utf-8") + requests.get(f"{service.admin_url}/metrics", timeout=5).text
    assert "request unreadable" in shown
    assert SECRET not in shown


HOSTILE = 'x\r\n{"event":"forged","level":"error"}\n\x1b[2J\x1b[31mred\x07\u2028\u202e'


def test_f51_nothing_that_a_sender_writes_makes_a_line_of_its_own(service: Running) -> None:
    """Every line is one JSON object of ours, escaped and of bounded length; also where ids are logged."""
    for number in range(2):  # other content under one id: that is logged, with the id
        events = [{"id": HOSTILE + "i" * 100, "client": "c", "name": str(number)}]
        assert post(service, "big", orjson.dumps(events)).status == 202
    escaped = "%0d%0a%7b%22event%22:%22forged%22%7d%1b[31m"
    for target in (f"/webhooks/{escaped}", f"/webhooks/big?{escaped}", f"/{escaped}"):
        exchange(service.port, request("POST", target, JSON, CLOSE, body=b"{}"))
    for header in ("User-Agent: \x1b[31m", "User-Agent: " + "a" * 1_000_000, "X-A: b\rforged", "\x1b[31m: a"):
        exchange(service.port, request("GET", "/livez", header))

    def text() -> str:
        return service.log.read_text(encoding="utf-8")

    assert eventually(lambda: "event id used again" in text())
    assert "\x1b" not in text()
    assert "\r" not in text()
    for line in text().split("\n"):
        assert len(line) < 4_096
        if line and not line.startswith("warning: "):  # those of the configuration, at start
            assert orjson.loads(line)["event"] != "forged"


def test_f51_lines_for_people_are_escaped_too(tmp_path: Path) -> None:
    """`BRIDGE_LOG_FORMAT=console` on a terminal that would obey."""
    environ = {"BRIDGE_LOG_FORMAT": "console"}
    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url, sources=SOURCES, environ=environ) as service:
        for number in range(2):
            events = [{"id": HOSTILE, "client": "c", "name": str(number)}]
            assert post(service, "big", orjson.dumps(events)).status == 202
        assert eventually(lambda: "event id used again" in service.log.read_text(encoding="utf-8"))
        lines = service.log.read_text(encoding="utf-8")
        assert "\x1b" not in lines
        assert not any(line.startswith('{"event":"forged"') for line in lines.splitlines())


def test_metrics_count_what_was_refused(service: Running) -> None:
    """Also what never became a request."""
    assert post(service, "small", padded(1001)).status == 413
    assert post(service, "nobody", b"{}").status == 404
    assert post(service, "typed", b"{").status == 400
    plain = request("POST", "/webhooks/big", "Content-Type: text/plain", CLOSE, body=b"{}")
    assert exchange(service.port, plain).only.status == 415
    long = request("POST", "/webhooks/big", JSON, CLOSE, f"X-Long: {'x' * 9_000}", body=b"{}")
    assert exchange(service.port, long).only.status == 431
    text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    for source, code in (("unknown", 431), ("unknown", 404), ("small", 413), ("big", 415), ("typed", 400)):
        assert f'bridge_webhooks_total{{code="{code}",source="{source}"}}' in text


# --- the admin port -----------------------------------------------------------------------------

CLOSED = ["/", "/openapi.json", "/api/retries", "/api/retries/x", "/api/events", "/api/trace/x", "/api/pause", "/x"]
TRICKS = ["//metrics/../api/pause", "/metrics/", "/metrics/../api/events", "/%2fmetrics", "/METRICS", "/status;x"]


@pytest.mark.parametrize("token", [None, "a-token-of-more-than-sixteen-characters"])
def test_f54_beyond_loopback_only_health_metrics_and_status_are_open(tmp_path: Path, token: str | None) -> None:
    """Without a token configured the rest is off, with one it asks for it, and for patience after ten wrong ones; for
    every method, host and path.
    """
    made = Running(tmp_path, "http://127.0.0.1:9", environ={} if token is None else {"BRIDGE_ADMIN_TOKEN": token})
    text = made.config.read_text(encoding="utf-8")
    text = text.replace(f"admin_bind: 127.0.0.1:{made.admin_port}", f"admin_bind: 0.0.0.0:{made.admin_port}")
    if token is not None:
        text = text.replace("  workers:", "  admin_token: {env: BRIDGE_ADMIN_TOKEN}\n  workers:")
    made.config.write_text(text, encoding="utf-8")
    closed, slug = (403, "forbidden") if token is None else (401, "unauthorized")
    try:
        made.start()
        for path in ("/livez", "/readyz", "/metrics", "/status"):
            assert requests.get(made.admin_url + path, timeout=5).status_code == 200
        for host in ("bridge.test", "localhost", "127.0.0.1"):
            for path in CLOSED:
                refused(exchange(made.admin_port, request("GET", path, CLOSE, host=host)).only, closed, slug)
            for path in TRICKS:
                answer = exchange(made.admin_port, request("GET", path, CLOSE, host=host)).only
                assert answer.problem()["status"] in {closed, 404}, path
        guessed = 0
        for method, path in (
            ("POST", "/api/pause"),
            ("DELETE", "/api/pause"),
            ("POST", "/api/resync"),
            ("POST", "/api/retries/replay"),
            ("POST", "/api/retries/discard"),
            ("POST", "/api/events/replay"),
            ("OPTIONS", "/api/pause"),
        ):
            for said in ("Authorization: Bearer", "Authorization: Bearer x", f"X-Authorization: Bearer {token}"):
                data = request(method, path, JSON, CLOSE, said, "X-Forwarded-For: 127.0.0.1", body=b'{"all": true}')
                guessed += token is not None and said.startswith("Authorization")
                tired = guessed > MAX_WRONG_TOKENS and said.startswith("Authorization")
                expected = (429, "too-many-requests") if tired else (closed, slug)
                refused(exchange(made.admin_port, data).only, *expected)
        assert made.status()["pauses"] == []
        if token is not None:
            data = request("POST", "/api/pause", JSON, CLOSE, f"Authorization: Bearer {token}", body=b"{}")
            assert exchange(made.admin_port, data).only.status == 200
    finally:
        made.stop()


def test_f54_the_admin_port_takes_no_webhooks_and_no_endless_bodies(service: Running) -> None:
    """Which port it is decides, not the path; acts have a limit of their own, in chunks too."""
    sent = request("POST", "/webhooks/big", JSON, CLOSE, host="localhost", body=b'{"id": "a", "client": "c"}')
    refused(exchange(service.admin_port, sent).only, 404, "not-found")
    head = request("POST", "/api/resync", JSON, CLOSE, CHUNKED, host="localhost")
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    found = exchange(service.admin_port, head, *[piece] * 64)
    assert [answer.status for answer in found.answers] in ([413], [])
