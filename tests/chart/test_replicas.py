"""The chart on PostgreSQL: any number of pods, spread and never all away at once, and no volume."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chart.rendering import SECRETS, Json, objects, pod_specs, read_yaml, texts, values_of

DATABASE: Json = {"journal": {"type": "postgresql"}}


def deployment(values: Json) -> Json:
    spec: Json = objects(values)["deployment"]["spec"]
    return spec


def mounts(values: Json) -> Json:
    """The service's mounts by the name of their volume."""
    return {mount["name"]: mount for mount in pod_specs(values)["deployment"]["containers"][0]["volumeMounts"]}


def volumes(values: Json) -> Json:
    return {volume["name"]: volume for volume in pod_specs(values)["deployment"]["volumes"]}


def journal_section(values: Json) -> Json:
    section: Json = read_yaml(objects(values)["configmap"]["data"]["bridge.yaml"])["journal"]
    return section


@pytest.mark.parametrize("replicas", [0, 1, 2, 50])
def test_any_number_of_pods_takes_webhooks(replicas: int) -> None:
    assert deployment({**DATABASE, "replicas": replicas})["replicas"] == replicas


def test_an_upgrade_takes_no_pod_away_before_the_next_is_ready() -> None:
    spec = deployment({**DATABASE, "startupSeconds": 900})
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert spec["progressDeadlineSeconds"] > 900
    (bridge,) = spec["template"]["spec"]["containers"]
    # Gone from the Service's endpoints first, then SIGTERM; both within the grace period.
    assert bridge["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "8"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 8 + 25 + 4 + 6
    assert bridge["startupProbe"]["failureThreshold"] * bridge["startupProbe"]["periodSeconds"] >= 900
    assert bridge["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}


def test_a_drained_node_takes_one_pod_at_most_and_a_single_pod_never_blocks_it() -> None:
    budget = objects(values_of("postgresql"))["poddisruptionbudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"] == deployment(values_of("postgresql"))["selector"]
    more = objects({**DATABASE, "replicas": 9, "podDisruptionBudget": {"maxUnavailable": 3}})
    assert more["poddisruptionbudget"]["spec"]["maxUnavailable"] == 3
    for replicas in (0, 1):
        assert "poddisruptionbudget" not in objects({**DATABASE, "replicas": replicas})


@pytest.mark.parametrize("spread, unmet", [("preferred", "ScheduleAnyway"), ("required", "DoNotSchedule")])
def test_pods_are_spread_over_zones_and_nodes(spread: str, unmet: str) -> None:
    spec = deployment({**DATABASE, "replicas": 3, "topologySpread": spread})
    zones, nodes = spec["template"]["spec"]["topologySpreadConstraints"]
    assert (zones["topologyKey"], zones["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", unmet)
    assert (nodes["topologyKey"], nodes["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    for each in (zones, nodes):
        assert each["maxSkew"] == 1
        assert each["labelSelector"] == spec["selector"]
        assert each["matchLabelKeys"] == ["pod-template-hash"]
        assert each["nodeTaintsPolicy"] == "Honor"


def test_the_databases_url_is_a_file_of_the_services_secret() -> None:
    assert journal_section(DATABASE)["url"] == {"file": f"{SECRETS}/journal-url"}
    assert "journal-url" not in volumes(DATABASE)
    renamed: Json = {"journal": {"type": "postgresql", "urlKey": "db"}}
    assert journal_section(renamed)["url"] == {"file": f"{SECRETS}/db"}


def test_the_databases_url_may_be_a_key_of_another_programs_secret() -> None:
    values = values_of("postgresql")
    assert volumes(values)["journal-url"]["secret"] == {
        "secretName": "journal-db-app",
        "defaultMode": 0o440,
        "items": [{"key": "uri", "path": "uri"}],
    }
    mount = mounts(values)["journal-url"]
    assert mount["readOnly"] is True
    assert journal_section(values)["url"] == {"file": f"{mount['mountPath']}/uri"}


def test_no_variable_and_no_volume_holds_a_journal() -> None:
    for values in (DATABASE, values_of("postgresql")):
        (bridge,) = pod_specs(values)["deployment"]["containers"]
        assert "BRIDGE_JOURNAL_URL" not in {each["name"] for each in bridge["env"]}
        assert volumes(values)["journal"]["emptyDir"] == {"sizeLimit": "1Mi"}
        assert mounts(values)["journal"] == {
            "name": "journal",
            "mountPath": "/var/lib/partner-bridge",
            "readOnly": True,
        }
        assert "PersistentVolumeClaim" not in {each["kind"] for each in objects(values).values()}


def test_the_journals_share_of_the_database_is_the_one_given() -> None:
    assert journal_section(values_of("postgresql"))["max_size"] == "100GiB"
    assert journal_section(DATABASE)["max_size"] == "20GiB"


def egress(values: Json) -> list[Any]:
    rules: list[Any] = objects(values)["networkpolicy"]["spec"]["egress"]
    return rules


def test_the_policy_lets_the_pods_out_to_the_database_and_its_port_alone() -> None:
    values = values_of("postgresql")
    names, database, https = egress(values)
    assert database == {
        "ports": [{"port": 5432, "protocol": "TCP"}],
        "to": [{"podSelector": {"matchLabels": {"cnpg.io/cluster": "journal-db"}}}],
    }
    assert [names, https] == egress({})
    assert egress(values_of("postgresql-single"))[1] == {"ports": [{"port": 6432, "protocol": "TCP"}]}
    proxy = values_of("proxy")["networkPolicy"]["egress"]
    assert egress({**DATABASE, "networkPolicy": {"egress": proxy}})[2:] == proxy


@pytest.mark.parametrize("reload", ["restart", "watch"])
def test_another_place_of_the_database_restarts_the_pods(reload: str) -> None:
    def checksum(**journal: Any) -> str:
        values = {"reload": reload, "journal": {"type": "postgresql", **journal}}
        return str(deployment(values)["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum() != checksum(urlKey="other")
    assert checksum() != checksum(urlSecret="other")
    assert (checksum() == checksum(maxPending=5)) is (reload == "watch")


def test_alerts_and_monitor_find_pods_that_have_no_number() -> None:
    found = objects(values_of("postgresql"))
    (group,) = found["prometheusrule"]["spec"]["groups"]
    (pattern,) = {name for rule in group["rules"] for name in re.findall(r'pod=~"([^"]*)"', rule["expr"])}
    assert re.fullmatch(pattern, "rel-partner-bridge-7c9d8b6f5d-x2x4z")
    assert re.fullmatch(pattern, "rel-partner-bridge-7c9d8x2x4z")  # as of a long name
    assert not re.fullmatch(pattern, "rel-partner-bridge-db-0")
    assert found["podmonitor"]["spec"]["selector"] == found["deployment"]["spec"]["selector"]


def test_the_notes_tell_where_the_journal_is_and_that_one_pod_is_one() -> None:
    several = texts(values_of("postgresql"))["templates/NOTES.txt"]
    assert "rollout status deployment/rel-partner-bridge" in several
    assert "database of journal-db-app, key uri" in several
    assert "WARNING" not in several
    single = texts(values_of("postgresql-single"))["templates/NOTES.txt"]
    assert "WARNING: one pod only" in single
    assert "database of bridge-secrets, key journal-url" in single
    given = texts({**DATABASE, "existingConfigMap": "mine"})["templates/NOTES.txt"]
    assert "journal.url in the ConfigMap mine" in given
