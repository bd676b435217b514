"""The Helm chart, rendered by Helm's own engine: what Kubernetes would be given."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

helm_python = pytest.importorskip(
    "helm_python", reason="the chart is rendered by helm-python-sdk, which is not installed"
)

CHART = Path(__file__).parents[2] / "helm" / "partner-bridge"
SECRETS = "/run/secrets/partner-bridge"

Json = dict[str, Any]

ACME: Json = {"verify": {"scheme": "standard-webhooks", "secrets": [{"file": f"{SECRETS}/acme"}]}}


def read_yaml(text: str) -> Any:
    """A copy of one's own: most templates become the same text whatever a test changes, and are read once."""
    return copy.deepcopy(_read(text))


@cache
def _read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def texts(values: Json | None = None, *, release: str = "rel") -> dict[str, str]:
    """What each template became, by its path within the chart."""
    return dict(_rendered(json.dumps(values or {}), release))


@cache
def _rendered(values: str, release: str) -> dict[str, str]:
    rendered = helm_python.Chart.load(CHART).render(json.loads(values), name=release, namespace="prod")
    return {name.removeprefix("partner-bridge/"): text for name, text in rendered.items()}


def objects(values: Json | None = None, *, release: str = "rel") -> dict[str, Json]:
    """The rendered objects, by the name of their template without `templates/` and `.yaml`."""
    return {
        name.removeprefix("templates/").removesuffix(".yaml"): read_yaml(text)
        for name, text in texts(values, release=release).items()
        if name.endswith(".yaml") and text.strip()
    }


def pod_specs(values: Json | None = None) -> dict[str, Json]:
    """The specification of every pod that the release has, those of `helm test` included."""
    found = objects(values)
    specs = {name: each["spec"] for name, each in found.items() if each["kind"] == "Pod"}
    return specs | {
        name: each["spec"]["template"]["spec"]
        for name, each in found.items()
        if isinstance(each.get("spec"), dict) and "template" in each["spec"]
    }


def containers(spec: Json) -> Iterator[Json]:
    """All containers of a pod, of whatever kind."""
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind, [])


def values_of(name: str) -> Json:
    """One file of `ci/`."""
    values: Json = read_yaml((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    return values


def features() -> list[str]:
    """The names of the files of `ci/`, one for each feature."""
    return sorted(file.name.removesuffix("-values.yaml") for file in (CHART / "ci").glob("*-values.yaml"))
