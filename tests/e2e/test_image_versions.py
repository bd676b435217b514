"""Images that follow each other on one volume: an upgrade and the way back, and an image made FROM ours."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers import MARKS, TOP, Engine, output
from tests.e2e.test_image_in_pod import VALUES, company_names, key, post
from tests.pods import Pod, playing

#: The revision in git whose journals must be readable, and whose code must read ours; at a release, the one before. Now
#: the last one of journal version 0001, so that a migration lies between the two.
PREVIOUS = os.environ.get("BRIDGE_PREVIOUS", "034f15282c9a93eb0122cc155bfbe363ddbd5fbd")

pytestmark = MARKS


@pytest.fixture
def pod(engine: Engine, tmp_path: Path) -> Iterator[Pod]:
    with playing(engine, tmp_path, VALUES, {"hubspot-token": "pat-test", "acme": key()}) as made:
        yield made


@pytest.fixture
def previous(engine: Engine, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]) -> str:
    """The image of the version before; where its history is not at hand, one of this tree: still another image."""
    archive = subprocess.run(["git", "-C", TOP, "archive", PREVIOUS], capture_output=True, check=False)
    image = "localhost/partner-bridge:previous"
    record_testsuite_property("upgraded_from", PREVIOUS if archive.returncode == 0 else "the same tree")
    if archive.returncode != 0:
        assert "BRIDGE_PREVIOUS" not in os.environ, f"no {PREVIOUS} in git"
        engine.build(TOP, image)
        return image
    source = tmp_path / "previous"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(source, filter="data")
    engine.build(source, image)
    return image


def test_an_upgrade_and_the_way_back_lose_nothing_of_a_journal_that_waits(
    pod: Pod, engine: Engine, previous: str
) -> None:
    pod.image = previous
    pod.start(crm=False)
    assert {post(pod, client, "before") for client in ("1", "2")} == {202}
    assert pod.stop()[0] == 0
    pod.image = engine.image
    pod.start(crm=False)
    assert {post(pod, client, "upgraded") for client in ("2", "3")} == {202}
    assert pod.stop()[0] == 0
    pod.image = previous
    pod.start(crm=False)
    assert {post(pod, client, "back") for client in ("3", "4")} == {202}
    assert pod.stop()[0] == 0
    pod.image = engine.image
    pod.start()
    pod.until(lambda: company_names(pod, "1", "2", "3", "4") == ["before", "upgraded", "back", "back"])
    assert pod.stop()[0] == 0


def test_an_image_from_ours_brings_own_marshmallow_classes(pod: Pod, engine: Engine, tmp_path: Path) -> None:
    """The Dockerfile and the class are the README's."""
    readme = (TOP / "README.md").read_text(encoding="utf-8").partition("**Own marshmallow classes.**")[2]
    (dockerfile,) = re.findall(r"```Dockerfile\n(.*?)```", readme, re.DOTALL)[:1]
    (module,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[:1]
    source = tmp_path / "own"
    (source / "my_partner").mkdir(parents=True)
    (source / "my_partner" / "schemas.py").write_text(module)
    ours = re.sub(r"^FROM partner-bridge:\S+$", f"FROM {engine.image}", dockerfile, flags=re.MULTILINE)
    assert ours != dockerfile
    (source / "Dockerfile").write_text(ours)
    own = "localhost/partner-bridge:own"
    engine.build(source, own)

    (sources,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[:1]
    assert "my_partner.schemas:" in sources
    pod.image = own
    block = {**VALUES["config"]["sources"]["acme"], "schema": re.findall(r"my_partner\.schemas:\w+", sources)[0]}
    del block["properties"]
    pod.values = {**VALUES, "config": {**VALUES["config"], "sources": {"acme": block}}}
    pod.start()
    assert post(pod, "7", "  Acme Ltd ") == 202
    pod.until(lambda: company_names(pod, "7") == ["Acme Ltd"])
    assert output(*engine.podman("image", "inspect", "--format={{.Config.User}}", own)).strip() == "10001:10001"
    assert pod.stop()[0] == 0
