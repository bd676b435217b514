"""What those who work on it rely on: the verbs, the hooks of pre-commit, and a workflow of pinned parts."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from tests.dev import VERBS, main

TOP = Path(__file__).parents[2]
WORKFLOWS = sorted((TOP / ".github/workflows").glob("*.yml"))


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def jobs() -> Iterator[dict[str, Any]]:
    for workflow in WORKFLOWS:
        yield from read(workflow)["jobs"].values()


def steps() -> Iterator[dict[str, Any]]:
    for job in jobs():
        yield from job["steps"]


def hooks() -> dict[str, dict[str, Any]]:
    return {hook["id"]: hook for repo in read(TOP / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}


def commands() -> str:
    """Everything that CI and the hooks run."""
    runs = [step.get("run", "") for step in steps()]
    return "\n".join([*runs, *(hook["entry"] for hook in hooks().values()), (TOP / ".ci/run").read_text()])


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    return found


def base() -> str:
    """The base of the image that the Dockerfile makes."""
    (image,) = re.findall(r"^ARG BASE=(\S+)$", (TOP / "Dockerfile").read_text(), re.MULTILINE)
    return str(image)


def test_every_action_is_pinned_by_its_commit_beside_the_name_of_its_release() -> None:
    lines = [line for workflow in WORKFLOWS for line in workflow.read_text().splitlines() if "uses:" in line]
    assert len(lines) == sum("uses" in step for step in steps())
    for line in lines:
        assert re.fullmatch(r" +(- )?uses: [\w.-]+(/[\w.-]+)+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_pin() -> None:
    used = {step["uses"] for step in steps() if "uses" in step}
    assert len({action.partition("@")[0] for action in used}) == len(used)


def test_the_workflow_runs_with_few_rights_and_not_for_ever() -> None:
    assert WORKFLOWS
    assert all(read(workflow)["permissions"] == {"contents": "read"} for workflow in WORKFLOWS)
    assert all(job["timeout-minutes"] <= 60 for job in jobs())


def test_what_the_workflow_runs_is_there() -> None:
    scripts = set(re.findall(r"(?<![\w/])\.ci/\w+", "\n".join(step.get("run", "") for step in steps())))
    assert scripts == {".ci/run", ".ci/chart"}
    assert all(os.access(TOP / script, os.X_OK) for script in scripts)


def test_ci_and_the_hooks_use_the_verbs() -> None:
    asked = [verb for verbs in re.findall(r"-m tests\.dev ([a-z ]+)", commands()) for verb in verbs.split()]
    assert {"lint", "types", "fast"} <= set(asked) <= set(VERBS)


def test_all_runs_in_the_image_s_own_base() -> None:
    assert [job["container"]["image"] for job in jobs() if "container" in job] == [base()]


def test_the_fast_tests_run_on_every_python_that_is_supported() -> None:
    (versions,) = [job["strategy"]["matrix"]["python"] for job in jobs() if "strategy" in job]
    supported = SpecifierSet(project()["requires-python"])
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert all(version in supported for version in versions)
    assert "3.10" not in supported
    assert any(f"python:{version}." in base() for version in versions)


def test_the_hooks_have_the_tools_that_the_project_asks_for() -> None:
    asked = {each.name: each.specifier for each in map(Requirement, project()["optional-dependencies"]["dev"])}
    pins = {Requirement(pin) for hook in hooks().values() for pin in hook.get("additional_dependencies", ())}
    assert {pin.name for pin in pins} == {"ruff"}
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in asked[pin.name]


@pytest.mark.parametrize(
    "message, refused",
    [("x" * 72, False), ("x" * 73, True), ("short\n\n" + "x" * 90, False), ("x" * 72 + "\n\nbody\n", False)],
)
def test_a_subject_has_72_characters_at_most(message: str, refused: bool) -> None:
    """As pre-commit's pygrep looks for it, in the file that holds the message."""
    hook = hooks()["subject"]
    assert hook["args"] == ["--multiline"]
    found = re.search(hook["entry"].encode(), message.encode(), re.MULTILINE | re.DOTALL)
    assert (found is not None) is refused


def test_the_first_command_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "lint", (f'python -c \'import sys; open("{tmp_path}/lint", "w"); sys.exit(3)\'',))
    monkeypatch.setitem(VERBS, "types", (f'python -c \'open("{tmp_path}/types", "w")\'',))
    assert CliRunner().invoke(main, ["types", "lint"]).exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lint", "types"]
    (tmp_path / "types").unlink()
    assert CliRunner().invoke(main, ["lint", "types"]).exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["lint"]


def test_the_guide_names_every_verb() -> None:
    guide = (TOP / ".github/CONTRIBUTING.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE) == list(VERBS)
