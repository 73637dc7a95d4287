"""The cluster as a command sees it."""

import os
import signal
import socket

import pytest

ray = pytest.importorskip("ray")

from lightning_dqn.apps.command import Refusal  # noqa: E402
from lightning_dqn.ray.head import Cluster, is_alive  # noqa: E402
from tests.ray_runs import pids_of, two_nodes, wait_for  # noqa: E402


def test_a_port_that_nobody_listens_at_is_no_head():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = "{}:{}".format(*server.getsockname())
        assert is_alive(address)
    assert not is_alive(address)


def test_a_cluster_is_measured_and_its_death_is_seen(monkeypatch):
    with two_nodes() as nodes:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with Cluster() as cluster:
            assert cluster.address == nodes.address
            cluster.require(2, {"CPU": 1.0}, "--num_workers")
            cluster.require(4, {"CPU": 0.5}, "--num_workers")
            with pytest.raises(Refusal, match=r"^--num_workers 3 of 1 CPU each: the cluster has 2 CPU; take fewer"):
                cluster.require(3, {"CPU": 1.0}, "--num_workers")
            with pytest.raises(Refusal, match=r"^--num_workers 1 of 1 GPU each: the cluster has 0 GPU"):
                cluster.require(1, {"CPU": 1.0, "GPU": 1.0}, "--num_workers")
            assert cluster.is_alive()
            with Cluster():  # within another it is the same, and stays
                pass
            assert ray.is_initialized()
        assert not ray.is_initialized()
        assert cluster.is_alive()  # it was there before
        os.kill(pids_of(nodes.head_node, "gcs_server")[0], signal.SIGKILL)
        wait_for(lambda: not cluster.is_alive())


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(Refusal, match=r"^RAY_ADDRESS: there is no cluster at 127.0.0.1:1; `ray start") as refused,
        Cluster(),
    ):
        pass
    assert "\n" not in str(refused.value)
