"""Rules, alerts, dashboard and collector: what they ask for exists, and where they send whoever is woken.

Prometheus itself judges and evaluates them in `make test-compose`, on what the services really show.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.cli.deployment import OBSERVERS
from casemate.cli.state import SERVICES
from casemate.transport.metrics import COUNTERS, GAUGES

CHECKOUT = Path(__file__).parents[2]
COMPOSE = CHECKOUT / "deploy" / "compose" / "observability"
KUBERNETES = CHECKOUT / "deploy" / "kubernetes" / "components" / "observability"
METRIC = re.compile(r"\b(?:casemate|nv)_[a-z_]+\b")

RULES = yaml.safe_load((COMPOSE / "rules.yml").read_text())
ALERTS = yaml.safe_load((KUBERNETES / "alerts.yaml").read_text())["spec"]
DASHBOARD = json.loads((COMPOSE / "grafana" / "dashboards" / "casemate.json").read_text())
COLLECTOR = yaml.safe_load((COMPOSE / "collector.yml").read_text())
ADAPTER = yaml.safe_load((KUBERNETES / "adapter-rules.yaml").read_text())["rules"]["custom"][0]


def alerts() -> Iterator[dict[str, Any]]:
    """Every rule of both."""
    for groups in (RULES, ALERTS):
        for group in groups["groups"]:
            yield from group["rules"]


def shown() -> set[str]:
    """Names of metrics in the code of services and transport, as they are shown."""
    names = {f"casemate_{name}" for name in (*COUNTERS, *GAUGES)}
    for file in [*(CHECKOUT / "services").rglob("*.py"), *(CHECKOUT / "src" / "casemate").rglob("*.py")]:
        text = file.read_text()
        names |= {f"casemate_{name}" for name in re.findall(r'\.(?:gauge|counter)\(\s*"([a-z_]+)"', text)}
        names |= set(re.findall(r'"(nv_[a-z_]+)"', text))
        names |= set(re.findall(r'MetricFamily\(\s*"(casemate_[a-z_]+)"', text))
        for before, after in re.findall(r'f"(nv_[a-z_]+)\{name\}([a-z_]+)"', text):
            names |= {f"{before}{part}{after}" for part in re.findall(r'\("(\w+)", counts\.', text)}
    return names


def queries() -> list[str]:
    """Everything that is asked of Prometheus, by whomever."""
    asked = {rule["expr"] for rule in alerts()}
    asked |= {target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())}
    return sorted({*asked, ADAPTER["metricsQuery"], ADAPTER["seriesQuery"]})


@pytest.mark.parametrize("query", queries())
def test_every_metric_that_is_asked_for_is_one_that_a_service_shows(query: str) -> None:
    """`up` is Prometheus's own."""
    asked = set(METRIC.findall(query))
    assert asked or "up" in query
    assert asked <= shown(), asked - shown()


@pytest.mark.parametrize("rule", list(alerts()), ids=lambda rule: rule["alert"])
def test_whoever_is_woken_finds_what_to_do(rule: dict[str, Any]) -> None:
    """The page exists, and so does its part."""
    assert rule["labels"]["severity"] in {"page", "ticket"}
    page, _, part = rule["annotations"]["runbook"].partition("#")
    text = (CHECKOUT / page).read_text()
    assert not part or re.search(rf"(?mi)^## {re.escape(part)}$", text), rule["annotations"]["runbook"]


def test_every_panel_asks_the_data_source_that_is_provisioned() -> None:
    """By its identifier, whatever it is called."""
    file = COMPOSE / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(file.read_text())["datasources"]
    panels = [panel for panel in DASHBOARD["panels"] if panel.get("targets")]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    (provider,) = yaml.safe_load((COMPOSE / "grafana" / "provisioning" / "dashboards" / "casemate.yml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/etc/casemate/dashboards"


def test_prometheus_asks_every_service_by_its_name_over_tls_1_3() -> None:
    """With a certificate of its own."""
    jobs = {job["job_name"]: job for job in yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]}
    assert set(jobs) == set(SERVICES)
    for service, job in jobs.items():
        assert job["scheme"] == "https"
        assert job["tls_config"]["min_version"] == "TLS13"
        assert job["tls_config"]["server_name"] == f"{service}.casemate.internal"
        assert job["tls_config"]["cert_file"] == "/run/casemate/service/cert.pem"
        assert "insecure_skip_verify" not in job["tls_config"]


def test_the_collector_takes_nobody_without_a_certificate_and_follows_renewals_and_another_root() -> None:
    """It has a name of its own to show."""
    (receiver,) = COLLECTOR["receivers"].values()
    (tls,) = (protocol["tls"] for protocol in receiver["protocols"].values())
    assert tls["client_ca_file"] == "/run/casemate/service/ca.pem"
    assert (tls["min_version"], tls["client_ca_file_reload"]) == ("1.3", True)
    assert tls["reload_interval"]
    assert "collector" in OBSERVERS


def test_no_token_gets_through_the_collector() -> None:
    """Every pipeline of texts takes credentials out, and what is left of the rest is no token of ours."""
    known = {kind: set(COLLECTOR[kind]) for kind in ("receivers", "processors", "exporters")}
    for name, pipeline in COLLECTOR["service"]["pipelines"].items():
        for kind, defined in known.items():
            assert set(pipeline[kind]) <= defined, name
        assert pipeline["processors"][0] == "memory_limiter"
        assert pipeline["processors"][-1] == "batch"
        if name != "metrics":
            assert {"attributes/no-credentials", "redaction"} <= set(pipeline["processors"])
    (blocked,) = COLLECTOR["processors"]["redaction"]["blocked_values"]
    token = jwt.encode({"sub": "alice"}, Ed25519PrivateKey.generate(), algorithm="EdDSA")
    assert re.sub(blocked, "****", f"Bearer {token} was refused") == "Bearer **** was refused"
    assert re.search(blocked, "eyes.open.wide") is None


@pytest.mark.parametrize("name", ["rules.yml", "alerts.yaml"])
def test_promtool_finds_them_rules(name: str, tmp_path: Path) -> None:
    """Where it is installed; `make test-compose` asks the one of the image in any case."""
    if shutil.which("promtool") is None:
        pytest.skip("SKIPPED: promtool is not installed; make test-compose asks that of Prometheus's image")
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"rules.yml": RULES, "alerts.yaml": ALERTS}[name]))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if name == "rules.yml":
        (tmp_path / "rules_test.yml").write_text((COMPOSE / "rules_test.yml").read_text())
        done = subprocess.run(
            ["promtool", "test", "rules", tmp_path / "rules_test.yml"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
