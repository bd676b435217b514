"""What the README says under "On Kubernetes" can be done: its values render, its commands and names exist."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import click
import promql_parser
import pytest

from bridge.cli import COMMANDS, partner_bridge
from bridge.config import load_settings
from tests.chart.rendering import SECRETS, Json, objects, read_yaml
from tests.unit.test_readme import README, exposed

SECTION = README.partition("## On Kubernetes\n")[2].partition("\n## ")[0]
RELEASE = "partner-bridge"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


FIRST, POSTGRESQL, OWN = (read_yaml(text) for text in blocks("yaml"))
FILES = {"values.yaml": FIRST, "postgresql.yaml": POSTGRESQL}


def merged(one: Any, other: Any) -> Any:
    """As Helm merges a values file with the next."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return one | {key: merged(one.get(key), value) for key, value in other.items()}


def commands() -> list[list[str]]:
    """Every command of the section, both ends of a pipe apart, redirections left out."""
    lines = re.sub(r"\|\n\s*", "| ", "\n".join(blocks("sh"))).splitlines()
    found: list[list[str]] = []
    for line in filter(None, lines):
        words = shlex.split(line, comments=True)
        for redirect in {">", ">>", "<"} & set(words):
            at = words.index(redirect)
            del words[at : at + 2]
        cut = words.index("|") if "|" in words else len(words)
        found += filter(None, [words[:cut], words[cut + 1 :]])
    return found


def named(program: str, *words: str) -> list[list[str]]:
    return [each for each in commands() if each[: 1 + len(words)] == [program, *words]]


def values_of_command(command: list[str]) -> Json:
    """What Helm would merge for `--values` and `--set`."""
    values: Json = {}
    for option, text in itertools.pairwise(command):
        if option == "--values":
            values = merged(values, FILES[text])
        elif option == "--set":
            path, _, scalar = text.partition("=")
            inner: Any = read_yaml(scalar) if scalar in {"true", "false"} else scalar
            for key in reversed(path.split(".")):
                inner = {key: inner}
            values = merged(values, inner)
    return values


def rendered(values: Json) -> dict[str, Json]:
    return objects(values, release=RELEASE)


@pytest.mark.parametrize(
    "command", [*named("helm", "install"), *named("helm", "upgrade")], ids=lambda command: " ".join(command[1:])
)
def test_every_installation_and_upgrade_renders(command: list[str]) -> None:
    assert command[2:4] == [RELEASE, "helm/partner-bridge"]
    found = rendered(values_of_command(command))
    assert ("deployment" in found) is ("postgresql.yaml" in command)
    assert "ingress" in found


def test_all_forms_of_helm_are_looked_at() -> None:
    assert {each[1] for each in named("helm")} == {"install", "upgrade", "rollback", "test"}
    assert {each[2] for each in named("helm")} == {RELEASE}
    assert {each[0] for each in commands()} == {"docker", "printf", "kubectl", "helm"}


def known() -> set[str]:
    """Names of the objects and pods that a release of the section has, as kubectl takes them."""
    found = [*rendered(FIRST).values(), *rendered(merged(FIRST, POSTGRESQL)).values()]
    return {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in found} | {f"{RELEASE}-0"}


def test_kubectl_is_given_objects_that_there_are() -> None:
    for command in (*named("kubectl", "rollout"), *named("kubectl", "exec")):
        words = [word for word in command[2:] if not word.startswith("-")]
        assert words[command[1] == "rollout"] in known(), command
    mounted = {
        volume["secret"]["secretName"]
        for volume in rendered(FIRST)["statefulset"]["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    creations = named("kubectl", "create", "secret", "generic")
    assert {each[4] for each in creations} == mounted
    assert len(creations) == 2
    for each in creations:
        keys = {word.removeprefix("--from-file=") for word in each if word.startswith("--from-file=")}
        assert keys == {"hubspot-token", "acme"}
    inline = re.findall(r"(?:statefulset|deployment)/[\w-]+", SECTION.replace("\n", " "))
    assert set(inline) <= known()


def inside(command: list[str]) -> list[str]:
    """The command that `kubectl exec` runs in the pod."""
    words = command[command.index("--") + 1 :]
    return shlex.split(words[2]) if words[:2] == ["sh", "-c"] else words


def test_commands_inside_the_pod_are_ours_and_their_options_exist() -> None:
    ours = [inside(each) for each in named("kubectl", "exec") if "partner-bridge" in inside(each)[0]]
    assert {each[1] for each in ours} == {"send", "trace", "migrate", "journal", "resume"}
    for each in ours:
        assert each[1] in COMMANDS
        group = partner_bridge.get_command(click.Context(partner_bridge), each[1])
        arguments = each[2:]
        if isinstance(group, click.Group):
            group, arguments = group.commands[arguments[0]], arguments[1:]
        assert group is not None
        group.make_context(each[1], list(arguments))  # raises on options and arguments that it does not know


def test_the_service_takes_the_sections_configuration(tmp_path: Path) -> None:
    for values in (FIRST, merged(FIRST, POSTGRESQL)):
        text = rendered(values)["configmap"]["data"]["bridge.yaml"]
        files = {"hubspot-token": "pat-1", "acme": "whsec_" + "c2VjcmV0" * 5, "journal-url": "postgresql://u:p@db/b"}
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        (tmp_path / "bridge.yaml").write_text(text.replace(SECRETS, str(tmp_path)))
        journal = {} if values is not FIRST else {"BRIDGE_JOURNAL_URL": "sqlite:////var/lib/partner-bridge/journal.db"}
        settings = load_settings(tmp_path / "bridge.yaml", environ=journal)
        assert "acme" in settings.sources
        assert settings.journal.url.startswith("sqlite" if journal else "postgresql")


def test_the_query_of_the_rotation_is_promql_over_a_metric_that_there_is() -> None:
    (query,) = blocks("promql")
    promql_parser.parse(query)
    assert set(re.findall(r"bridge_\w+?(?=\{)", query)) <= exposed()


def test_own_classes_are_an_image_of_ours_and_a_marshmallow_schema() -> None:
    from bridge import __version__

    (dockerfile,), (module,) = blocks("Dockerfile"), blocks("python")
    assert dockerfile.startswith(f"FROM partner-bridge:{__version__}\n")
    own: Json = {}
    exec(compile(module, "schemas.py", "exec"), own)  # noqa: S102 (the README's example)
    assert own["AcmeClient"]().load({"name": " Acme "}) == {"company_name": "Acme"}
    assert OWN["config"]["sources"]["acme"]["schema"] == "my_partner.schemas:AcmeClient"
    assert "configmap" in rendered(OWN)
