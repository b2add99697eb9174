"""The pages name modules, commands, flags, settings and metrics that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings, environment_name
from service.telemetry import Telemetry
from tests.unit.repository.pages import PAGES, ROOT
from tests.unit.repository.test_advice import wrong

PACKAGES = ("bench", "cli", "fcn_client", "model", "proto", "service", "tests", "training")
HISTORY = {ROOT / "CHANGELOG.md"}
"""Pages that tell of what there was."""
SETTINGS = {environment_name(name) for name in Settings.model_fields}
_FILE = re.compile(rf"`((?:{'|'.join(PACKAGES)})/[\w./-]*)`")
_MODULE = re.compile(
    rf"(?:`|-m |import |from )((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)(?![\w/])"
)
_METRIC = re.compile(r"`(fcn_[a-z_]+)")
_NOT_METRICS = re.compile(r"fcn_(client|serve|contract)")
_NOT_SETTINGS = re.compile(r"FCN_(API_KEY|NAME|SERVICE_\w+|PORT(_\d\w+)?)")
"""The shell variable of the web page's command, a stand-in for a name, and what Kubernetes and
Docker make for a service called `fcn`."""
_ENDINGS = (".yaml", ".toml", ".json", ".onnx", ".md", ".svg", ".jpg", ".png")


def is_there(dotted: str) -> bool:
    """Says whether it is a module, or a name in one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        for module in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if module.exists():
                text = module.read_text(encoding="utf-8")
                return all(re.search(rf"\b{name}\b", text) for name in parts[count:])
    return path.is_dir() and len(parts) == 1


def absent(line: str, metrics: set[str]) -> Iterator[str]:
    """Lists what the line names and there is not."""
    for file in _FILE.findall(line):
        if not (ROOT / file).exists():
            yield f"there is no {file}"
    for module in _MODULE.findall(line):
        if not module.endswith(_ENDINGS) and not is_there(module):
            yield f"there is no {module}"
    for metric in _METRIC.findall(line):
        if not _NOT_METRICS.match(metric) and metric not in metrics:
            yield f"there is no metric {metric}"
    # The flags of other programs are not ours to know: of a line, those after `fcn COMMAND`.
    for command in re.findall(r"(?<![\w./-])fcn [a-z-]*[a-z][^`|&;]*", line):
        yield from wrong(command, None)
    for setting in re.findall(r"FCN_[A-Z0-9_]*[A-Z0-9]", line):
        if setting not in SETTINGS and not _NOT_SETTINGS.fullmatch(setting):
            yield f"{setting} is no setting"


def all_metrics() -> set[str]:
    scraped = Telemetry(0.175).scrape().decode()
    return set(re.findall(r"^# TYPE (\w+)", scraped, re.M))


@pytest.mark.parametrize("page", sorted(set(PAGES) - HISTORY), ids=lambda page: page.name)
def test_pages_name_what_there_is(page: Path) -> None:
    metrics = all_metrics()
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [
        f"{number}: {said}"
        for number, line in enumerate(lines, 1)
        for said in absent(line, metrics)
    ] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("see `service/core/pool.py`", "there is no service/core/pool.py"),
        ("`service.core.pool` runs it", "there is no service.core.pool"),
        ("`service.core.segmenter.Segmentor`", "there is no service.core.segmenter.Segmentor"),
        ("`service.core.segmenter.Segmenter`", None),
        ("`fcn_request_count` counts", "there is no metric fcn_request_count"),
        ("`fcn_queue_depth` counts", None),
        ("fcn train x.yaml --overide a=1", "--overide is no option of train"),
        ("FCN_MAX_BATCHES=3", "FCN_MAX_BATCHES is no setting"),
        ("FCN_PORT_8000_TCP_ADDR", None),
    ],
)
def test_what_is_absent_is_noticed(line: str, said: str | None) -> None:
    assert list(absent(line, all_metrics())) == ([said] if said else [])
