"""Every mistake on the command line is told in a sentence that names what to change, with its exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.cli import COMMANDS, partner_bridge, run
from tests.running import Running

Ran = tuple[int, str, str]
Run = Callable[..., Ran]

JOURNAL = ("retries list", "retries show X", "retries replay --all", "retries discard --all --yes", "events list",
           "events replay --all", "trace X", "resync --all --yes", "pause", "resume")  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in an empty folder: exit status, standard output, stderr."""
    for name in ("BRIDGE_CONFIG", "BRIDGE_ADMIN_URL", "BRIDGE_ADMIN_TOKEN", "HUBSPOT_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def ran(command: str) -> Ran:
        status = run(command.split())
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return ran


def sound(folder: Path) -> Running:
    """A configuration without faults, of a service that never ran."""
    return Running(folder, "http://127.0.0.1:9")


#: Command, exit status, what the sentence must name.
IN_AN_EMPTY_FOLDER = [
    *((command, 1, ("bridge.yaml", "--config")) for command in (*JOURNAL, "status", "journal info")),
    ("serve", 1, ("bridge.yaml", "--config")),
    ("retries list --config elsewhere.yaml", 1, ("elsewhere.yaml",)),
    ("status --admin-url http://127.0.0.1:9", 3, ("http://127.0.0.1:9", "partner-bridge serve", "--admin-url")),
    *(
        (f"{command} --admin-url http://127.0.0.1:9", 1, ("http://127.0.0.1:9", "partner-bridge serve"))
        for command in JOURNAL
    ),
    ("retries list --admin-url nonsense", 1, ("nonsense", "--admin-url", "http://")),
    ("status --admin-url 127.0.0.1:9090", 3, ("127.0.0.1:9090", "--admin-url", "http://")),
    ("init --portal", 1, ("HUBSPOT_ACCESS_TOKEN",)),
    ("init --config no/such/folder/bridge.yaml", 1, ("--config",)),
]

WITH_A_SOUND_CONFIGURATION = [
    *((command, 1, ("partner-bridge serve", "journal.url")) for command in (*JOURNAL, "journal info")),
    ("journal verify", 1, ("journal",)),
    ("journal backup x.db", 1, ("partner-bridge serve",)),
    ("journal restore x.db", 1, ("x.db",)),
    ("map nobody", 1, ("'nobody'", "there are: acme")),
    ("map acme missing.json", 1, ("missing.json",)),
    ("send nobody", 1, ("'nobody'", "there are: acme")),
    ("send acme", 1, ("no examples", "FILE")),
    ("status", 3, ("does not answer", "partner-bridge serve")),
    ("init", 1, ("is there already", "--config")),
    ("check --portal", 3, ("127.0.0.1",)),
]

WRONG_USAGE = [
    ("nonsense", ("nonsense",)),
    ("retry list", ("Did you mean 'retries'?",)),
    ("retries lst", ("list",)),
    ("retries replay", ("--all",)),
    ("retries discard", ("--all",)),
    ("events replay", ("--all",)),
    ("resync", ("--all",)),
    ("retries list --since yesterday", ("2026-01-31T12:00:00Z", "2h")),
    ("retries list --state broken", ("retrying", "parked")),
    ("events list --outcome lost", ("delivered", "parked")),
    ("retries show", ("ID",)),
    ("serve --prot 1", ("--prot",)),
    ("sandbox --fail 503", ("0.05",)),
    ("sandbox --latency soon", ("200ms",)),
    ("check --portal --sandbox", ("--portal", "--sandbox")),
    ("map acme --header nonsense", ("Name: value",)),
]


@pytest.mark.parametrize("command, status, names", IN_AN_EMPTY_FOLDER, ids=str)
def test_a_mistake_in_an_empty_folder_is_named(cli: Run, command: str, status: int, names: tuple[str, ...]) -> None:
    told(cli(command), status, names)


def test_check_lists_its_problems_bare(cli: Run) -> None:
    """A problem a line, as compilers do."""
    status, out, err = cli("check")
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("there is no configuration file bridge.yaml; `partner-bridge init` writes one")


@pytest.mark.parametrize("command, status, names", WITH_A_SOUND_CONFIGURATION, ids=str)
def test_a_mistake_beside_a_sound_configuration_is_named(
    cli: Run, tmp_path: Path, command: str, status: int, names: tuple[str, ...]
) -> None:
    sound(tmp_path)
    told(cli(command), status, names)


@pytest.mark.parametrize("command, names", WRONG_USAGE, ids=str)
def test_wrong_usage_exits_2_and_says_what_is_right(
    cli: Run, tmp_path: Path, command: str, names: tuple[str, ...]
) -> None:
    sound(tmp_path)
    status, out, err = cli(command)
    assert (status, out) == (2, "")
    for name in names:
        assert name in err, err


def told(ran: Ran, status: int, names: tuple[str, ...]) -> None:
    """One sentence of ours, nothing on standard output."""
    ended, out, err = ran
    assert (ended, out) == (status, ""), err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("partner-bridge: ")
    assert not lines[0].endswith("."), "the sentences of this program end without one"
    for name in names:
        assert name in lines[0], err


def test_every_command_has_help_that_begins_with_a_sentence(cli: Run) -> None:
    for name in COMMANDS:
        status, out, _ = cli(f"{name} --help")
        assert status == 0, name
        about = out.split("\n\n")[1].strip()
        assert about.rstrip().endswith("."), (name, about)
    assert partner_bridge.help


def test_every_command_takes_the_options_that_scripts_give_to_all(cli: Run) -> None:
    """Also those that read no configuration, and print nothing but JSON."""
    assert cli("schema --config elsewhere.yaml")[0] == 0
    for command in (
        "sandbox --config x --help",
        "demo --config x --help",
        "map --json --help",
        "retries list --all --help",
    ):
        assert cli(command)[0] == 0
