"""The dashboards load: the stack's in CloudWatch, and deploy/grafana.json in Grafana. What they
show is what is told, and what is told is shown.

Neither service is here. So CloudWatch's is held to "Dashboard Body Structure and Syntax" of its API
reference, and put into the emulator; Grafana's to "Dashboard JSON model" of its documentation, and
each of its queries to Prometheus's grammar.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import boto3
import promql_parser
import pytest

from roomcast.node.prometheus import FAMILIES
from tests.contract.backends import REGION, emulator
from tests.deploy.cloudformation import ROOT, load
from tests.deploy.test_template import evaluated, published

TEMPLATE: Final = load()
COLUMNS: Final = 24
# Bounds of CloudWatch.
WIDGETS_MAX: Final = 500
HEIGHT_MAX: Final = 1000
ALARMS_MAX: Final = 100
FLEET: Final = "AutoScalingGroupName"
# Metrics of AWS, as the guides of the services list them, and what their dimensions are called.
OF_AWS: Final[Mapping[str, tuple[set[tuple[str, ...]], set[str]]]] = {
    "AWS/ApplicationELB": (
        {("LoadBalancer",), ("LoadBalancer", "TargetGroup")},
        {
            "ActiveConnectionCount",
            "HTTPCode_ELB_5XX_Count",
            "HTTPCode_Target_5XX_Count",
            "HealthyHostCount",
            "NewConnectionCount",
            "UnHealthyHostCount",
        },
    ),
    "AWS/AutoScaling": ({(FLEET,)}, {"GroupInServiceInstances"}),
    "AWS/DynamoDB": (
        {("TableName",)},
        {
            "ConsumedReadCapacityUnits",
            "ConsumedWriteCapacityUnits",
            "ReadThrottleEvents",
            "WriteThrottleEvents",
        },
    ),
    "AWS/EC2": ({(FLEET,)}, {"CPUUtilization"}),
    "AWS/ECS": ({("ClusterName", "ServiceName")}, {"CPUUtilization", "MemoryUtilization"}),
    "AWS/Lambda": (
        {("FunctionName",), ("EventSourceMappingUUID",)},
        {
            "DroppedEventCount",
            "Duration",
            "Errors",
            "Invocations",
            "IteratorAge",
            "OnFailureDestinationDeliveredEventCount",
            "Throttles",
        },
    ),
    "AWS/SNS": (
        {("TopicName",)},
        {
            "NumberOfMessagesPublished",
            "NumberOfNotificationsDelivered",
            "NumberOfNotificationsFailed",
        },
    ),
    "AWS/SQS": (
        {("QueueName",)},
        {
            "ApproximateAgeOfOldestMessage",
            "ApproximateNumberOfMessagesVisible",
            "NumberOfMessagesSent",
        },
    ),
    "AWS/WAFV2": ({("WebACL", "Region", "Rule")}, {"AllowedRequests", "BlockedRequests"}),
}
STATISTIC: Final = re.compile(r"Average|Maximum|Minimum|SampleCount|Sum|p\d{1,2}(\.\d+)?")
METRIC_OPTIONS: Final = {
    "color", "expression", "id", "label", "period", "region", "stat", "visible", "yAxis",
}  # fmt: skip
WIDGET_PROPERTIES: Final = {
    "legend", "liveData", "metrics", "period", "region", "stacked", "stat", "title", "view",
    "yAxis",
}  # fmt: skip


# ---- CloudWatch


EVENTS: Final = "arn:aws:sqs:eu-central-1:123456789012:events"


def body(compute: str, events: str = "") -> dict[str, Any]:
    """The dashboard of a stack. `events`: the target of events."""
    stack = evaluated(TEMPLATE, "chat", Compute=compute, EventsTargetArn=events)
    text = stack.properties("Dashboard")["DashboardBody"]
    assert "${" not in text
    loaded: dict[str, Any] = json.loads(text)
    return loaded


STACKS: Final = [("ec2", ""), ("fargate", ""), ("ec2", EVENTS), ("fargate", EVENTS)]
COMPUTES: Final = pytest.mark.parametrize("compute, events", STACKS)


def full(metrics: Sequence[Sequence[Any]]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Names and options of each, "." and "..." written out."""
    before: list[str] = []
    for metric in metrics:
        options = metric[-1] if isinstance(metric[-1], dict) else {}
        names = [part for part in metric if isinstance(part, str)]
        if names:
            if names[0] == "...":
                names = [*before[: len(before) - len(names) + 1], *names[1:]]
            names = [before[index] if part == "." else part for index, part in enumerate(names)]
            before = names
        yield names, options


def shown(dashboard: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The metrics of all widgets."""
    for widget in dashboard["widgets"]:
        yield from full(widget["properties"].get("metrics", ()))


@COMPUTES
def test_the_stack_s_dashboard_has_the_form_that_is_documented(compute: str, events: str) -> None:
    dashboard = body(compute, events)
    assert set(dashboard) == {"widgets"}
    assert 0 < len(dashboard["widgets"]) <= WIDGETS_MAX
    taken: set[tuple[int, int]] = set()
    for widget in dashboard["widgets"]:
        assert set(widget) == {"type", "x", "y", "width", "height", "properties"}
        assert widget["type"] in ("metric", "alarm")
        assert widget["x"] >= 0
        assert widget["y"] >= 0
        assert widget["width"] > 0
        assert widget["x"] + widget["width"] <= COLUMNS
        assert 1 <= widget["height"] <= HEIGHT_MAX
        cells = set(
            itertools.product(
                range(widget["x"], widget["x"] + widget["width"]),
                range(widget["y"], widget["y"] + widget["height"]),
            )
        )
        assert not cells & taken, widget["properties"]["title"]
        taken |= cells


@COMPUTES
def test_its_graphs_have_the_form_that_is_documented(compute: str, events: str) -> None:
    for widget in body(compute, events)["widgets"]:
        if widget["type"] != "metric":
            continue
        properties = widget["properties"]
        title = properties["title"]
        assert set(properties) <= WIDGET_PROPERTIES, title
        assert properties["view"] == "timeSeries", title
        assert properties["period"] == 60, title
        assert properties["region"], title
        assert set(properties["yAxis"]) <= {"left", "right"}, title
        assert 0 < len(properties["metrics"]) <= 100, title
        ids = {options["id"] for _, options in full(properties["metrics"]) if "id" in options}
        sides = {options.get("yAxis", "left") for _, options in full(properties["metrics"])}
        # An axis that nothing is on, or that says nothing of itself.
        assert sides == set(properties["yAxis"]), title
        for names, options in full(properties["metrics"]):
            assert set(options) <= METRIC_OPTIONS, title
            if "expression" in options:
                assert not names, title
                used = set(
                    re.findall(r"\b[a-z][A-Za-z0-9_]*\b", _without_text(options["expression"]))
                )
                assert used <= ids, title
            else:
                assert STATISTIC.fullmatch(options["stat"]), title
                assert len(names) % 2 == 0, "pairs of a dimension's name and value"


def told_of_events() -> set[str]:
    """The events Lambda's metrics: what it counts, as the form of its line has them."""
    text = (ROOT / "service" / "roomcast" / "events" / "handler.py").read_text(encoding="utf-8")
    counts = text.partition("    counts = {\n")[2].partition("    }\n")[0]
    return set(re.findall(r'"(\w+)": ', counts))


def _without_text(expression: str) -> str:
    return re.sub(r"'[^']*'", "", expression)


@COMPUTES
def test_it_shows_what_is_told_and_everything_that_nodes_tell(compute: str, events: str) -> None:
    own: set[str] = set()
    for names, options in shown(body(compute, events)):
        if "expression" in options:
            for schema, metric in re.findall(
                r"\{([^}]*)\} MetricName=\"(\w+)\"", options["expression"]
            ):
                namespace, *dimensions = schema.split(",")
                known, metrics = OF_AWS[namespace]
                assert metric in metrics
                assert tuple(dimensions) in known
            continue
        namespace, metric, *pairs = names
        dimensions = tuple(pairs[::2])
        if namespace == "roomcast":
            own.add(metric)
            assert dimensions in ((FLEET,), ("FunctionName",)), metric
            if dimensions == (FLEET,):
                assert pairs[1] == "chat-fleet"
        else:
            known, metrics = OF_AWS[namespace]
            assert metric in metrics, namespace
            assert dimensions in known, metric
    assert own == published() | (told_of_events() if events else set())


@COMPUTES
def test_what_took_time_is_shown_by_percentiles(compute: str, events: str) -> None:
    by_metric: dict[str, set[str]] = {}
    for names, options in shown(body(compute, events)):
        if names:
            by_metric.setdefault(names[1], set()).add(options["stat"])
    slow = {name for name in published() if name.endswith("Ms") and name != "QueueLagMs"}
    assert len(slow) == 7
    for name in slow:
        assert {"p50", "p99"} <= by_metric[name], name


@COMPUTES
def test_it_shows_the_state_of_every_alarm_that_there_is(compute: str, events: str) -> None:
    stack = evaluated(TEMPLATE, "chat", Compute=compute, EventsTargetArn=events)
    names = {
        stack.properties(name)["AlarmName"]
        for name in stack.resources()
        if TEMPLATE["Resources"][name]["Type"] == "AWS::CloudWatch::Alarm"
    }
    [widget] = [each for each in body(compute, events)["widgets"] if each["type"] == "alarm"]
    arns = widget["properties"]["alarms"]
    assert 0 < len(arns) <= ALARMS_MAX
    assert {arn.rpartition(":")[0] for arn in arns} == {"arn:pseudo:cloudwatch:pseudo:pseudo:alarm"}
    assert sorted(arn.rpartition(":")[2] for arn in arns) == sorted(names)


def test_the_emulator_takes_it() -> None:
    with emulator() as endpoint:
        client = boto3.client(
            "cloudwatch",
            region_name=REGION,
            endpoint_url=endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        for number, (compute, events) in enumerate(STACKS):
            name = f"stack-{number}"
            text = json.dumps(body(compute, events))
            told = client.put_dashboard(DashboardName=name, DashboardBody=text)
            assert not told.get("DashboardValidationMessages")
            found = client.get_dashboard(DashboardName=name)["DashboardBody"]
            assert json.loads(found) == body(compute, events)


# ---- Grafana

GRAFANA: Final[dict[str, Any]] = json.loads(
    (ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8")
)
# Of the process, from the library; the rest of them has no panel.
OF_PROCESS: Final = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
}
VARIABLES: Final = {"datasource", "job", "instance"}


def panels() -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Titles and expressions, with a number for Grafana's interval."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def selectors(expression: str) -> list[Any]:
    """Raises ValueError for what Prometheus would not take."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def test_grafana_s_dashboard_has_the_form_that_is_documented() -> None:
    assert {
        "annotations", "editable", "graphTooltip", "id", "links", "panels", "refresh",
        "schemaVersion", "tags", "templating", "time", "timepicker", "timezone", "title", "uid",
        "version",
    } <= set(GRAFANA)  # fmt: skip
    # Grafana gives it when it is imported.
    assert GRAFANA["id"] is None
    assert re.fullmatch(r"[A-Za-z0-9_-]{8,40}", GRAFANA["uid"])
    assert GRAFANA["schemaVersion"] >= 36, "data sources are objects"
    assert set(GRAFANA["time"]) == {"from", "to"}


def test_its_panels_are_on_the_grid_and_none_is_over_another() -> None:
    ids = [panel["id"] for panel in GRAFANA["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in GRAFANA["panels"]:
        place = panel["gridPos"]
        assert set(place) == {"x", "y", "w", "h"}
        assert place["x"] >= 0
        assert place["w"] >= 1
        assert place["x"] + place["w"] <= COLUMNS
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_its_panels_have_what_such_panels_have() -> None:
    for panel in GRAFANA["panels"]:
        title = panel["title"]
        assert title
        if panel["type"] == "row":
            assert panel["panels"] == []
            assert panel["collapsed"] is False
            continue
        assert panel["type"] in ("timeseries", "stat"), title
        assert {"datasource", "fieldConfig", "options", "targets"} <= set(panel), title
        assert set(panel["fieldConfig"]) == {"defaults", "overrides"}, title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        names = [target["refId"] for target in panel["targets"]]
        assert names, title
        assert len(names) == len(set(names)), title
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title


def test_its_variables_are_asked_for_and_used() -> None:
    variables = {each["name"]: each for each in GRAFANA["templating"]["list"]}
    assert set(variables) == VARIABLES
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance"):
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[name]["query"]["query"])
        assert found is not None
        assert found[2] == name
        [selector] = selectors(found[1])
        assert selector.name == "roomcast_info"
    for title, expression in queries():
        for selector in selectors(expression):
            assert str(selector.matchers).startswith('{job=~"$job",instance=~"$instance"'), (
                title,
                str(selector.matchers),
            )


def test_prometheus_takes_its_queries() -> None:
    for title, expression in queries():
        assert selectors(expression), title
    with pytest.raises(ValueError, match="invalid"):
        selectors("sum by (le (rate(x[1m])))")


def test_its_queries_ask_for_what_is_served_by_labels_that_it_has() -> None:
    served = {each.name: each for each in FAMILIES}
    for title, expression in queries():
        for selector in selectors(expression):
            name = selector.name
            if name in OF_PROCESS:
                continue
            base, _, ending = name.rpartition("_")
            if name not in served:
                assert ending in ("bucket", "count", "sum"), (title, name)
                assert served[base].kind == "histogram", (title, name)
            family = served[name if name in served else base]
            assert family.kind != "histogram" or ending in ("bucket", "count", "sum"), title
            known = {*family.labels, "job", "instance"}
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", str(selector.matchers)))
            assert labels <= known, (title, name)
            # A counter of which no rate is asked shows nothing but its age.
            if family.kind != "gauge":
                assert f"rate({name}{{" in expression, (title, name)
        for group in re.findall(r"by \(([^)]*)\)", expression):
            grouped = {label.strip() for label in group.split(",")} - {"le", "instance"}
            known = {label for each in _families(expression) for label in each.labels}
            assert grouped <= known, title


def _families(expression: str) -> list[Any]:
    names = {selector.name for selector in selectors(expression)}
    return [
        each
        for each in FAMILIES
        if names & {each.name, *(f"{each.name}_{end}" for end in ("bucket", "count", "sum"))}
    ]


def test_everything_that_is_served_has_a_panel() -> None:
    asked = {selector.name for _, expression in queries() for selector in selectors(expression)}
    missing = {
        each.name
        for each in FAMILIES
        if not asked & {each.name, f"{each.name}_bucket", f"{each.name}_count"}
    }
    assert missing == set()
    assert {name for name in asked if name.startswith("process_")} == OF_PROCESS


def test_legends_name_labels_that_the_answers_have() -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            left = {label.strip() for label in grouped[0].split(",")} if grouped else {"instance"}
            assert named <= left, panel["title"]
