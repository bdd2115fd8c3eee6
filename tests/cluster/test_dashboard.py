"""The Grafana page follows the declared metrics, its queries are PromQL, and Ray exports what they ask for."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from cluster import make_dashboard
from cluster.make_dashboard import ROWS, dashboard, query, ray_name
from larpo.metrics import METRICS, Metric
from tests.autoscaling_cluster import AutoscalingCluster
from tests.toy_runs import REPOSITORY

CLUSTER = Path(__file__).parents[2] / "cluster"
NEEDED = [  # what one has to see of a run
    "sampler/prompts_per_second",
    "sampler/samples_per_second",
    "sampler/tokens_per_second",
    "stream/lists",
    "stream/producer_wait_seconds",
    "stream/consumer_wait_seconds",
    "lists/reward_mean",
    "lists/reward_spread",
    "lists/reward_gap",
    "lists/overlap",
    "train/score_gap",
    "train/loss",
    "train/grad_norm",
    "train/staleness_mean",
    "weights/publish_seconds",
    "weights/pull_seconds",
    "weights/pause_seconds",
    "busy/sampler",
    "busy/reward",
    "busy/trainer",
    "busy/overlap_efficiency",
    "run/failures",
]


def shown() -> list[str]:
    """Metrics of all panels."""
    return [name for _, panels in ROWS for panel in panels for name in panel.metrics]


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def test_the_file_is_what_the_table_says():
    """Else: `python -m cluster.make_dashboard`."""
    assert make_dashboard.FILE.read_text() == make_dashboard.text()


def test_every_metric_exists_and_what_is_needed_is_shown():
    assert not [name for name in shown() if name not in METRICS]
    assert not set(NEEDED) - set(shown())
    assert len(shown()) == len(set(shown()))


def test_a_gauge_is_shown_as_it_is_and_a_counter_as_a_rate():
    gauge = Metric("weights/pull_seconds", "seconds", "...", "gauge", ("sampler",))
    assert query(gauge) == 'max by (run, sampler) (ray_larpo_weights_pull_seconds{run=~"$run"})'
    counter = Metric("run/failures", "failures", "...", "counter", ("kind",))
    series = 'ray_larpo_run_failures_total{run=~"$run"}'
    assert query(counter) == f"sum by (run, kind) (rate({series}[$__rate_interval]))"
    assert query(counter, totals=True) == f"sum by (run, kind) (increase({series}[$__range]))"


def test_panels_lie_beside_each_other_and_have_numbers_of_their_own():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) == 23


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-http.yml"])
def test_prometheus_takes_its_settings(name):
    """Of the file with the token only the path is checked by Prometheus itself: it is the user's."""
    scrape = yaml.safe_load((CLUSTER / name).read_text())["scrape_configs"]
    assert [job["job_name"] for job in scrape] == ["ray"]
    done = promtool("check", "config", "--syntax-only", str(CLUSTER / name))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_is_promql(tmp_path):
    rules = [
        {"record": f"query:{number}", "expr": re.sub(r"\$__(range|rate_interval)", "5m", text)}
        for number, text in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
    file.write_text(file.read_text().replace("max by", "max bye", 1))
    assert promtool("check", "rules", str(file)).returncode != 0


def promtool(*arguments: str) -> subprocess.CompletedProcess:
    """Debian's package prometheus has it."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


LABELS = {"sampler": "sampler-0", "kind": "node"}


def export() -> None:
    """In a process of its own, joined to RAY_ADDRESS: log every metric, print where they are exported, and stay."""
    import ray

    from actors.telemetry_sinks import RaySink

    ray.init(log_to_driver=False)
    RaySink("trial").log({name: 1.0 for name in [*shown(), "run/seconds"]}, LABELS)
    (node,) = ray.nodes()
    print(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", flush=True)
    sys.stdin.read()


@pytest.mark.slow  # Ray exports metrics every 10 s
@pytest.mark.timeout(300)
def test_ray_exports_every_series_that_a_query_asks_for(tmp_path):
    cluster = AutoscalingCluster(tmp_path, {}, {"CPU": 1})
    command = [sys.executable, "-c", "from tests.cluster.test_dashboard import export; export()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    try:
        with subprocess.Popen(command, env=cluster.environment, cwd=REPOSITORY, **pipes) as driver:
            url = driver.stdout.readline().strip()
            exported = _scraped(url, 'run="trial"', len(set(shown())) + 1)
            driver.stdin.close()
        for name in shown():
            line = next(line for line in exported if line.startswith(ray_name(METRICS[name]) + "{"))
            assert all(f'{label}="{LABELS[label]}"' in line for label in METRICS[name].labels), line
    finally:
        cluster.close()


def _scraped(url: str, mark: str, least: int) -> list[str]:
    """Lines with the mark, when there are so many."""
    deadline = time.monotonic() + 90
    while True:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = [line for line in text.splitlines() if mark in line]
        if len(lines) >= least:
            return lines
        assert time.monotonic() < deadline, json.dumps(lines)
        time.sleep(1)
