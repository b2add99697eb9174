"""A Ray cluster of several nodes on this machine, which may be as busy as it likes.

To be imported before Ray is, for Ray reads these variables then.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A busy machine is slow, and not dead.
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_raylet_start_wait_time_s": "40",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "10",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}

import ray
from ray._private import utils
from ray.cluster_utils import Cluster

# A node has less to start, and less to do: the helper without which it does not begin leaves out
# what a dashboard would show.
utils.get_dashboard_dependency_error = lambda: ImportError("not wanted here")

TRIES = 5
STORE_BYTES = 80 * 1024 * 1024
# Those of a node's helpers. Ray waits 30 s for a node, and for ports that it is not told until the
# helpers have some.
_PORTS = (
    "dashboard_agent_listen_port",
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(nodes: Sequence[dict[str, Any]]) -> Iterator[Cluster]:
    """Nodes with these options, the first of which is the head, joined by this process."""
    made = Cluster()
    try:
        for number, options in enumerate(nodes):
            head = {} if number else {"include_dashboard": False}
            _add(made, {"object_store_memory": STORE_BYTES, **head, **options})
        ray.init(address=made.address, logging_level=logging.ERROR, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def _add(made: Cluster, options: dict[str, Any]) -> None:
    """Starts a node; again where the machine was too busy for it to come up in Ray's 30 s."""
    for left in reversed(range(TRIES)):
        try:
            made.add_node(**{name: free_port() for name in _PORTS}, **options)
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
