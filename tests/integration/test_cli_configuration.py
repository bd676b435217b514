"""`check`, `schema` and `init` as they are typed."""

from __future__ import annotations

import json
import re
import shlex
import stat
from pathlib import Path

import pytest

from bridge.cli import run
from bridge.config import examine
from bridge.config.loading import try_examples
from bridge.config.templates import DEFAULT, TEMPLATES
from tests.stopwatch import Stopwatch

SOUND = """\
crm: {token: {env: HUBSPOT_ACCESS_TOKEN}}
sources:
  acme:
    verify: {scheme: hmac, header: X-Signature, secrets: [{env: ACME_SECRET}]}
    event_id: id
    record: {id: client.id, id_property: acme_client_id}
    properties:
      tier: {from: client.plan, type: enumeration, values: {Gold: gold}}
    examples:
      - payload: {id: e1, client: {id: 7, plan: Gold}}
        expect: [{id: 7, id_property: acme_client_id, properties: {tier: gold}}]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder and a shell without our variables."""
    monkeypatch.chdir(tmp_path)
    for variable in ("BRIDGE_CONFIG", "BRIDGE_BIND", "BRIDGE_ADMIN_BIND", "BRIDGE_JOURNAL_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("HUBSPOT_ACCESS_TOKEN", raising=False)
    monkeypatch.delenv("ACME_SECRET", raising=False)


@pytest.fixture(name="secrets")
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBSPOT_ACCESS_TOKEN", "pat-eu1-0b8f4c1e")
    monkeypatch.setenv("ACME_SECRET", "0123456789abcdef0123456789abcdef")


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("command", [["check"], ["serve", "--sandbox"]])
def test_f52_variables_that_serve_would_refuse_are_told_by_check_too(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the same words."""
    Path("bridge.yaml").write_text(SOUND, encoding="utf-8")
    monkeypatch.setenv("BRIDGE_LOG_LEVEL", "loud")
    monkeypatch.setenv("BRIDGE_LOG_FORMAT", "xml")

    assert run(command) == 1
    err = capsys.readouterr().err
    assert "BRIDGE_LOG_LEVEL: 'loud' is no level; use one of debug" in err
    assert "BRIDGE_LOG_FORMAT: 'xml' is no format; use one of" in err


@pytest.mark.usefixtures("secrets")
def test_a_sound_file_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(SOUND, encoding="utf-8")

    assert run(["check"]) == 0
    out, err = capsys.readouterr()
    assert out == "bridge.yaml: sound (1 source, 1 mapping, 1 example)\n"
    assert err.startswith("warning: ") or not err


@pytest.mark.usefixtures("secrets")
def test_all_problems_are_told_on_stderr_within_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(
        SOUND.replace("event_id", "evnt_id").replace("client.plan,", "'client.',"), encoding="utf-8"
    )

    watch = Stopwatch()
    assert run(["check"]) == 1
    assert watch.seconds < 2
    out, err = capsys.readouterr()
    assert out == ""
    problems = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert problems[0] == "bridge.yaml:5: sources.acme.evnt_id: unknown key; did you mean 'event_id'?"
    assert problems[1].startswith("bridge.yaml:8: sources.acme.properties.tier.from: ")
    assert "Traceback" not in err


@pytest.mark.usefixtures("secrets")
def test_an_example_that_does_not_hold_is_a_problem_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(SOUND.replace("tier: gold}}]", "tier: silver}}]"), encoding="utf-8")

    assert run(["check"]) == 1
    err = capsys.readouterr().err
    assert "bridge.yaml:10: sources.acme.examples[0]: " in err
    assert "'gold'" in err
    assert "'silver'" in err


@pytest.mark.usefixtures("secrets")
def test_problems_come_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(SOUND, encoding="utf-8")
    assert run(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []

    Path("bridge.yaml").write_text(SOUND + "journl: {}\n", encoding="utf-8")
    assert run(["check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {
            "file": "bridge.yaml",
            "line": 12,
            "path": "journl",
            "message": "unknown key; did you mean 'journal'?",
        }
    ]


def test_a_missing_file_is_told_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--config", "gone.yaml"]) == 1

    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("there is no configuration file gone.yaml; `partner-bridge init` writes one")


def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--nonsense"]) == 2
    assert run(["init", "--from", "pigeons"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_the_token_only_the_sandbox_is_sound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_SECRET", "0123456789abcdef0123456789abcdef")
    Path("bridge.yaml").write_text(SOUND, encoding="utf-8")

    assert run(["check"]) == 1
    assert (
        "bridge.yaml:1: crm.token: the environment variable HUBSPOT_ACCESS_TOKEN is not set" in capsys.readouterr().err
    )
    assert run(["check", "--sandbox"]) == 0
    assert capsys.readouterr().out.endswith("next: partner-bridge serve --sandbox\n")


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0

    assert json.loads(capsys.readouterr().out)["title"] == "bridge.yaml"


def next_command(printed: str) -> list[str]:
    """The command that the last one told to type."""
    (command,) = re.findall(r"^next: partner-bridge (.+)$", printed, flags=re.MULTILINE)
    return shlex.split(command)


@pytest.mark.parametrize("config", ["bridge.yaml", "a folder/my bridge.yaml"])
def test_from_an_empty_folder_to_the_sandbox_each_command_prints_the_next(
    capsys: pytest.CaptureFixture[str], config: str
) -> None:
    """No variable has to be set, and no file edited."""
    Path(config).parent.mkdir(exist_ok=True)
    named = [] if config == "bridge.yaml" else ["--config", config]

    assert run(["init", *named]) == 0
    command = next_command(capsys.readouterr().out)
    assert command == ["check", "--sandbox", *named]
    assert run(command) == 0
    assert next_command(capsys.readouterr().out) == ["serve", "--sandbox", *named]


def test_init_writes_a_secret_that_only_its_owner_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """It stands neither in the configuration nor on the screen."""
    assert run(["init"]) == 0

    secret = Path("acme.secret")
    text = secret.read_text(encoding="utf-8").strip()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", text)
    assert text not in Path("bridge.yaml").read_text(encoding="utf-8")
    assert text not in "".join(capsys.readouterr())


def test_init_names_the_secret_that_the_sender_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--from", "hubspot"]) == 0
    told = capsys.readouterr().out
    assert "put the client secret of your HubSpot app in its place before you go live" in told
    assert "Hubspot" not in told


def test_init_never_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text("mine: 1\n", encoding="utf-8")

    assert run(["init"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert Path("bridge.yaml").read_text(encoding="utf-8") == "mine: 1\n"
    assert not Path("acme.secret").exists()


def test_init_keeps_a_secret_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("acme.secret").write_text("mine", encoding="utf-8")

    assert run(["init"]) == 0
    assert "kept acme.secret" in capsys.readouterr().out
    assert Path("acme.secret").read_text(encoding="utf-8") == "mine"


def test_init_into_a_folder_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--config", "gone/bridge.yaml"]) == 1
    assert "cannot write gone/acme.secret: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("sender", sorted(TEMPLATES))
def test_every_template_is_a_sound_file_whose_examples_hold(capsys: pytest.CaptureFixture[str], sender: str) -> None:
    assert run(["init", *([] if sender == DEFAULT else ["--from", sender])]) == 0
    capsys.readouterr()

    assert list(examine(Path("bridge.yaml"), sandbox=True).problems) == []

    text = re.sub(r"scheme: .*", "scheme: none", Path("bridge.yaml").read_text(encoding="utf-8"))
    if sender == "hmac":
        text = re.sub(r"^      (header|algorithm|encoding|prefix|signed|timestamp): .*\n", "", text, flags=re.MULTILINE)
    Path("open.yaml").write_text(re.sub(r" *secrets: .*\n", "", text), encoding="utf-8")
    findings = examine(Path("open.yaml"), sandbox=True)
    assert findings.problems == []
    assert findings.settings is not None
    assert findings.document is not None
    assert try_examples(findings.settings, findings.document) == ([], [])
