"""Compares alerts.yaml and dashboard.json with what the programs really expose, and lets promtool look at all of it.

    /usr/bin/python3 checks/view/metrics.py GUARDIAN COORDINATOR FENCE [VIP]

All of them are files with the answer to GET /metrics. Without the last one, what asks for io-vip's figures is left out. Prometheus and Grafana say nothing about a metric or a label that does not
exist: an alert on it never fires, a panel on it stays empty. So this fails for every name that no exposition has.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "examples/monitoring"
PATIENCE = 300.0

# Prometheus adds these to every sample that it scrapes.
ADDED = {"job", "instance"}
# What Prometheus makes by itself, with its labels.
BUILT_IN = {"up": ADDED, "ALERTS": ADDED | {"alertname", "alertstate"}}
# Their values come from the user's fleet; those of other labels are words of the programs, and a wrong one matches nothing.
FREE_VALUES = ADDED | {"host", "database", "folder", "address", "version", "alertname", "alertstate", "__name__"}

KEYWORDS = {"and", "or", "unless", "atan2", "bool", "offset", "inf", "nan"}
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
# Aggregations may be followed by `by (...)`, so a parenthesis does not tell them from a metric as it does functions.
AGGREGATIONS = {
    "sum", "min", "max", "avg", "group", "stddev", "stdvar", "count", "count_values", "bottomk", "topk", "quantile",
    "limitk", "limit_ratio",
}  # fmt: skip
TOKEN = re.compile(
    r"""
    (?P<space>\s+|\#[^\n]*)
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
  | (?P<variable>\$\w+|\$\{\w+(?::\w+)?\}|\[\[\w+\]\])
  | (?P<range>\[[^\]]*\])
  | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+(?:ms|[smhdwy]))+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
  | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^=<>(){},@])
    """,
    re.VERBOSE,
)


class Unreadable(Exception):
    """A text that is not what this script understands."""


@dataclasses.dataclass
class Exposed:
    """The metrics that exist: the labels of each, and the values that each label was seen with."""

    labels: dict[str, set[str]]
    values: dict[tuple[str, str], set[str]]

    def add(self, other: Exposed) -> None:
        for name, labels in other.labels.items():
            self.labels.setdefault(name, set()).update(labels)
        for key, values in other.values.items():
            self.values.setdefault(key, set()).update(values)


@dataclasses.dataclass
class Query:
    """What an expression asks for."""

    # (metric, [(label, operator, value)]); a metric that is None was selected by labels only.
    selectors: list[tuple[str | None, list[tuple[str, str, str]]]]
    grouped: list[str]
    # Labels of `on (...)`, each with the index of the selector behind it: both sides must have them, so that one must.
    joined: list[tuple[str, int]]
    made: set[str]


@dataclasses.dataclass
class Expression:
    """An expression and where it is. `shown` are the labels that texts beside it use."""

    file: str
    place: str
    text: str
    shown: list[str]
    record: str | None = None
    range_is_free: bool = True


# --- The exposition -------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")
LABEL = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')


def read_exposition(file: Path) -> Exposed:
    exposed = Exposed({}, {})
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = SAMPLE.fullmatch(line.strip())
        if match is None:
            raise Unreadable(f"{file}:{number}: no sample: {line}")
        name, body = match[1], match[2] or ""
        labels = exposed.labels.setdefault(name, set())
        at = 0
        while at < len(body):
            label = LABEL.match(body, at)
            if label is None:
                raise Unreadable(f"{file}:{number}: cannot read the labels: {line}")
            labels.add(label[1])
            exposed.values.setdefault((name, label[1]), set()).add(re.sub(r'\\(["\\])', r"\1", label[2]))
            at = label.end()
    if not exposed.labels:
        raise Unreadable(f"{file}: there is no sample in it")
    return exposed


# --- The expressions ------------------------------------------------------------------------------------------------


def tokens(text: str) -> list[tuple[str, str]]:
    found = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise Unreadable(f"cannot read from {text[at : at + 20]!r} on")
        if match.lastgroup != "space":
            found.append((match.lastgroup, match[0]))
        at = match.end()
    return found


def unquoted(text: str) -> str:
    return text[1:-1] if text[0] == "`" else re.sub(r"\\(.)", r"\1", text[1:-1])


class Reader:
    """Goes through the tokens of an expression, and knows as much of PromQL as it takes to tell the names apart."""

    def __init__(self, text: str) -> None:
        self.tokens = tokens(text)
        self.at = 0
        self.query = Query([], [], [], set())

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, sign: str) -> None:
        kind, text = self.take()
        if text != sign:
            raise Unreadable(f"expected {sign!r}, found {text or kind!r}")

    def names(self) -> list[str]:
        """`(a, b)`"""
        found = []
        self.expect("(")
        while self.peek()[1] != ")":
            kind, text = self.take()
            if kind != "name":
                raise Unreadable(f"expected a label, found {text or kind!r}")
            found.append(text)
            if self.peek()[1] == ",":
                self.take()
        self.expect(")")
        return found

    def matchers(self) -> list[tuple[str, str, str]]:
        """`{a="b", c=~"d"}`"""
        found = []
        self.expect("{")
        while self.peek()[1] != "}":
            kind, label = self.take()
            operator = self.take()[1]
            value_kind, value = self.take()
            if kind != "name" or operator not in {"=", "!=", "=~", "!~"} or value_kind != "string":
                raise Unreadable(f"no label matcher: {label}{operator}{value}")
            found.append((label, operator, unquoted(value)))
            if self.peek()[1] == ",":
                self.take()
        self.expect("}")
        return found

    def selector(self, metric: str | None) -> None:
        matchers = self.matchers() if self.peek()[1] == "{" else []
        for label, operator, value in matchers:
            if label == "__name__" and operator == "=" and metric is None:
                metric = value
        self.query.selectors.append((metric, [m for m in matchers if m[0] != "__name__"]))

    def made_label(self, function: str) -> None:
        """The label that label_replace and label_join make: the first string among their arguments."""
        depth = 0
        for kind, text in self.tokens[self.at :]:
            # Strings inside of braces are values of matchers, those inside of inner parentheses belong to another call.
            depth += (text in "({") - (text in ")}") if kind == "sign" else 0
            if depth == 1 and kind == "string":
                self.query.made.add(unquoted(text))
                return
        raise Unreadable(f"{function} names no label")

    def read(self) -> Query:
        while self.at < len(self.tokens):
            kind, text = self.peek()
            if text == "{" and kind == "sign":
                self.selector(None)
                continue
            self.take()
            if kind != "name":
                continue
            word = text.lower()
            if word in GROUPING:
                # group_left and group_right may stand without labels.
                if self.peek()[1] == "(":
                    labels = self.names()
                    self.query.grouped += labels
                    if word == "on":
                        self.query.joined += [(label, len(self.query.selectors)) for label in labels]
            elif word in KEYWORDS:
                continue
            elif word in AGGREGATIONS and (self.peek()[1] == "(" or self.peek()[1].lower() in GROUPING):
                if word == "count_values":
                    self.made_label(word)
            elif self.peek()[1] == "(":
                if word in {"label_replace", "label_join"}:
                    self.made_label(word)
            else:
                self.selector(text)
        return self.query


# --- The files ------------------------------------------------------------------------------------------------------

RULE_KEY = re.compile(r"(?P<indent> *)(?P<dash>- )?(?P<key>[A-Za-z_]+):(?: (?P<value>.*))?")


def yaml_value(lines: list[str], at: int, value: str, indent: int, where: str) -> tuple[str, int]:
    """The text of a value that begins in line `at`, and the line behind it: a plain, a quoted or a block one."""
    if re.fullmatch(r"[|>][-+]?", value):
        block = []
        at += 1
        while at < len(lines) and (not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > indent):
            block.append(lines[at].strip())
            at += 1
        return ("\n" if value[0] == "|" else " ").join(block).strip(), at
    following = lines[at + 1] if at + 1 < len(lines) else ""
    if following.strip() and len(following) - len(following.lstrip()) > indent:
        raise Unreadable(f"{where}: a value over several lines needs `|-` or `>-`")
    if value[:1] in {'"', "'"}:
        if len(value) < 2 or value[-1] != value[0]:
            raise Unreadable(f"{where}: a quoted value must end in its line, with nothing behind it")
        inner = value[1:-1]
        return (inner.replace("''", "'") if value[0] == "'" else re.sub(r"\\(.)", r"\1", inner)), at + 1
    # YAML would take these for something else than text.
    if value[:1] in set("&*!%@`[{") or " #" in value or ": " in value:
        raise Unreadable(f"{where}: quote this value, or make it a block: {value}")
    return value, at + 1


def alert_expressions(file: Path) -> list[Expression]:
    """The rules of a file, by its lines: Debian's Python has no YAML, and promtool prints no expressions."""
    lines = file.read_text(encoding="utf-8").splitlines()
    found: list[Expression] = []
    rule: Expression | None = None
    at = 0
    while at < len(lines):
        where = f"{file.name}:{at + 1}"
        match = RULE_KEY.fullmatch(lines[at].rstrip())
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            at += 1
            continue
        if match is None:
            raise Unreadable(f"{where}: not understood: {lines[at]}")
        key, value = match["key"], (match["value"] or "").strip()
        if not value:
            at += 1
            continue
        indent = len(match["indent"]) + len(match["dash"] or "")
        text, at = yaml_value(lines, at, value, indent, where)
        if key in {"alert", "record"}:
            rule = Expression(file.name, f"{key} {text}", "", [], text if key == "record" else None, False)
            found.append(rule)
        elif key == "expr":
            if rule is None or rule.text:
                raise Unreadable(f"{where}: `alert:` or `record:` must come first in a rule, and `expr:` once")
            rule.text = text
        elif rule is not None:
            rule.shown += re.findall(r"\$labels\.(\w+)", text)
    for each in found:
        if not each.text:
            raise Unreadable(f"{each.file}: {each.place} has no `expr:`")
    return found


def panels(value: Any) -> Iterator[dict[str, Any]]:
    """All panels, those in collapsed rows too."""
    for panel in value:
        yield panel
        yield from panels(panel.get("panels") or [])


def dashboard_expressions(file: Path) -> list[Expression]:
    board: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    found = []
    for panel in panels(board["panels"]):
        for target in panel.get("targets") or []:
            place = f"panel {panel.get('title', '?')!r}, query {target.get('refId', '?')}"
            legend = re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat") or "")
            found.append(Expression(file.name, place, target["expr"], legend))
    for variable in board.get("templating", {}).get("list", []):
        if variable["type"] != "query":
            continue
        query = variable["query"] if isinstance(variable["query"], str) else variable["query"]["query"]
        place = f"variable {variable['name']!r}"
        match = re.fullmatch(r"\s*(label_values|query_result)\((.*?)(?:,\s*(\w+)\s*)?\)\s*", query, re.DOTALL)
        if match is None:
            raise Unreadable(f"{file.name}: {place}: neither label_values nor query_result: {query}")
        found.append(Expression(file.name, place, match[2], [match[3]] if match[3] else []))
    return found


def dashboard_faults(file: Path) -> list[str]:
    """What an import would trip over."""
    board: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    faults = []
    if board.get("id") is not None:
        faults.append("`id` must be null: it is that of somebody's database")
    if not board.get("uid"):
        faults.append("`uid` is missing: every import would make another dashboard")
    variables = {v["name"] for v in board["templating"]["list"]}
    ids: set[int] = set()
    for panel in panels(board["panels"]):
        title = panel.get("title", "?")
        if panel["id"] in ids:
            faults.append(f"panel {title!r}: the id {panel['id']} is that of another one")
        ids.add(panel["id"])
        if panel["type"] == "row":
            continue
        if not panel.get("description"):
            faults.append(f"panel {title!r}: no description")
        for each in [panel, *panel.get("targets", [])]:
            if each.get("datasource", {}).get("uid") != "${datasource}":
                faults.append(f"panel {title!r}: its data source is not ${{datasource}}")
    texts = json.dumps([board["panels"], board["templating"]])
    for name in sorted(set(re.findall(r"\$\{?(\w+)", texts)) - variables):
        if not name.startswith("__"):
            faults.append(f"there is no variable ${name}")
    return [f"{file.name}: {fault}" for fault in faults]


# --- The comparison -------------------------------------------------------------------------------------------------


def faults_of(expression: Expression, exposed: Exposed) -> list[str]:
    """What is wrong with an expression. A recording rule adds what it makes to `exposed`."""
    where = f"{expression.file}: {expression.place}"
    shown = " ".join(expression.text.split())
    try:
        query = Reader(expression.text).read()
    except Unreadable as error:
        return [f"{where}: {error}\n     {shown}"]
    faults = []
    # What the whole expression can have: grouping labels and legends may belong to any metric in it.
    known = ADDED | query.made
    complete = True
    for metric, matchers in query.selectors:
        if metric is None:
            faults.append("selects by labels only: name the metric")
            complete = False
            continue
        labels = exposed.labels.get(metric)
        if labels is None:
            faults.append(f"no such metric: {metric}")
            complete = False
            continue
        known |= labels
        for label, operator, value in matchers:
            if label not in labels | ADDED:
                faults.append(f"{metric} has no label {label}")
            elif label not in FREE_VALUES and "$" not in value:
                faults += value_faults(metric, label, operator, value, exposed)
    # With a metric that does not exist, its labels are not known: one fault is enough.
    if complete:
        faults += [f"no metric in it has the label {label}, by which it groups" for label in query.grouped if label not in known]
        faults += [f"no metric in it has the label {label}, which a text shows" for label in expression.shown if label not in known]
        for label, index in query.joined:
            metric = query.selectors[index][0] if index < len(query.selectors) else None
            if metric is not None and label in known and label not in exposed.labels[metric] | ADDED | query.made:
                faults.append(f"{metric} has no label {label}, on which it is joined")
        if not query.selectors:
            faults.append("there is no metric in it")
    if not expression.range_is_free and "$" in re.sub(r'"[^"]*"', "", expression.text):
        faults.append("Prometheus knows no variables")
    if expression.record is not None:
        exposed.labels[expression.record] = known
    return [f"{where}: {fault}\n     {shown}" for fault in dict.fromkeys(faults)]


def value_faults(metric: str, label: str, operator: str, value: str, exposed: Exposed) -> list[str]:
    """Values that no sample has. A counter that is not there from the start also hides its first step from increase()."""
    seen = exposed.values.get((metric, label), set())
    if operator in {"=~", "!~"} and not re.fullmatch(r"[\w|]+", value):
        return []
    wanted = value.split("|") if operator in {"=~", "!~"} else [value]
    return [
        f'no sample is {metric}{{{label}="{one}"}}; there are: {", ".join(sorted(seen)) or "none"} '
        "(misspelt, or not exposed from the start)"
        for one in wanted
        if one not in seen
    ]


# --- promtool -------------------------------------------------------------------------------------------------------


def promtool(program: str, what: str, arguments: list[str], stdin: str | None = None) -> tuple[list[str], str]:
    """Runs it. Gives faults, and what it printed."""
    try:
        ended = subprocess.run(
            [program, *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{what}: {error}"], ""
    printed = (ended.stdout + ended.stderr).strip()
    if ended.returncode != 0:
        return [f"{what}: exit code {ended.returncode}\n     " + printed.replace("\n", "\n     ")], printed
    return [], printed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("guardian", type=Path, help="a file with what a guardian answers to GET /metrics")
    parser.add_argument("coordinator", type=Path, help="the same of a coordinator")
    parser.add_argument("fence", type=Path, help="the same of io-fence")
    parser.add_argument("vip", type=Path, nargs="?", help="the same of io-vip, which needs an etcd")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where alerts.yaml, alerts_test.yaml and dashboard.json are")
    parser.add_argument("--promtool", default="promtool", help="the program to call")
    parser.add_argument("--names-only", action="store_true", help="without promtool, which cannot read the OpenMetrics format")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    files = [options.guardian, options.coordinator, options.fence, *([options.vip] if options.vip else [])]
    results: list[tuple[str, list[str]]] = []

    try:
        exposed = Exposed({name: set(labels) for name, labels in BUILT_IN.items()}, {})
        for file in files:
            exposed.add(read_exposition(file))
        rules = alert_expressions(folder / "alerts.yaml")
        queries = dashboard_expressions(folder / "dashboard.json")
        layout = dashboard_faults(folder / "dashboard.json")
    except (OSError, UnicodeDecodeError, Unreadable, ValueError) as error:
        print(f"FAIL {error}")
        return 1
    except (KeyError, TypeError, AttributeError) as error:
        print(f"FAIL dashboard.json is not a dashboard as Grafana exports it: {error!r}")
        return 1

    left_out = re.compile(r"\bio_vip_" if options.vip is None else r"(?!)")
    asked = [rule for rule in rules if not left_out.search(rule.text)]
    queries = [query for query in queries if not left_out.search(query.text)]
    # Rules that record come first: alerts and panels may use what they make.
    rule_faults = [f for rule in sorted(asked, key=lambda r: r.record is None) for f in faults_of(rule, exposed)]
    results.append((f"alerts.yaml asks only for what exists ({len(asked)} rules)", rule_faults))
    panel_faults = [f for query in queries for f in faults_of(query, exposed)]
    results.append((f"dashboard.json asks only for what exists ({len(queries)} queries)", panel_faults))
    results.append(("dashboard.json can be imported anywhere", layout))

    program = shutil.which(options.promtool)
    if options.names_only:
        pass
    elif program is None:
        results.append(("promtool looks at the files", [f"{options.promtool} is not there: install the Debian package `prometheus`"]))
    else:
        faults, printed = promtool(program, "promtool check rules", ["check", "rules", str(folder / "alerts.yaml")])
        count = re.search(r"(\d+) rules found", printed)
        # Keeps the reader above honest: a rule that it passed over would go unchecked.
        if not faults and (count is None or int(count[1]) != len(rules)):
            faults = [f"promtool and this script do not see the same rules: {len(rules)} here, there: {printed}"]
        results.append(("promtool check rules", faults))
        results.append(
            ("promtool test rules", promtool(program, "promtool test rules", ["test", "rules", str(folder / "alerts_test.yaml")])[0])
        )
        for file in files:
            what = f"promtool check metrics < {file.name}"
            results.append((what, promtool(program, what, ["check", "metrics"], file.read_text(encoding="utf-8"))[0]))

    for what, faults in results:
        print(f"{'FAIL' if faults else 'ok':<4} {what}")
        for fault in faults:
            print(f"     {fault}")
    return 1 if any(faults for _, faults in results) else 0


if __name__ == "__main__":
    sys.exit(main())
