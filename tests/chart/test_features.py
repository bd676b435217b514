"""What each feature of the chart makes of its values."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from tests.chart.rendering import ACME, CHART, Json, helm_python, objects, pod_specs, read_yaml, texts, values_of
from tests.unit.test_readme import exposed

SOURCES: Json = {"config": {"sources": {"acme": ACME}}}


def test_the_ingress_publishes_webhooks_of_its_hosts_and_nothing_else() -> None:
    found = objects(values_of("ingress"))
    spec = found["ingress"]["spec"]
    assert [rule["host"] for rule in spec["rules"]] == ["hooks.example.com", "hooks.example.org"]
    for rule in spec["rules"]:
        (path,) = rule["http"]["paths"]
        assert (path["path"], path["pathType"]) == ("/webhooks", "Prefix")
        assert path["backend"]["service"] == {"name": found["service"]["metadata"]["name"], "port": {"name": "http"}}
    assert spec["tls"] == [{"secretName": "hooks-tls", "hosts": ["hooks.example.com", "hooks.example.org"]}]
    assert spec["ingressClassName"] == "nginx"


def test_the_route_publishes_webhooks_and_nothing_else() -> None:
    found = objects(values_of("httproute"))
    assert found["httproute"]["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert found["httproute"]["spec"] == {
        "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
        "hostnames": ["hooks.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/webhooks"}}],
                "backendRefs": [{"name": "rel-partner-bridge", "port": 8080}],
            }
        ],
    }
    assert found["service"]["spec"]["ports"][0]["port"] == 8080


def ports(rule: Json) -> set[Any]:
    return {each["port"] for each in rule["ports"]}


def test_the_network_policy_lets_in_webhooks_only_and_out_to_public_addresses_only() -> None:
    spec = objects()["networkpolicy"]["spec"]
    assert spec["podSelector"]["matchLabels"] == objects()["statefulset"]["spec"]["selector"]["matchLabels"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [ports(rule) for rule in spec["ingress"]] == [{"http"}]
    names, https = spec["egress"]
    assert (ports(names), ports(https)) == ({53}, {443})
    blocks = {each["ipBlock"]["cidr"]: each["ipBlock"]["except"] for each in https["to"]}
    assert set(blocks["0.0.0.0/0"]) >= {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"}
    assert "fc00::/7" in blocks["::/0"]


def test_the_scraper_alone_reaches_the_admin_port() -> None:
    values = values_of("monitoring")
    webhooks, metrics = objects(values)["networkpolicy"]["spec"]["ingress"]
    assert ports(webhooks) == {"http"}
    assert ports(metrics) == {"admin"}
    assert metrics["from"] == values["networkPolicy"]["metricsFrom"]


def test_pods_of_helm_test_pass_a_policy_that_names_the_ingress_and_take_no_webhooks() -> None:
    found = objects(values_of("ingress"))
    (rule,) = found["networkpolicy"]["spec"]["ingress"]
    labels = found["tests/ready"]["metadata"]["labels"]
    assert labels == found["tests/unsigned"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": labels}} in rule["from"]
    assert not labels.items() >= found["service"]["spec"]["selector"].items()


def test_a_proxy_takes_the_place_of_the_public_addresses() -> None:
    values = values_of("proxy")
    assert objects(values)["networkpolicy"]["spec"]["egress"][1:] == values["networkPolicy"]["egress"]
    spec = pod_specs(values)["statefulset"]
    assert values["extraVolumes"][0] in spec["volumes"]
    (mount,) = values["extraVolumeMounts"]
    assert mount in spec["containers"][0]["volumeMounts"]
    crm = read_yaml(objects(values)["configmap"]["data"]["bridge.yaml"])["crm"]
    assert crm["proxy"].endswith(":3128")
    assert Path(crm["ca_file"]).parent == Path(mount["mountPath"])


def test_the_monitor_scrapes_the_admin_port_of_the_service() -> None:
    found = objects(values_of("monitoring"))
    spec = found["podmonitor"]["spec"]
    assert spec["selector"] == found["statefulset"]["spec"]["selector"]
    assert spec["podMetricsEndpoints"] == [{"port": "admin", "path": "/metrics", "interval": "15s"}]
    assert found["podmonitor"]["metadata"]["labels"]["release"] == "prometheus"


def rules(values: Json) -> dict[str, Json]:
    (group,) = objects(values)["prometheusrule"]["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_alerts_are_promql_over_metrics_that_the_service_has() -> None:
    families = exposed()
    for name, rule in rules(values_of("monitoring")).items():
        promql_parser.parse(rule["expr"])
        for metric in re.findall(r"\bbridge_\w+", rule["expr"]):
            assert {metric, *(metric.removesuffix(each) for each in ("_total", "_bucket", "_count"))} & families, (
                name,
                metric,
            )
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        assert 'namespace="prod",pod=~"rel-partner-bridge-[0-9]+"' in rule["expr"]


def test_every_threshold_moves_an_alert() -> None:
    values = values_of("monitoring")
    usual = rules(values)
    changed = {
        "refusedWebhooks": 7, "journalShare": 0.51, "pendingShare": 0.52, "oldestPendingSeconds": 77, "pausedFor": "9m",
        "parkedEntries": 8, "refusedSignatureShare": 0.53, "dailyCallsLeft": 78, "answerSeconds": 0.54,
        "deliveryDelaySeconds": 55, "retryLogGrowth": 56, "ignoredEvents": 57, "unknownEvents": 58, "lackingEvents": 59,
    }  # fmt: skip
    for name, value in changed.items():
        thresholds = values["prometheusRule"]["thresholds"] | {name: value}
        moved = rules(values | {"prometheusRule": {"enabled": True, "thresholds": thresholds}})
        (alert,) = [each for each in usual if usual[each] != moved[each]]
        assert re.search(rf"[> <]{value}$", moved[alert]["expr"]) or moved[alert]["for"] == value
    assert changed.keys() == set(re.findall(r"\$limits\.(\w+)", (CHART / "templates/prometheusrule.yaml").read_text()))


def test_the_dashboard_reaches_grafana_as_it_was_written() -> None:
    board = objects(values_of("dashboard"))["dashboard"]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert board["metadata"]["annotations"] == {"grafana_folder": "CRM"}
    written = (CHART / "files" / "dashboard.json").read_text(encoding="utf-8")
    (name,) = board["data"]
    assert name.endswith(".json")
    assert json.loads(board["data"][name]) == json.loads(written)
    assert json.loads(written)["panels"]
    assert len(written) < 900_000, "a ConfigMap holds 1 MiB"


def test_a_chart_without_its_dashboard_says_so(tmp_path: Path) -> None:
    copy = shutil.copytree(CHART, tmp_path / "partner-bridge")
    (copy / "files" / "dashboard.json").unlink(missing_ok=True)
    helm_python.Chart.load(copy).render({}, name="rel", namespace="prod")
    with pytest.raises(helm_python.HelmError, match=r"without files/dashboard\.json"):
        helm_python.Chart.load(copy).render({"grafanaDashboard": {"enabled": True}}, name="rel", namespace="prod")


def test_secrets_of_a_trial_become_the_secret_that_the_pod_mounts() -> None:
    values = values_of("trial")
    secret = objects(values)["secret"]
    assert secret["stringData"] == values["secret"]["values"]
    volumes = {volume["name"]: volume for volume in pod_specs(values)["statefulset"]["volumes"]}
    assert volumes["secrets"]["secret"]["secretName"] == secret["metadata"]["name"]


@pytest.mark.parametrize("text", ['a"b', "no", "1e3", "two\nlines\n", "{{ .Values }}", "€ ", "\\n"])
def test_a_secret_of_a_trial_arrives_as_it_was_written(text: str) -> None:
    assert objects({"secret": {"values": {"acme": text}}})["secret"]["stringData"]["acme"] == text


def test_without_persistence_the_journal_is_bounded_and_the_notes_warn() -> None:
    values = values_of("trial")
    volumes = {volume["name"]: volume for volume in pod_specs(values)["statefulset"]["volumes"]}
    assert volumes["journal"]["emptyDir"] == {"sizeLimit": "2Gi"}
    assert "volumeClaimTemplates" not in objects(values)["statefulset"]["spec"]
    assert "dies with the pod" in texts(values)["templates/NOTES.txt"]
    assert "Helm's history" in texts(values)["templates/NOTES.txt"]


def test_what_exists_already_is_used_and_not_made() -> None:
    values = values_of("existing-config")
    spec = pod_specs(values)["statefulset"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["config"]["configMap"]["name"] == "bridge-config"
    assert volumes["secrets"]["secret"]["secretName"] == "bridge-secrets"
    assert volumes["journal"]["persistentVolumeClaim"] == {"claimName": "restored-journal"}
    assert "volumeClaimTemplates" not in objects(values)["statefulset"]["spec"]
    assert {each["serviceAccountName"] for each in pod_specs(values).values()} == {"bridge"}
    unwatched = "nothing watches the ConfigMap bridge-config"
    assert unwatched not in texts(values)["templates/NOTES.txt"]
    assert unwatched in texts({**values, "reload": "restart"})["templates/NOTES.txt"]


def pod_annotations(values: Json) -> Json:
    found: Json = objects(values)["statefulset"]["spec"]["template"]["metadata"]["annotations"]
    return found


@pytest.mark.parametrize("reload", ["watch", "manual"])
def test_what_a_reload_can_change_restarts_nothing(reload: str) -> None:
    usual = pod_annotations({"reload": reload})
    assert pod_annotations({"reload": reload, **SOURCES, "server": {"maxBody": "2MiB"}}) == usual
    assert pod_annotations({"reload": reload, "journal": {"maxPending": 5}}) == usual
    for fixed in ({"server": {"workers": 2}}, {"server": {"threads": 2}}, {"shutdown": {"drainSeconds": 5}}):
        assert pod_annotations({"reload": reload, **fixed}) != usual


def test_the_service_watches_its_configuration_unless_told_otherwise() -> None:
    """And nothing stands beside it for that."""

    def told(values: Json) -> list[str]:
        (service,) = pod_specs(values)["statefulset"]["containers"]
        return [each["value"] for each in service["env"] if each["name"] == "BRIDGE_RELOAD"]

    assert told({}) == ["watch"]
    assert told(values_of("restart")) == told(values_of("manual-reload")) == []


def test_a_stopped_release_has_no_pod_and_keeps_its_volume() -> None:
    spec = objects(values_of("stopped"))["statefulset"]["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert spec["replicas"] == 0
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["spec"]["storageClassName"] == "local-path"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_under_maintenance_the_pod_has_its_volumes_and_no_service() -> None:
    usual, found = objects(values_of("default")), objects(values_of("maintenance"))
    specs = [each["statefulset"]["spec"]["template"]["spec"] for each in (usual, found)]
    (service,), (sleeper,) = (each["containers"] for each in specs)
    assert "args" not in sleeper
    assert sleeper["command"][0] == "sh"
    # A probe that is never met would keep the old pods of a Deployment beside these.
    assert not {"startupProbe", "livenessProbe", "readinessProbe", "lifecycle"} & sleeper.keys()
    for key in ("env", "volumeMounts", "securityContext"):
        assert sleeper[key] == service[key]
    assert specs[0]["volumes"] == specs[1]["volumes"]
    # It reaches the database that the journal may be carried to.
    assert {5432} in [ports(rule) for rule in found["networkpolicy"]["spec"]["egress"]]
    assert {5432} not in [ports(rule) for rule in usual["networkpolicy"]["spec"]["egress"]]
    assert "maintenance is on" in texts(values_of("maintenance"))["templates/NOTES.txt"]


def test_placement_image_and_labels_reach_what_they_are_for() -> None:
    values = values_of("placement")
    found = objects(values)
    for spec in pod_specs(values).values():
        assert spec["priorityClassName"] == "high"
        assert spec["nodeSelector"] == values["nodeSelector"]
        assert spec["tolerations"] == values["tolerations"]
        assert spec["affinity"] == values["affinity"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert {each["image"] for each in spec["containers"]} == {
            f"registry.example.com/crm/partner-bridge@{values['image']['digest']}"
        }
    for each in found.values():
        assert each["metadata"]["labels"]["team"] == "crm"
        assert each["metadata"]["annotations"]["example.com/cost-center"] == "42"
    assert found["tests/ready"]["metadata"]["annotations"]["helm.sh/hook"] == "test"
    pod = found["statefulset"]["spec"]["template"]["metadata"]
    assert pod["labels"].items() >= {"team": "crm", "tier": "integration"}.items()
    assert pod["annotations"].items() >= {"example.com/backup": "yes", "example.com/cost-center": "42"}.items()
    (bridge,) = pod_specs(values)["statefulset"]["containers"]
    assert bridge["startupProbe"]["failureThreshold"] * bridge["startupProbe"]["periodSeconds"] >= 900


def test_labels_for_all_objects_never_replace_the_charts_own() -> None:
    found = objects({"commonLabels": {"app.kubernetes.io/name": "stolen", "team": "crm"}})
    assert {each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in found.values()} == {"rel"}
    assert "stolen" not in str(found)


def test_the_unsigned_webhook_goes_to_a_source_that_wants_a_signature() -> None:
    def asked(sources: Json, **more: Any) -> str | None:
        found = objects({"config": {"sources": sources}, **more})
        if "tests/unsigned" not in found:
            return None
        (each,) = found["tests/unsigned"]["spec"]["containers"]
        return next(str(variable["value"]) for variable in each["env"] if variable["name"] == "URL")

    nobody: Json = {"verify": {"scheme": "none"}}
    assert asked({"a": nobody}) is None
    assert asked({"a": nobody, "b": ACME}) == "http://rel-partner-bridge:80/webhooks/b"
    assert asked({"a": nobody, "b": ACME, "c": ACME}, test={"source": "c"}) == "http://rel-partner-bridge:80/webhooks/c"


def test_the_notes_name_the_public_url_and_what_is_unsafe() -> None:
    published = texts(values_of("ingress"))["templates/NOTES.txt"]
    assert "https://hooks.example.com/webhooks/acme" in published
    assert "helm --namespace prod test rel" in published
    assert "curl -i -H 'Content-Type: application/json' -d '{}' https://hooks.example.com/webhooks/acme" in published
    assert "WARNING" not in published
    assert "https://hooks.example.com/webhooks/acme" in texts(values_of("httproute"))["templates/NOTES.txt"]
    plain = texts({**SOURCES, "ingress": {"enabled": True, "hosts": ["a.example.com"]}})["templates/NOTES.txt"]
    assert "http://a.example.com/webhooks/acme" in plain
    assert "has no TLS" in plain
    assert "admin port" in texts(values_of("open"))["templates/NOTES.txt"]
    assert "replicas is 0" in texts(values_of("stopped"))["templates/NOTES.txt"]
    signed: Json = {"verify": {"scheme": "hubspot-v3"}}
    assert "server.publicUrl" in texts({"config": {"sources": {"hub": signed}}})["templates/NOTES.txt"]
