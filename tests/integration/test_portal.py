"""`check --portal` and `init --portal` against the sandbox's Properties API, over real HTTP."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from bridge.cli import run
from bridge.config import examine
from bridge.crm.oauth import OAuthTokens
from bridge.crm.tokens import StoredToken
from bridge.journal import versions
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.sandbox import Crm, Fault, PropertyDefinition, Response, SandboxServer
from bridge.settings import Journal as JournalSettings
from bridge.settings import OAuth, Secret
from tests import forked
from tests.running import free_port

TOKEN = "pat-eu1-0b8f4c1e"

SOUND = """\
crm: {{base_url: "{url}", token: {{env: HUBSPOT_ACCESS_TOKEN}}, timeout: 2s}}
sources:
  acme:
    verify: {{scheme: hmac, header: X-Signature, secrets: [{{env: ACME_SECRET}}]}}
    event_id: id
    record: {{id: client.id, id_property: acme_client_id}}
    properties:
      company_name: client.name
      annual_revenue: {{from: client.arr, type: number}}
      renewal_date: {{from: client.renews, type: date}}
      last_seen_at: {{from: client.seen, type: datetime}}
      active: {{from: client.active, type: bool}}
      phone: {{from: client.phone, type: phone_number}}
      tier: {{from: client.plan, type: enumeration, values: {{Gold: gold, "*": bronze}}}}
      products: {{from: client.products, type: enumeration, multiple: true}}
      lifecycle: {{constant: active}}
      hubspot_owner_id: client.owner
"""

_OAUTH = "oauth: {{client_id: id, client_secret: {{env: CLIENT_SECRET}}, refresh_token: {{env: REFRESH_TOKEN}}}}"
BY_OAUTH = SOUND.replace("token: {{env: HUBSPOT_ACCESS_TOKEN}}", _OAUTH) + "journal: {{url: 'sqlite:///journal.db'}}\n"

FAULTY = """\
crm: {{base_url: "{url}", token: {{env: HUBSPOT_ACCESS_TOKEN}}, timeout: 2s}}
sources:
  acme:
    verify: {{scheme: hmac, header: X-Signature, secrets: [{{env: ACME_SECRET}}]}}
    event_id: id
    mappings:
      - record: {{id: client.id, id_property: company_name}}
        properties:
          compny_name: client.name
          hs_health_score: {{from: client.score, type: number}}
          hs_lastmodifieddate: {{from: client.changed, type: datetime}}
          annual_revenue:
            from: client.arr
            type: bool
          tier:
            from: client.plan
            type: enumeration
            values:
              Gold: gold
              Other: platinum
          lifecycle: {{constant: Actve}}
          products: {{from: client.product, type: enumeration}}
      - record: {{id: client.id, id_property: erp_key}}
        pairs:
          in: fields
          name: key
          value: value
          properties:
            revenue: {{to: annual_revenue}}
            zip: shoe_size
"""


@pytest.fixture(name="crm")
def _crm() -> Crm:
    return Crm(open_properties=False, tokens=[TOKEN])


@pytest.fixture(name="url")
def _url(crm: Crm) -> Iterator[str]:
    with SandboxServer(crm) as server:
        yield server.url


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("BRIDGE_CONFIG", "BRIDGE_BIND", "BRIDGE_ADMIN_BIND", "BRIDGE_JOURNAL_URL", "HUBSPOT_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HUBSPOT_ACCESS_TOKEN", TOKEN)
    monkeypatch.setenv("ACME_SECRET", "0123456789abcdef0123456789abcdef")


def write(text: str, url: str) -> None:
    Path("bridge.yaml").write_text(text.format(url=url), encoding="utf-8")


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(*arguments)


def asked(crm: Crm) -> list[str]:
    return [call.path for call in crm.ledger.calls()]


# --- check --portal: what the portal says -----------------------------------------------------------


def test_a_mapping_that_fits_is_sound_and_asks_once(crm: Crm, url: str) -> None:
    write(SOUND, url)
    done = command_line("check", "--portal")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "bridge.yaml: sound (1 source, 1 mapping, 0 examples)\nthe portal agrees about partner_clients\n"
    )
    assert asked(crm) == ["/crm/v3/properties/partner_clients"]


def test_all_that_does_not_fit_is_told_at_once_each_with_its_line(url: str) -> None:
    write(FAULTY, url)
    done = command_line("check", "--portal")

    assert (done.returncode, done.stdout) == (1, "")
    told = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    expected = [
        ("7: sources.acme.mappings[0].record.id_property", "unique are: acme_client_id, external_id"),
        ("9: sources.acme.mappings[0].properties.compny_name", "did you mean company_name?"),
        ("10: sources.acme.mappings[0].properties.hs_health_score", "hs_health_score is calculated by HubSpot; "),
        ("11: sources.acme.mappings[0].properties.hs_lastmodifieddate", "is read-only in the portal; "),
        ("14: sources.acme.mappings[0].properties.annual_revenue.type", "write `type: number`"),
        ("20: sources.acme.mappings[0].properties.tier.values.Other", "has no option 'platinum' in the portal; "),
        ("21: sources.acme.mappings[0].properties.lifecycle.constant", "did you mean 'active'?"),
        ("22: sources.acme.mappings[0].properties.products.type", "write `multiple: true`"),
        ("23: sources.acme.mappings[1].record.id_property", "the portal's partner_clients has no property erp_key; "),
        ("29: sources.acme.mappings[1].pairs.properties.revenue", "write `type: number`"),
        ("30: sources.acme.mappings[1].pairs.properties.zip", "has no property shoe_size; create it there, or"),
    ]
    for line, (place, message) in zip(told, expected, strict=True):
        assert line.startswith(f"bridge.yaml:{place}: ")
        assert message in line


def test_problems_of_the_portal_come_as_json_beside_the_others(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = "    examples: [{{payload: {{id: e1}}, ignored: true}}]\n"
    write(SOUND.replace("      company_name:", "      company_nme:") + example, url)

    assert run(["check", "--portal", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["line"], one["path"]) for one in found] == [
        (18, "sources.acme.examples[0]"),
        (8, "sources.acme.properties.company_nme"),
    ]


def test_each_object_type_is_asked_once(crm: Crm, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    crm.define("contacts", "email")
    crm.define("contacts", "firstname", "number")
    contacts = (
        "      - {{object_type: contacts, record: {{id: id, id_property: email}}, properties: {{firstname: name}}}}\n"
    )
    clients = "      - {{record: {{id: id}}, properties: {{notes: notes}}}}\n"
    head = SOUND.partition("    record:")[0] + "    mappings:\n"
    write(head + clients + contacts + clients + contacts, url)

    assert run(["check", "--portal"]) == 1
    err = capsys.readouterr().err
    assert [line.split(":")[1] for line in err.splitlines()] == ["8", "10"]  # nothing about `email`: HubSpot's own
    assert asked(crm) == ["/crm/v3/properties/partner_clients", "/crm/v3/properties/contacts"]


def test_a_property_that_is_retired_or_changes_is_noticed(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SOUND, url)
    crm.properties.retire("partner_clients", "company_name")
    crm.properties.define("partner_clients", PropertyDefinition("acme_client_id"))

    assert run(["check", "--portal"]) == 1
    err = capsys.readouterr().err
    assert "properties.company_name: the portal's partner_clients has no property company_name" in err
    assert "acme_client_id is not unique in the portal, so it identifies no record; unique are: external_id" in err


def test_an_archived_property_counts_as_unknown_with_a_hint(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """HubSpot lists archived properties on request only."""
    write(SOUND, url)
    crm.properties.retire("partner_clients", "company_name")
    archived = orjson.dumps({"results": [{"name": "company_name", "type": "string", "archived": True}]})
    answers = iter([None, Response(200, archived)])
    crm.on_call = lambda _: next(answers)

    assert run(["check", "--portal"]) == 1
    assert "company_name is archived in the portal, which counts as unknown" in capsys.readouterr().err


def test_an_object_type_that_the_portal_lacks_is_a_problem(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SOUND.replace("    record:", "    object_type: partner_cliens\n    record:"), url)
    message = orjson.dumps({"status": "error", "message": "Unable to infer object type from: partner_cliens"})
    crm.on_call = lambda _: Response(400, message)

    assert run(["check", "--portal"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("bridge.yaml:6: sources.acme.object_type: the portal has no object type partner_cliens: Unab")


def test_a_missing_scope_leaves_it_unchecked_which_is_no_error(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(FAULTY, url)
    crm.access.forbid("properties")

    assert run(["check", "--portal"]) == 0
    out, err = capsys.readouterr()
    assert out == "bridge.yaml: sound (1 source, 2 mappings, 0 examples)\n"
    assert err == (
        "warning: bridge.yaml:1: crm.token: could not check partner_clients: the token lacks a scope: "
        "crm.objects.partner-clients.read (HTTP 403)\n"
    )


def test_a_403_that_names_no_scope(crm: Crm, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(SOUND, url)
    crm.on_call = lambda _: Response(403, b"<html>no</html>")

    assert run(["check", "--portal"]) == 0
    assert "the token lacks a scope, which HubSpot did not name (HTTP 403)" in capsys.readouterr().err


# --- check --portal: a portal that does not tell ----------------------------------------------------


@pytest.mark.parametrize(
    "kind, told",
    [
        ("401", "refused the token (HTTP 401); give it one that is valid now"),
        ("404", "knows no such path (HTTP 404); check `base_url`, `properties_path` and the object type"),
        ("429", "takes no more calls just now (HTTP 429); try again later"),
        ("429-text", "takes no more calls just now (HTTP 429); try again later"),
        ("500", "answered HTTP 500, saying 'internal error'; try again later, or check `base_url`"),
        ("502-html", "answered HTTP 502; try again later, or check `base_url`"),
        ("redirect", "redirects (HTTP 302), and the token goes nowhere else; check `base_url`"),
        ("garbage", "answered with something that is no list of properties; check `base_url`"),
        ("html", "answered with something that is no list of properties; check `base_url`"),
        ("blank", "answered with something that is no list of properties; check `base_url`"),
        ("empty", "answered with something that is no list of properties; check `base_url`"),
        ("reset", "broke the connection off; try again later"),
        ("truncated", "broke its answer off; try again later"),
        ("timeout", "did not answer within `timeout`; try again later"),
        ("drip", "did not answer within `timeout`; try again later"),
    ],
)
def test_a_portal_that_does_not_tell_is_one_sentence_and_exit_3(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str], kind: str, told: str
) -> None:
    write(SOUND, url)
    crm.faults.always(Fault(kind, on="properties"))

    began = time.monotonic()
    assert run(["check", "--portal"]) == 3
    assert time.monotonic() - began < 10
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"partner-bridge: the portal at {url} {told}\n")
    assert all(call.endpoint == "properties" for call in crm.ledger.calls())  # a redirect is not followed


def test_a_body_without_end_is_cut(crm: Crm, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the size or by the deadline, whichever comes first."""
    write(SOUND, url)
    crm.faults.always(Fault("endless", on="properties"))

    began = time.monotonic()
    assert run(["check", "--portal"]) == 3
    assert time.monotonic() - began < 10
    assert capsys.readouterr().err.count("\n") == 1


def test_out_of_reach_and_a_wrong_token_on_the_command_line(crm: Crm, url: str) -> None:
    write(SOUND, f"http://127.0.0.1:{free_port()}")
    done = command_line("check", "--portal", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (3, [])
    assert "cannot be reached: no connection came up; check `base_url` and the network\n" in done.stderr
    assert done.stderr.count("\n") == 1

    write(SOUND, url)
    crm.access.accept_only("another")
    done = command_line("check", "--portal")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert TOKEN not in done.stderr


def test_what_was_found_before_the_portal_went_away_is_told_and_counts(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SOUND + "    examples: [{{payload: {{id: e1}}, ignored: true}}]\n", url)
    crm.faults.always(Fault("503", on="properties"))

    assert run(["check", "--portal"]) == 1
    problem, trouble = capsys.readouterr().err.splitlines()
    assert problem.startswith("bridge.yaml:18: sources.acme.examples[0]: ")
    assert trouble.startswith(f"partner-bridge: the portal at {url} answered HTTP 503")


def test_a_faulty_file_is_not_compared_and_says_so(crm: Crm, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(SOUND + "journl: {{}}\n", url)

    assert run(["check", "--portal"]) == 1
    assert capsys.readouterr().err.endswith("partner-bridge: the portal was not asked; mend the file first\n")
    assert asked(crm) == []


def test_the_sandbox_has_no_portal_to_ask(url: str) -> None:
    write(SOUND, url)
    assert run(["check", "--portal", "--sandbox"]) == 2


def test_no_credentials_of_the_surroundings_are_sent(crm: Crm, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .netrc entry for the host would take the place of the token."""
    Path("netrc").write_text("machine 127.0.0.1 login somebody password else\n", encoding="utf-8")
    Path("netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(Path("netrc").absolute()))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    write(SOUND, url)

    assert run(["check", "--portal"]) == 0


@pytest.mark.parametrize("refresh_token, status", [("good-refresh-token", 0), ("bad-refresh-token", 3)])
def test_by_oauth_the_portal_is_asked_with_a_fresh_token(
    monkeypatch: pytest.MonkeyPatch, refresh_token: str, status: int
) -> None:
    monkeypatch.setenv("CLIENT_SECRET", "a-client-secret")
    monkeypatch.setenv("REFRESH_TOKEN", refresh_token)
    crm = Crm(open_properties=False, tokens=[], refresh_tokens=["good-refresh-token"])
    with SandboxServer(crm) as server:
        write(BY_OAUTH, server.url)
        done = command_line("check", "--portal", "--json")

    assert (done.returncode, json.loads(done.stdout)) == (status, [])
    assert ("the refresh token is not accepted" in done.stderr) == (status == 3)
    assert refresh_token not in done.stderr
    assert not Path("journal.db").exists()


def test_by_oauth_the_refresh_token_that_the_service_keeps_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """HubSpot may have given another one since, and takes the configured one no more."""
    monkeypatch.setenv("CLIENT_SECRET", "a-client-secret")
    monkeypatch.setenv("REFRESH_TOKEN", "the-configured-one")
    versions.prepare("sqlite:///journal.db")
    journal = Journal(settings=JournalSettings(url="sqlite:///journal.db"), clock=SystemClock())
    StoredToken(journal).keep("the-configured-one", "the-kept-one")
    journal.close()
    with SandboxServer(Crm(open_properties=False, tokens=[], refresh_tokens=["the-kept-one"])) as server:
        write(BY_OAUTH, server.url)
        done = command_line("check", "--portal")

    assert (done.returncode, done.stderr) == (0, "")


def test_by_oauth_a_refresh_token_that_is_good_once_is_never_burnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check gets another one. It is kept for the next check and for the service, before and beside its run."""
    monkeypatch.setenv("CLIENT_SECRET", "a-client-secret")
    monkeypatch.setenv("REFRESH_TOKEN", "good-once")
    crm = Crm(open_properties=False, tokens=[], refresh_tokens=["good-once"])
    crm.access.rotates = True
    with SandboxServer(crm) as server:
        write(BY_OAUTH, server.url)
        for _ in range(3):
            done = command_line("check", "--portal")
            assert (done.returncode, done.stderr) == (0, "")
        journal = Journal(settings=JournalSettings(url="sqlite:///journal.db"), clock=SystemClock())
        tokens = OAuthTokens(
            settings=OAuth("id", Secret(env="CLIENT_SECRET"), Secret(env="REFRESH_TOKEN")),
            base_url=server.url,
            timeout_s=2,
            store=journal,
            clock=SystemClock(),
        )
        tokens.access()
        assert command_line("check", "--portal").returncode == 0  # beside the service
        assert tokens.refused(tokens.access())
        tokens.access()
        tokens.close()
        journal.close()
    assert [call.status for call in crm.ledger.calls("token")] == [200] * 6


@pytest.mark.damages
@pytest.mark.parametrize("there", [True, False])
def test_by_oauth_nothing_is_asked_where_another_refresh_token_could_not_be_kept(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setenv("CLIENT_SECRET", "a-client-secret")
    monkeypatch.setenv("REFRESH_TOKEN", "good-once")
    crm = Crm(open_properties=False, tokens=[], refresh_tokens=["good-once"])
    crm.access.rotates = True
    with SandboxServer(crm) as server:
        write(BY_OAUTH.replace("journal.db", "kept/journal.db"), server.url)
        if there:
            Path("kept").mkdir()
            Path("kept/journal.db").write_bytes(b"no journal at all" * 100)
        done = command_line("check", "--portal")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "crm.oauth needs the journal" in done.stderr
    assert crm.ledger.calls("token") == []


# --- init --portal ----------------------------------------------------------------------------------


def test_init_lists_what_can_be_written_as_comments(crm: Crm, url: str) -> None:
    crm.define("partner_clients", "plan", "enumeration", options=tuple(f"plan_{number}" for number in range(12)))
    crm.define("partner_clients", "odd", label="Two\nlines: [\u2028{ and a label that is far too long to be of any use")
    done = command_line("init", "--portal", "--base-url", url)

    assert (done.returncode, done.stderr) == (0, "")
    text = Path("bridge.yaml").read_text(encoding="utf-8")
    listed = [line for line in text.partition("# What partner_clients of the portal")[2].splitlines()[1:] if line]
    names = [line.split()[1] for line in listed]
    assert all(line.startswith("#   ") for line in listed)
    assert names == sorted(names)
    assert {"acme_client_id", "company_name", "tier", "odd", "plan"} < set(names)
    assert {"hs_object_id", "createdate", "hs_health_score"}.isdisjoint(names)
    by_name = {name: " ".join(line.split()[2:]) for name, line in zip(names, listed, strict=True)}
    assert by_name["acme_client_id"] == "string, unique Acme client id"
    assert by_name["tier"] == "enumeration Tier: gold, silver, bronze"
    assert by_name["products"].startswith("enumeration, multiple Products: crm, ")
    assert by_name["plan"].endswith("plan_7 and 4 more")
    assert by_name["odd"] == "string Two lines: [ { and a label that is far too long to be of an…"
    assert examine(Path("bridge.yaml")).problems == []
    assert Path("acme.secret").exists()


@pytest.mark.parametrize("kind", ["401", "503", "garbage"])
def test_init_writes_nothing_when_the_portal_does_not_tell(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    crm.faults.always(Fault(kind, on="properties"))

    assert run(["init", "--portal", "--base-url", url]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith("; nothing was written\n")
    assert list(Path().iterdir()) == []


def test_init_out_of_reach_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBSPOT_BASE_URL", f"http://127.0.0.1:{free_port()}")
    done = command_line("init", "--portal")

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert list(Path().iterdir()) == []


def test_init_without_the_scope_writes_the_file_and_says_what_it_lacks(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    crm.access.forbid("properties")

    assert run(["init", "--portal", "--base-url", url]) == 0
    warning = "could not check partner_clients: the token lacks a scope: crm.objects.partner-clients.read (HTTP 403)"
    assert capsys.readouterr().err == f"warning: {warning}\n"
    assert Path("bridge.yaml").read_text(encoding="utf-8").endswith(f"are not listed here: {warning}\n")


def test_init_asks_no_portal_when_it_cannot_write_or_has_no_token(
    crm: Crm, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["init", "--portal", "--base-url", "ftp://nowhere"]) == 2
    monkeypatch.delenv("HUBSPOT_ACCESS_TOKEN")
    assert run(["init", "--portal", "--base-url", url]) == 1
    assert "the environment variable HUBSPOT_ACCESS_TOKEN is not set or empty" in capsys.readouterr().err
    assert list(Path().iterdir()) == []

    Path("bridge.yaml").write_text("mine: 1\n", encoding="utf-8")
    assert run(["init", "--portal", "--base-url", url]) == 1
    assert Path("bridge.yaml").read_text(encoding="utf-8") == "mine: 1\n"
    assert asked(crm) == []
