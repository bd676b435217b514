"""The Helm chart, rendered by Helm's own engine: what Kubernetes would be given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge import __version__
from bridge.config import load_settings
from bridge.config.editor_schema import build_schema
from tests.chart.rendering import CHART, SECRETS, Json, features, helm_python, objects, read_yaml, texts, values_of

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="manifests are validated by kubernetes-validate, which is not installed"
)

#: what a release has, unless its values say otherwise
USUAL = {"statefulset", "service", "configmap", "serviceaccount", "networkpolicy", "tests/ready", "tests/unsigned"}
MORE = {
    "ingress": {"ingress"},
    "httproute": {"httproute"},
    "monitoring": {"podmonitor", "prometheusrule"},
    "trial": {"secret"},
    "dashboard": {"dashboard"},
    "postgresql": {"deployment", "poddisruptionbudget", "podmonitor", "prometheusrule"},
    "postgresql-single": {"deployment"},
}
LESS = {
    "defaults": {"tests/unsigned"},
    "open": {"networkpolicy"},
    "existing-config": {"configmap", "serviceaccount"},
    "postgresql": {"statefulset"},
    "postgresql-single": {"statefulset"},
}


def render(values: Json | None = None) -> dict[str, Json]:
    """The objects by kind, without those of single features and of `helm test`."""
    usual = {*USUAL, "deployment"}
    return {each["kind"]: each for name, each in objects(values).items() if name in usual and "/" not in name}


def notes(values: Json) -> str:
    return texts(values)["templates/NOTES.txt"]


def pod(values: Json | None = None) -> Json:
    found = render(values)
    (kind,) = {"StatefulSet", "Deployment"} & found.keys()
    spec: Json = found[kind]["spec"]["template"]["spec"]
    return spec


def container(values: Json | None = None) -> Json:
    (found,) = [each for each in pod(values)["containers"] if each["name"] == "bridge"]
    assert isinstance(found, dict)
    return found


def bridge_yaml(values: Json | None = None) -> Json:
    """The configuration that the service will read, read as the service does: YAML 1.2."""
    config: Json = read_yaml(render(values)["ConfigMap"]["data"]["bridge.yaml"])
    return config


@pytest.mark.parametrize("feature", ["defaults", *features()])
def test_helm_finds_nothing_to_complain_about(feature: str) -> None:
    values = {} if feature == "defaults" else values_of(feature)
    report = helm_python.lint(CHART, values, strict=True)
    info = 1
    assert [each for each in report["messages"] if each["severity"] > info] == []
    assert set(objects(values)) == (USUAL | MORE.get(feature, set())) - LESS.get(feature, set())


def test_chart_and_program_carry_one_version() -> None:
    assert read_yaml((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
    assert container()["image"] == f"partner-bridge:{__version__}"


def test_the_pod_meets_the_restricted_security_standard() -> None:
    spec = pod()
    (each,) = spec["containers"]
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["runAsGroup"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["securityContext"].keys() & {"sysctls", "seLinuxOptions", "appArmorProfile"}
    assert each["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("hostPort" not in port for port in each["ports"])
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"configMap", "secret", "emptyDir"}


def test_no_token_of_kubernetes_and_no_variables_of_other_services_reach_the_pod() -> None:
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["enableServiceLinks"] is False
    assert render()["ServiceAccount"]["automountServiceAccountToken"] is False


def test_probes_ask_the_admin_port_and_name_no_host() -> None:
    each = container()
    probes = {name: each[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {
        "startupProbe": {"path": "/livez", "port": "admin"},
        "livenessProbe": {"path": "/livez", "port": "admin"},
        "readinessProbe": {"path": "/readyz", "port": "admin"},
    }
    assert {port["name"]: port["containerPort"] for port in each["ports"]} == {"http": 8080, "admin": 9090}


def test_the_service_publishes_the_webhook_port_only() -> None:
    (port,) = render()["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"


@pytest.mark.parametrize("pre_stop", [1, 8, 120])
@pytest.mark.parametrize("drain", [1, 25, 600])
def test_the_grace_period_covers_the_pause_the_drain_and_the_rest(pre_stop: int, drain: int) -> None:
    values = {"shutdown": {"preStopSeconds": pre_stop, "drainSeconds": drain}}
    assert container(values)["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(pre_stop)]
    assert bridge_yaml(values)["server"]["drain_timeout"] == f"{drain}s"
    # The process ends within drain_timeout and 4 s.
    assert pod(values)["terminationGracePeriodSeconds"] >= pre_stop + drain + 4 + 5


def test_one_pod_and_its_volume_keep_the_journal() -> None:
    spec = render()["StatefulSet"]["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    variables = {each["name"]: each["value"] for each in container()["env"]}
    assert spec["replicas"] == 1
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    assert mounts[claim["metadata"]["name"]] == "/var/lib/partner-bridge"
    assert variables["BRIDGE_JOURNAL_URL"] == "sqlite:////var/lib/partner-bridge/journal.db"
    assert variables["BRIDGE_CONFIG"] == f"{mounts['config']}/bridge.yaml"
    assert variables["BRIDGE_BIND"].endswith(":8080")
    assert variables["BRIDGE_ADMIN_BIND"].endswith(":9090")


@pytest.mark.parametrize("gib", [2, 25, 2000])
def test_the_journal_stays_smaller_than_its_volume(gib: int) -> None:
    values = {"journal": {"volumeGiB": gib}}
    (claim,) = render(values)["StatefulSet"]["spec"]["volumeClaimTemplates"]
    size = re.fullmatch(r"(\d+)MiB", bridge_yaml(values)["journal"]["max_size"])
    assert claim["spec"]["resources"]["requests"]["storage"] == f"{gib}Gi"
    assert size is not None
    assert 0.79 < int(size[1]) / 1024 / gib <= 0.8


def test_secrets_are_files_of_an_existing_secret_and_follow_its_changes() -> None:
    volumes = {volume["name"]: volume for volume in pod({"secret": {"name": "mine"}})["volumes"]}
    (mount,) = [each for each in container()["volumeMounts"] if each["name"] == "secrets"]
    assert volumes["secrets"]["secret"]["secretName"] == "mine"
    assert volumes["secrets"]["secret"]["defaultMode"] == 0o440
    assert mount == {"name": "secrets", "mountPath": SECRETS, "readOnly": True}
    assert all("subPath" not in each for each in container()["volumeMounts"])
    assert bridge_yaml()["crm"] == {"token": {"file": f"{SECRETS}/hubspot-token"}}
    admin = bridge_yaml({"server": {"adminTokenKey": "admin"}})["server"]["admin_token"]
    assert admin == {"file": f"{SECRETS}/admin"}


def test_temporary_files_are_in_memory_and_bounded() -> None:
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert volumes["tmp"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}


def test_the_configuration_arrives_as_it_was_written() -> None:
    acme = {
        "verify": {"scheme": "standard-webhooks", "secrets": [{"file": f"{SECRETS}/acme"}]},
        "record": {"id": "data.id"},
        "properties": {"tier": {"from": "plan", "values": {"no": "off", "*": "1e3"}, "scale": 0.01}},
        "examples": [{"payload": {"at": "2026-01-02", "n": 12345678}, "ignored": True}],
    }
    config: Json = {
        "crm": {"rate_limit": {"calls": 100, "per": "10s", "daily": 1_000_000}},
        "retry": {"max": "10m"},
        "sources": {"acme": acme},
        "x-shared": {"a": None},
    }
    written = bridge_yaml({"config": config})
    assert written["sources"] == {"acme": acme}
    assert written["crm"]["rate_limit"] == config["crm"]["rate_limit"]
    assert written["retry"] == {"max": "10m"}
    assert bridge_yaml()["journal"]["max_pending"] == 1_000_000
    assert "retry" not in bridge_yaml()


@pytest.mark.parametrize("feature", [each for each in features() if "config" in values_of(each)])
def test_the_service_accepts_what_the_chart_writes(feature: str, tmp_path: Path) -> None:
    values = values_of(feature)
    given = {"publicUrl": "https://hooks.example.com", "adminTokenKey": "admin"}
    text = render({**values, "server": {**values.get("server", {}), **given}})["ConfigMap"]["data"]["bridge.yaml"]
    secret, database = "whsec_" + "c2VjcmV0" * 5, "postgresql://bridge:secret@db/bridge"
    mounted = {mount["mountPath"] for mount in container(values)["volumeMounts"]}
    for folder, name in re.findall(r"file: (/run/secrets/[\w-]+)/([\w.-]+)", text):
        assert folder in mounted
        (tmp_path / name).write_text(database if name in {"journal-url", "uri"} else secret)
    for folder in (mount["mountPath"] for mount in values.get("extraVolumeMounts", [])):
        (certificates,) = re.findall(rf"ca_file: {folder}/([\w.-]+)", text)
        (tmp_path / certificates).touch()
        text = text.replace(folder, str(tmp_path))
    (tmp_path / "bridge.yaml").write_text(re.sub(r"/run/secrets/[\w-]+", str(tmp_path), text))
    variables = {each["name"]: each.get("value", secret) for each in container(values)["env"]}
    settings = load_settings(tmp_path / "bridge.yaml", environ=variables)
    assert settings.sources.keys() == values["config"]["sources"].keys()
    everywhere = "::" if feature == "ipv6" else "0.0.0.0"  # noqa: S104 (a container serves all its interfaces)
    assert settings.server.bind == (everywhere, 8080)
    assert settings.server.admin_bind == (everywhere, 9090)
    assert settings.journal.url == variables.get("BRIDGE_JOURNAL_URL", database)
    assert ("BRIDGE_JOURNAL_URL" in variables) is ("postgresql" not in feature)


def test_oauth_takes_the_place_of_the_token() -> None:
    oauth = {"client_id": "1", "client_secret": {"file": f"{SECRETS}/client"}}
    assert bridge_yaml({"config": {"crm": {"token": None, "oauth": oauth}}})["crm"] == {"oauth": oauth}


def test_a_changed_configuration_restarts_the_pod_where_that_is_asked_for_and_nothing_else_does() -> None:
    def checksum(values: Json) -> str:
        meta = render({"reload": "restart", **values})["StatefulSet"]["spec"]["template"]["metadata"]
        return str(meta["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"service": {"port": 81}})
    assert checksum({}) != checksum({"server": {"threads": 8}})
    assert checksum({}) != checksum({"config": {"sources": {"acme": {}}}})


def test_labels_of_the_user_never_break_the_selector() -> None:
    labels = {"team": "crm", "app.kubernetes.io/name": "stolen"}
    spec = render({"podLabels": labels})["StatefulSet"]["spec"]
    given = spec["template"]["metadata"]["labels"]
    assert given.items() >= spec["selector"]["matchLabels"].items()
    assert given["team"] == "crm"
    assert render()["Service"]["spec"]["selector"] == spec["selector"]["matchLabels"]


@pytest.mark.parametrize("release", ["r", "partner-bridge", "a" * 53])
def test_names_fit_what_kubernetes_appends(release: str) -> None:
    name = read_yaml(texts(release=release)["templates/statefulset.yaml"])["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 52


def test_the_image_is_taken_by_digest_when_one_is_given() -> None:
    digest = "sha256:" + "ab" * 32
    assert container({"image": {"digest": digest, "tag": "1.0"}})["image"] == f"partner-bridge@{digest}"
    assert container({"image": {"tag": "1.0"}})["image"] == "partner-bridge:1.0"


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 2},  # one journal has one writer
        {"image": {"tags": "1"}},
        {"image": {"digest": "sha256:short"}},
        {"config": {"server": {"workers": 2}}},  # the chart's own
        {"config": {"journal": {"url": "sqlite:////x"}}},
        {"config": {"sources": {"acme": "x"}}},
        {"config": {"source": {}}},
        {"server": {"workers": 0}},
        {"server": {"address": "127.0.0.1"}},  # no probe would find it
        {"server": {"publicUrl": "hooks.example.com"}},
        {"server": {"adminTokenKey": "../etc/passwd"}},
        {"journal": {"volumeGiB": "25Gi"}},
        {"journal": {"retention": "7 days"}},
        {"journal": {"type": "postgres"}},
        {"journal": {"type": "postgresql", "url": "postgresql://bridge:secret@db/bridge"}},  # a secret in the values
        {"journal": {"type": "postgresql", "urlKey": ""}},
        {"journal": {"type": "postgresql", "maxSizeGiB": 0}},
        {"podDisruptionBudget": {"minAvailable": 1}},
        {"podDisruptionBudget": {"maxUnavailable": 0}},  # no node could be drained
        {"topologySpread": "zones"},
        {"networkPolicy": {"databaseTo": [{}]}},  # would let everything out
        {"grafanaDashboard": {"enabled": "yes"}},
        {"shutdown": {"drainSeconds": "25s"}},
        {"service": {"type": "Loadbalancer"}},
        {"resources": {"limit": {"memory": "1Gi"}}},
        {"log": {"level": "verbose"}},
        {"ingress": {"host": "hooks.example.com"}},
        {"ingress": {"enabled": True, "hosts": ["https://hooks.example.com"]}},
        {"httpRoute": {"parentRefs": [{"nam": "public"}]}},
        {"networkPolicy": {"metricsFrom": [{"namespace": "monitoring"}]}},
        {"networkPolicy": {"metricsFrom": [{}]}},  # would let everybody in
        {"podMonitor": {"interval": "0s"}},
        {"prometheusRule": {"thresholds": {"journalShare": 90}}},
        {"reload": "sidecar"},
        {"secret": {"values": {"../acme": "x"}}},
        {"journal": {"accessMode": "ReadWriteMany"}},
        {"extraVolumes": [{"name": "docker", "hostPath": {"path": "/var/run"}}]},
        {"priorityClassName": "High!"},
        {"image": {"repository": "registry.example.com/bridge:1.0"}},  # the tag is a value of its own
        {"commonLabels": {"team": "customer relations"}},
        {"config": {"crm": {"rate_limits": {"calls": 100}}}},
        {"config": {"crm": {"rate_limit": {"call": 100}}}},
        {"config": {"retry": {"maximum": "1m"}}},
        {"config": {"sources": {"acme": {"verfy": {}}}}},
        {"config": {"sources": {"acme": {"verify": {"secret": "x"}}}}},
        {"config": {"sources": {"Acme!": {}}}},
        {"networkPolicy": {"metricsFrom": [{"podSelector": {"matchLabel": {"a": "b"}}}]}},  # would let everybody in
        {"networkPolicy": {"databaseTo": [{"ipBlock": {"cdir": "10.0.0.0/8"}}]}},
        {"networkPolicy": {"egress": [{"ports": [{"prot": 443}]}]}},  # would let everything out
        {"affinity": {"nodeAffinity": {"required": []}}},
        {"extraEnv": [{"name": "ACME", "valueFrom": {"secretRef": {"name": "acme"}}}]},
        {"extraVolumes": [{"name": "certificates"}]},
    ],
    ids=json.dumps,
)
def test_a_slip_in_the_values_is_refused_by_its_name(values: Json) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    assert any(key in str(refused.value) for key in list(keys(values))[-2:]), refused.value


def keys(values: Any) -> Iterator[str]:
    """The names in some values, from the outside in: the last two are where the slip is."""
    for each in values if isinstance(values, list) else [values]:
        if isinstance(each, dict):
            for key, inner in each.items():
                yield key
                yield from keys(inner)


@pytest.mark.parametrize(
    "values, word",
    [
        ({"replicas": 2}, "server.workers"),
        ({"replicas": 2}, "journal.type postgresql"),
        ({"journal": {"urlSecret": "db"}}, "journal.type postgresql"),
        ({"journal": {"type": "postgresql", "existingClaim": "mine"}}, "journal.existingClaim"),
        ({"journal": {"type": "postgresql", "persistent": False}}, "journal.persistent"),
        (
            {"journal": {"type": "postgresql"}, "replicas": 2, "podDisruptionBudget": {"maxUnavailable": 2}},
            "than replicas",
        ),
        ({"existingConfigMap": "mine", "config": {"sources": {"acme": {}}}}, "config.sources"),
        ({"secret": {"name": "mine", "values": {"acme": "x"}}}, "secret.values"),
        ({"journal": {"persistent": False, "existingClaim": "mine"}}, "journal.persistent"),
        ({"ingress": {"enabled": True}}, "ingress.hosts"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
        ({"podMonitor": {"enabled": True}}, "networkPolicy.metricsFrom"),
        ({"test": {"source": "amce"}, "config": {"sources": {"acme": {}}}}, "config.sources"),
        ({"image": {"tag": "latest"}}, "a restart must not be an upgrade"),
        ({"extraEnv": [{"name": "BRIDGE_JOURNAL_URL", "value": "sqlite:////tmp/x"}]}, "the chart sets this variable"),
        ({"extraEnv": [{"name": "BRIDGE_RELOAD", "value": ""}]}, "the chart sets this variable"),
        ({"extraVolumes": [{"name": "journal", "emptyDir": {}}]}, "the chart has a volume of this name"),
    ],
    ids=json.dumps,
)
def test_values_that_do_not_go_together_are_refused_with_the_way_out(values: Json, word: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(word)):
        objects(values)


def defaults_without_comment() -> Iterator[str]:
    """Keys of values.yaml that no comment line stands before."""
    before = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        key = re.match(r"\s*([\w-]+):", line)
        # A block's first key may be explained by the block's own comment only if it has none of its own.
        if key and not before.lstrip().startswith("#") and not line.rstrip().endswith(":"):
            yield key[1]
        before = line


def test_every_value_says_what_it_does() -> None:
    assert list(defaults_without_comment()) == []


@pytest.mark.parametrize("name", ["1e3", "123", "true", "null"])
def test_a_name_that_yaml_could_take_for_something_else_stays_a_name(name: str) -> None:
    values: Json = {
        "existingConfigMap": name,
        "secret": {"name": name},
        "serviceAccount": {"name": name},
        "journal": {"storageClass": name},
        "priorityClassName": name,
        "ingress": {"enabled": True, "hosts": ["hooks.example.com"], "className": name, "tlsSecret": name},
        "nameOverride": name if name.isalpha() else "",
    }
    spec = pod(values)
    assert {spec["serviceAccountName"], spec["priorityClassName"]} == {name}
    for more in ({}, {"journal": {"existingClaim": name}}, {"journal": {"type": "postgresql", "urlSecret": name}}):
        for each in objects({**values, **more}, release=name).values():
            if not each["apiVersion"].startswith("monitoring"):
                kubernetes_validate.validate(each, "1.33", strict=True)
            assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == name


def test_every_object_of_the_schema_is_closed_but_those_of_kubernetes() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    volumes = "properties.extraVolumes.items.properties."
    assert {each for each in open_objects(schema) if not each.startswith(volumes)} == {"properties.global"}


def open_objects(schema: Any, path: str = "") -> Iterator[str]:
    """Where the schema says `object` and lets any name pass."""
    if isinstance(schema, list):
        for each in schema:
            yield from open_objects(each, path)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
        yield path
    for name, inner in schema.items():
        yield from open_objects(inner, f"{path}.{name}".lstrip("."))


def test_the_schema_knows_the_names_that_the_service_knows() -> None:
    """Of bridge.yaml's outer blocks; a slip further inside is refused by the service at its start."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    blocks = schema["definitions"]["bridge"]["definitions"]
    service = build_schema()["$defs"]
    assert {name: set(block["properties"]) for name, block in blocks.items()} == {
        name: set(service[name]["properties"]) for name in blocks
    }


def closed_and_complete(schema: Json, values: Any, path: str = "") -> Iterator[str]:
    """Where the schema lets unknown names pass, or misses one that values.yaml has."""
    if not isinstance(values, dict) or "properties" not in schema:
        return
    if schema.get("additionalProperties") is not False:
        yield f"{path} is open"
    for name, value in values.items():
        if name not in schema["properties"]:
            yield f"{path}.{name} is unknown"
        else:
            yield from closed_and_complete(schema["properties"][name], value, f"{path}.{name}")


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = read_yaml((CHART / "values.yaml").read_text())
    assert list(closed_and_complete(schema, values)) == []
    assert schema["properties"].keys() - values.keys() == {"global"}


def test_the_notes_name_the_urls_the_secret_and_what_is_missing() -> None:
    text = notes({"config": {"sources": {"acme": {}}}, "secret": {"name": "mine"}})
    assert "http://rel-partner-bridge.prod.svc:80/webhooks/acme" in text
    assert "Secret mine" in text
    assert "config.sources is empty" in notes({})
