"""Every object of every feature is one that Kubernetes takes, and every pod one that "restricted" admits."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tests.chart.rendering import Json, containers, features, objects, pod_specs, values_of

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="manifests are validated by kubernetes-validate, which is not installed"
)

#: Kubernetes' versions: the oldest that the chart takes, a middle one, the newest known
VERSIONS = ("1.29", "1.33", "1.37")
#: API groups of extensions: no schema of Kubernetes' own
EXTENSIONS = {"gateway.networking.k8s.io", "monitoring.coreos.com"}
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
HOOKS = ("startupProbe", "livenessProbe", "readinessProbe")


def violations(spec: Json) -> Iterator[str]:
    """What the "restricted" pod security standard, and our own rules beyond it, forbid in a pod."""
    whole = spec.get("securityContext", {})
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    yield from (key for key in ("sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions") if key in whole)
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken"
    if spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks"
    for volume in spec.get("volumes", []):
        yield from (f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUMES)
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield "emptyDir without limit"
    for each in containers(spec):
        yield from (f"{each['name']}: {fault}" for fault in container_violations(each, whole))


def container_violations(each: Json, whole: Json) -> Iterator[str]:
    own = each.get("securityContext", {})
    effective = whole | own
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if own.get("privileged"):
        yield "privileged"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem"
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add", []) not in ([], None):
        yield "capabilities"
    if effective.get("runAsNonRoot") is not True or effective.get("runAsUser", 0) < 10_000:
        yield "runs as root"
    if effective.get("runAsGroup", 0) < 10_000:
        yield "runAsGroup"
    if effective.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "seccompProfile"
    if effective.get("procMount", "Default") != "Default":
        yield "procMount"
    yield from (key for key in ("seLinuxOptions", "appArmorProfile", "windowsOptions") if key in own)
    yield from ("hostPort" for port in each.get("ports", []) if port.get("hostPort"))
    hooks: list[Any] = [each.get(name) for name in HOOKS] + list(each.get("lifecycle", {}).values())
    for hook in filter(None, hooks):
        yield from (f"host in {kind}" for kind in ("httpGet", "tcpSocket") if "host" in hook.get(kind, {}))
    if "memory" not in each.get("resources", {}).get("limits", {}):
        yield "no memory limit"
    if each["image"].endswith(":latest") or not {":", "@"} & set(each["image"]):
        yield "image without a version"
    yield from ("subPath" for mount in each.get("volumeMounts", []) if "subPath" in mount)


@pytest.mark.parametrize("feature", ["defaults", *features()])
def test_every_pod_is_admitted_by_restricted(feature: str) -> None:
    specs = pod_specs({} if feature == "defaults" else values_of(feature))
    assert {"tests/ready"} < specs.keys()
    assert len({"statefulset", "deployment"} & specs.keys()) == 1
    assert {name: list(violations(spec)) for name, spec in specs.items()} == {name: [] for name in specs}


@pytest.mark.parametrize(
    "place, value",
    [
        (("hostNetwork",), True),
        (("automountServiceAccountToken",), True),
        (("securityContext", "runAsUser"), 0),
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("volumes", 0), {"name": "host", "hostPath": {"path": "/"}}),
        (("containers", 0, "securityContext", "privileged"), True),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["ALL"], "add": ["NET_RAW"]}),
        (("containers", 0, "securityContext", "runAsUser"), 0),
        (("containers", 0, "ports", 0, "hostPort"), 80),
        (("containers", 0, "livenessProbe", "httpGet", "host"), "169.254.169.254"),
        (("initContainers",), [{"name": "first", "image": "first:1"}]),
        (("containers", 0, "image"), "partner-bridge:latest"),
    ],
    ids=str,
)
def test_the_check_sees_what_is_forbidden(place: tuple[Any, ...], value: Any) -> None:
    spec = copy.deepcopy(pod_specs()["statefulset"])
    inner: Any = spec
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert list(violations(spec)) != []


@cache
def take(text: str, version: str) -> None:
    """Let Kubernetes' schemas judge an object; most are the same whatever the feature."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("feature", ["defaults", *features()])
def test_kubernetes_takes_every_object(feature: str, version: str) -> None:
    for each in objects({} if feature == "defaults" else values_of(feature)).values():
        if each["apiVersion"].partition("/")[0] not in EXTENSIONS:
            take(json.dumps(each), version)


def test_no_object_but_the_admin_ports_own_rule_names_the_admin_port() -> None:
    for feature in features():
        found = objects(values_of(feature))
        for name in {"service", "ingress", "httproute"} & found.keys():
            assert "9090" not in str(found[name])
            assert "admin" not in str(found[name])
