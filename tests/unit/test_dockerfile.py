"""The image's recipe and its lock, as far as reading them tells; tests/e2e/test_image.py builds and runs it."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bridge import __version__

TOP = Path(__file__).parents[2]
LOCKS = ("requirements.txt", "fast.txt", "build.txt")


def instructions() -> list[tuple[str, str]]:
    """(keyword, the rest) of each instruction; continued lines are joined, comments left out."""
    text = (TOP / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, `FROM` first; what stands before the first is left out."""
    found: list[list[tuple[str, str]]] = []
    for keyword, rest in instructions():
        if keyword == "FROM":
            found.append([])
        if found:
            found[-1].append((keyword, rest))
    return found


def last(keyword: str) -> str:
    """What the last `keyword` of the final stage says."""
    return [rest for each, rest in stages()[-1] if each == keyword][-1]


def locked(name: str) -> dict[str, str]:
    """Version by project in a lock."""
    text = (TOP / ".lock" / name).read_text()
    return {canonicalize_name(m[1]): m[2] for m in re.finditer(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())


def test_both_stages_take_the_base_from_one_argument_that_is_pinned_by_digest() -> None:
    assert [stage[0][1].split()[0] for stage in stages()] == ["${BASE}", "${BASE}"]
    (base,) = [rest for keyword, rest in instructions() if keyword == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", base)


def test_the_service_runs_as_a_number_that_is_not_root() -> None:
    assert last("USER") == "10001:10001"


def test_the_service_is_process_one_and_gets_the_signals() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["partner-bridge"]
    assert json.loads(last("CMD")) == ["serve"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_the_environment_is_the_one_the_interface_promises() -> None:
    variables = dict(word.split("=", 1) for word in last("ENV").split())
    assert variables["BRIDGE_CONFIG"] == "/etc/partner-bridge/bridge.yaml"
    assert variables["BRIDGE_ADMIN_BIND"] == "0.0.0.0:9090"
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
    assert "BRIDGE_JOURNAL_URL" not in variables, "it would silently win over the journal.url of bridge.yaml"
    assert last("EXPOSE") == "8080 9090"
    assert last("VOLUME") == "/var/lib/partner-bridge"


def test_the_final_stage_installs_nothing_and_copies_only_the_environment() -> None:
    final = stages()[-1]
    assert not [rest for keyword, rest in final if keyword == "RUN" and re.search(r"\b(pip|apt|apt-get)\b", rest)]
    copied = [rest for keyword, rest in final if keyword in {"COPY", "ADD"}]
    assert copied == ["--from=builder /opt/partner-bridge /opt/partner-bridge"]


def test_whatever_pip_installs_is_hash_checked_or_was_built_here() -> None:
    commands = [part for keyword, rest in instructions() if keyword == "RUN" for part in rest.split("&&")]
    installs = [each for each in commands if re.search(r"pip\b.*\b(install|wheel)\b", each)]
    assert len(installs) == 5
    for each in installs:
        assert "--require-hashes" in each or ("--no-index" in each and "--no-deps" in each), each


def test_what_is_built_from_source_is_the_parser_in_c_and_by_back_ends_that_are_locked() -> None:
    """Whatever else has no wheel is refused, and no build fetches what it likes."""
    builder = stages()[0]
    assert any("PIP_ONLY_BINARY=:all:" in rest for keyword, rest in builder if keyword == "ENV")
    built = [part for keyword, rest in builder if keyword == "RUN" for part in rest.split("&&") if " wheel " in part]
    assert all("--no-build-isolation" in each and "--no-deps" in each for each in built)
    assert [name for each in built for name in re.findall(r"--no-binary[= ](\S+)", each)] == ["gunicorn-h1c"]
    assert locked("fast.txt").keys() == {"gunicorn-h1c"}
    assert locked("build.txt").keys() >= {"hatchling", "setuptools"}


def test_labels_tell_what_the_image_is() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', last("LABEL")))
    project = pyproject()["project"]
    assert labels.keys() == {"title", "description", "licenses", "version", "revision"}
    assert labels["title"] == project["name"]
    assert labels["description"] == project["description"]
    assert labels["licenses"] == project["license"]
    assert ("ARG", f"VERSION={__version__}") in instructions()


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    first, *rules = (TOP / ".dockerignore").read_text().splitlines()
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    wanted = {word.rstrip("/") for keyword, rest in stages()[0] if keyword == "COPY" for word in rest.split()[:-1]}
    assert first == "*"
    assert wanted == {rule.split("/")[0] for rule in allowed}
    assert not any(fnmatch.fnmatch(".lock/update", rule) for rule in allowed)


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_file_has_a_hash_and_no_index_is_named(name: str) -> None:
    text = (TOP / ".lock" / name).read_text()
    entries = re.split(r"\n(?=[a-zA-Z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert ".lock/update" in text.split("\n", 3)[1], "the header tells how to write it anew"
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_the_lock_satisfies_what_the_project_asks_for() -> None:
    project = pyproject()["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["postgres"]]
    assert unsatisfied(asked, locked("requirements.txt")) == []
    assert unsatisfied(project["optional-dependencies"]["fast"], locked("fast.txt")) == []
    assert unsatisfied(pyproject()["build-system"]["requires"], locked("build.txt")) == []


def unsatisfied(asked: list[str], versions: dict[str, str]) -> list[str]:
    """The requirements that `versions` does not meet: run .lock/update."""
    return [
        each
        for each in asked
        for requirement in [Requirement(each)]
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"))
    ]
