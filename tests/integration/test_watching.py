"""The configuration is watched: which changes of its files are noticed, on real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config import load
from bridge.config.loading import Watch, wanted
from bridge.errors import ConfigError
from tests.running import SECRET, eventually

CONFIG = """\
crm: {{token: {{file: crm.token}}}}
include: {include}
"""
SOURCE = """\
{name}:
  verify: {{scheme: standard-webhooks, secrets: [{{file: {secret}}}]}}
  event_id: id
  record: {{id: client, id_property: acme_client_id}}
  properties: {{company_name: name}}
"""


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)


def source(name: str, held_by: str = "acme.secret") -> str:
    return SOURCE.format(name=name, secret=held_by)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A sound configuration that includes one file of sources."""
    write(tmp_path / "crm.token", "a-token-for-the-sandbox\n")
    (tmp_path / "sources").mkdir()
    write(tmp_path / "sources" / "acme.secret", SECRET + "\n")
    write(tmp_path / "sources" / "acme.yaml", source("acme"))
    write(tmp_path / "bridge.yaml", CONFIG.format(include="sources/*.yaml"))
    load(tmp_path / "bridge.yaml")
    return tmp_path / "bridge.yaml"


def test_each_change_of_content_is_told_once(config: Path) -> None:
    watch = Watch(config)
    assert not watch.changed()
    write(config, config.read_text(encoding="utf-8") + "retry: {base: 3s}\n")
    assert watch.changed()
    assert not watch.changed()


def test_a_file_written_anew_with_the_same_content_is_no_change(config: Path) -> None:
    watch = Watch(config)
    config.rename(config.with_name("old"))
    write(config, config.with_name("old").read_text(encoding="utf-8"))
    assert not watch.changed()


def test_what_is_included_counts_by_its_content_and_by_being_there(config: Path) -> None:
    watch = Watch(config)
    included = config.parent / "sources"
    write(included / "acme.yaml", source("renamed"))
    assert watch.changed()
    write(included / "second.yaml", source("second"))
    assert watch.changed()
    write(included / "not included", source("third"))
    assert not watch.changed()
    (included / "second.yaml").unlink()
    assert watch.changed()


def test_other_patterns_are_followed_from_the_change_on(config: Path) -> None:
    watch = Watch(config)
    more = config.parent / "more.yaml"
    write(more, source("more", held_by="sources/acme.secret"))
    assert not watch.changed()
    write(config, CONFIG.format(include="[sources/acme.yaml, more.yaml]"))
    assert watch.changed()
    write(more, source("other", held_by="sources/acme.secret"))
    assert watch.changed()


@pytest.mark.parametrize("name", ["bridge.yaml", "sources/acme.yaml"])
def test_what_cannot_be_read_now_is_no_change(config: Path, name: str) -> None:
    """As while a mount is exchanged: the link's target is not there."""
    watch = Watch(config)
    file = config.parent / name
    text = file.read_text(encoding="utf-8")
    file.unlink()
    file.symlink_to("nowhere")
    assert not watch.changed()
    file.unlink()
    write(file, text)
    assert not watch.changed()


@pytest.mark.parametrize("text", ["crm: [", "", "crm: {}", "include: sources/*.yaml\nincluded: 1"])
def test_one_with_problems_is_told_once_and_so_is_the_mended_one(config: Path, text: str) -> None:
    watch = Watch(config)
    sound = config.read_text(encoding="utf-8")
    write(config, text)
    assert watch.changed()
    assert not eventually(watch.changed, within_s=1)
    write(config, sound)
    assert watch.changed()
    assert not watch.changed()


def test_a_mended_file_that_is_included_is_told(config: Path) -> None:
    included = config.parent / "sources" / "acme.yaml"
    watch = Watch(config)
    write(included, "acme: [[")
    assert watch.changed()
    write(included, source("acme"))
    assert watch.changed()


def test_one_that_lacked_a_secret_is_told_again_when_the_secret_is_there(config: Path) -> None:
    """The kubelet may bring the ConfigMap before the Secret."""
    watch = Watch(config)
    write(config.parent / "sources" / "second.yaml", source("second", held_by="second.secret"))
    assert watch.changed()
    assert not eventually(watch.changed, within_s=1)
    write(config.parent / "sources" / "second.secret", SECRET + "\n")
    assert eventually(watch.changed)
    assert not watch.changed()


def test_a_change_while_it_is_loaded_is_found_afterwards(config: Path) -> None:
    """What was there when the watch was made counts, and the configuration is loaded later."""
    watch = Watch(config)
    write(config.parent / "sources" / "acme.yaml", source("newer"))
    assert watch.changed()


@pytest.mark.parametrize("text", ["always", "1", "watching"])
def test_another_value_of_the_variable_is_refused_by_name(text: str) -> None:
    assert wanted({"BRIDGE_RELOAD": "watch"})
    assert not wanted({"BRIDGE_RELOAD": " "})
    assert not wanted({})
    with pytest.raises(ConfigError, match="BRIDGE_RELOAD"):
        wanted({"BRIDGE_RELOAD": text})
