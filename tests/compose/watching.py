"""Prometheus as the profile `observability` runs it: it finds every replica, reads its metrics, and knows its rules."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from casemate.cli.state import SERVICES
from tests.compose.cluster import ComposeCluster
from tests.compose.engine import Engine
from tests.compose.waiting import until

_METRIC = re.compile(r"\b(?:casemate|nv)_[a-z_]+\b|\bup\b")
_SCRAPED_SECONDS = 60


class Prometheus:
    """The one that runs, asked over its published port."""

    def __init__(self, cluster: ComposeCluster, context: Path) -> None:
        self._cluster = cluster
        self._observability = context / "deploy" / "compose" / "observability"
        self._kubernetes = context / "deploy" / "kubernetes"

    def require_sees(self, replicas: int) -> str:
        """Every replica is found by its service's name, and scraped by mutual TLS under that name."""
        until(lambda: self._up() == dict.fromkeys(SERVICES, replicas), self._targets, _SCRAPED_SECONDS)
        return ", ".join(f"{count} of {service}" for service, count in self._up().items())

    def require_rules_known(self) -> str:
        """Its rules are those of the file, and each was evaluated without an error."""
        rules = [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]
        written = re.findall(r"^ *- alert: (\w+)$", (self._observability / "rules.yml").read_text(), re.MULTILINE)
        assert sorted(rule["name"] for rule in rules) == sorted(written)
        until(self._evaluated, "some rule was not evaluated", 60)
        return f"{len(written)} rules"

    def require_metrics_exist(self) -> str:
        """Every metric of rules, alerts, dashboards and the autoscaler's query is one that a service shows."""
        asked = {name for text in self._queries() for name in _METRIC.findall(text)}
        assert len(asked) > 8, asked

        def missing() -> set[str]:
            return asked - set(self._ask("label/__name__/values"))

        until(lambda: not missing(), lambda: f"no service shows {missing()}", _SCRAPED_SECONDS)
        return f"{len(asked)} metrics are asked for, all are there"

    def require_dashboard_filled(self) -> str:
        """Each panel's query gives something after the story."""
        panels = [(panel["title"], target["expr"]) for panel in self._panels() for target in panel["targets"]]
        assert panels
        for title, expression in panels:
            until(lambda query=expression: bool(self._query(query)), lambda t=title: f"{t} is empty", 60)
        return f"{len(panels)} queries of the dashboard"

    def require_scaled_by_the_queue(self) -> None:
        """The autoscaler's query, as the adapter fills it in, gives the time that predictions waited."""
        (query,) = re.findall(r"metricsQuery: >-\n((?:  .*\n?)+)", self._adapter())
        filled = query.replace("<<.LabelMatchers>>", 'job="inference"').replace("<<.GroupBy>>", "instance")
        found = self._query(" ".join(filled.split()))
        assert found, filled
        assert all(0 <= float(one["value"][1]) < 1e7 for one in found), found

    def require_shown(self) -> None:
        """Grafana answers with the dashboard by its data source, and the collector is up."""
        address = f"http://127.0.0.1:{self._cluster.ports['CASEMATE_GRAFANA_PORT']}/api"
        until(lambda: bool(_json(f"{address}/search?type=dash-db")), "Grafana has no dashboard", 120)
        (dashboard,) = _json(f"{address}/search?type=dash-db")
        titles = {
            panel["title"] for panel in _json(f"{address}/dashboards/uid/{dashboard['uid']}")["dashboard"]["panels"]
        }
        assert {panel["title"] for panel in self._panels()} <= titles
        state = self._cluster.inspect("collector")["State"]
        assert (state["Running"], self._cluster.inspect("collector")["RestartCount"]) == (True, 0), state

    def _evaluated(self) -> bool:
        rules = [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]
        assert not [rule for rule in rules if rule["health"] == "err"], rules
        return all(rule["health"] == "ok" for rule in rules)

    def _queries(self) -> Iterator[str]:
        yield (self._observability / "rules.yml").read_text()
        yield (self._kubernetes / "components" / "observability" / "alerts.yaml").read_text()
        yield re.sub(r"(?m)^ *(#.*|as: .*)$", "", self._adapter())
        yield from (target["expr"] for panel in self._panels() for target in panel["targets"])

    def _adapter(self) -> str:
        return (self._kubernetes / "components" / "observability" / "adapter-rules.yaml").read_text()

    def _panels(self) -> list[dict]:
        file = self._observability / "grafana" / "dashboards" / "casemate.json"
        return [panel for panel in json.loads(file.read_text())["panels"] if panel.get("targets")]

    def _up(self) -> dict[str, int]:
        targets = self._ask("targets")["activeTargets"]
        return {
            service: sum(one["labels"]["job"] == service and one["health"] == "up" for one in targets)
            for service in SERVICES
        }

    def _targets(self) -> str:
        return str(
            [(one["scrapeUrl"], one["health"], one["lastError"]) for one in self._ask("targets")["activeTargets"]]
        )

    def _query(self, expression: str) -> list[dict]:
        found = self._ask(f"query?{urllib.parse.urlencode({'query': expression})}")["result"]
        return [one for one in found if one["value"][1] != "NaN"]

    def _ask(self, what: str):
        address = f"http://127.0.0.1:{self._cluster.ports['CASEMATE_PROMETHEUS_PORT']}/api/v1/{what}"
        told = _json(address)
        assert told["status"] == "success", told
        return told["data"]


def _json(address: str):
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  # loopback's
        return json.loads(answer.read())


def require_rules_hold(engine: Engine, image: str, context: Path) -> str:
    """promtool, of the image itself: the rules of compose and of Kubernetes are rules, and their tests pass."""
    observability = context / "deploy" / "compose" / "observability"
    alerts = context / "deploy" / "kubernetes" / "components" / "observability" / "alerts.yaml"
    promtool = ("run", "--rm", "--interactive", "--network=none", "--entrypoint=promtool", image)
    said = engine.docker(*promtool, "check", "rules", "/etc/casemate/rules.yml")
    spec = alerts.read_text().split("\nspec:\n", 1)[1]
    said += engine.docker(*promtool, "check", "rules", "/dev/stdin", stdin=spec.encode())
    tests = (observability / "rules_test.yml").read_text().replace("[rules.yml]", "[/etc/casemate/rules.yml]")
    said += engine.docker(*promtool, "test", "rules", "/dev/stdin", stdin=tests.encode())
    assert said.count("SUCCESS") == 3, said
    return "; ".join(line.strip() for line in said.splitlines() if "SUCCESS" in line)
