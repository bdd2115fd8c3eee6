"""Ray's own autoscaler on one machine: a head, and nodes that it starts and ends as actors ask for them.

The nodes are simulated: raylets beside the head's, with the resources that their type names. All of them share the
machine's cores, so give actors `num_cpus=0` and a resource of their own name, such as {"sampler_slot": 1}.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.toy_runs import free_ports, marked_processes, until

HEAD, HEAD_ID = "ray.head.default", "f" * 51 + "00000"
STORE = 80 * 2**20  # bytes of a node's object store
LISTS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
LISTS += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
LISTS += ("rsync_filter",)


class AutoscalingCluster:
    """A head with Ray's autoscaler (v2), which may start `types[name]["max_workers"]` nodes of each type.

    `types`: {name: {"resources": {...}, "min_workers": 0, "max_workers": n}}; `head`: the head's own resources.
    A node that nothing runs on ends after `idle_s`. `environment` has what a process needs to join it, with
    RAY_ADDRESS and a mark by which all of its processes are known.
    """

    def __init__(
        self,
        folder: Path,
        types: Mapping[str, Mapping[str, Any]],
        head: Mapping[str, float] | None = None,
        *,
        idle_s: float = 15.0,
    ) -> None:
        gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
        self.address, self.dashboard = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self._ray = tempfile.mkdtemp(prefix="lr", dir="/tmp")  # short: sockets lie in it
        self._log, self.mark = folder / "autoscaling.txt", uuid.uuid4().hex
        head = dict(head or {"CPU": 2.0})
        file = folder / "autoscaling.json"  # JSON is YAML
        file.write_text(json.dumps(cluster_config(self.address, types, head, idle_s)))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_ADDRESS": self.address,
            "LARPO_TEST_MARK": self.mark,
        }
        others = {name: amount for name, amount in head.items() if name not in ("CPU", "GPU")}
        arguments = [
            *f"start --head --disable-usage-stats --node-ip-address 127.0.0.1 --port {gcs}".split(),
            *f"--dashboard-port {dashboard} --ray-client-server-port {client} --metrics-export-port {metrics}".split(),
            *f"--dashboard-agent-listen-port {agent} --dashboard-agent-grpc-port {agent_grpc}".split(),
            *f"--num-cpus {head.get('CPU', 0):g} --num-gpus {head.get('GPU', 0):g}".split(),
            *f"--object-store-memory {STORE} --temp-dir {self._ray} --autoscaling-config {file}".split(),
            *("--resources", json.dumps(others), "--block"),
        ]
        self._head = self._start(arguments)
        until(lambda: "Ray runtime started" in self._log.read_text(), 120, self.log)

    def _start(self, arguments: list[str]) -> subprocess.Popen:
        own = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"} | {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "RAY_TMPDIR": self._ray,
        }
        with open(self._log, "a") as log:
            command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
            return subprocess.Popen(command, env=own, stdout=log, stderr=log)

    def nodes(self) -> dict[str, int]:
        """How many nodes of each type are alive, the head left out."""
        return nodes_of(self.address)

    def wait_for_nodes(self, count: int, limit_s: float = 90.0) -> float:
        """Seconds until so many nodes are alive, the head left out."""
        return until(lambda: sum(self.nodes().values()) == count, limit_s, lambda: f"{self.nodes()}\n{self.log()}")

    def log(self) -> str:
        """What the head and the autoscaler have said last."""
        monitor = Path(self._ray) / "session_latest" / "logs" / "monitor.log"
        return self._log.read_text() + (monitor.read_text()[-3000:] if monitor.exists() else "")

    def close(self) -> None:
        self._head.terminate()
        for process in marked_processes(self.mark):
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                process.kill()
        self._head.wait(30)
        shutil.rmtree(self._ray, ignore_errors=True)


def nodes_of(address: str) -> dict[str, int]:
    """How many nodes of each type are alive in the cluster at that address, the head left out."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(address)
    alive = [node for node in (*status.active_nodes, *status.idle_nodes) if node.instance_id != HEAD_ID]
    return dict(Counter(node.ray_node_type_name for node in alive))


def cluster_config(
    address: str, types: Mapping[str, Mapping[str, Any]], head: Mapping[str, float], idle_s: float
) -> dict[str, Any]:
    """A launcher file for Ray's provider of simulated nodes, named as one of another package.

    Under its own name, `fake_multinode`, Ray looks for a file of defaults that its wheel has not.
    """
    store = {"object_store_memory": STORE}
    kinds = {
        name: {"node_config": {}, "min_workers": 0, **kind, "resources": {**kind["resources"], **store}}
        for name, kind in types.items()
    }
    return {
        "cluster_name": "larpo-test",
        "max_workers": sum(kind["max_workers"] for kind in kinds.values()),
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "gcs_address": address,
            "disable_node_updaters": True,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "head_node_type": HEAD,
        "available_node_types": {HEAD: {"resources": dict(head), "node_config": {}, "max_workers": 0}, **kinds},
        **{name: [] for name in LISTS},
    }
