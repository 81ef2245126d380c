"""Which run a process is part of, by flags, variables and clusters."""

import pytest
from jax._src import cloud_tpu_init, clusters

from pid_jax.distributed.joining import Processes, described
from pid_jax.errors import UserError

THREE = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_without_flags_and_variables_a_process_is_alone():
    assert described({}, {}) is None


def test_three_variables_describe_a_run():
    assert described({}, THREE) == Processes("10.0.0.1:1234", 4, 2)


def test_flags_take_precedence():
    flags = {"coordinator_address": "host:1", "num_processes": "3", "process_id": "0"}
    assert described(flags, THREE) == Processes("host:1", 3, 0)


def test_an_indexed_job_has_the_process_id():
    variables = {**THREE, "JOB_COMPLETION_INDEX": "3"}
    del variables["JAX_PROCESS_ID"]
    assert described({}, variables) == Processes("10.0.0.1:1234", 4, 3)


def test_the_index_of_a_job_alone_describes_nothing():
    assert described({}, {"JOB_COMPLETION_INDEX": "3"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, r"but not JAX_PROCESS_ID \(--process-id\)"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "but not JAX_COORDINATOR_ADDRESS"),
        ({"JAX_NUM_PROCESSES": ""}, "but not JAX_NUM_PROCESSES"),
        ({"JAX_NUM_PROCESSES": "", "JAX_PROCESS_ID": ""}, "but not JAX_NUM_PROCESSES"),
        ({"JAX_PROCESS_ID": "4"}, "is 4: it must be from 0 to 3"),
        ({"JAX_PROCESS_ID": "-1"}, "whole number of at least 0"),
        ({"JAX_NUM_PROCESSES": "two"}, "whole number of at least 1"),
        ({"JAX_NUM_PROCESSES": "0"}, "whole number of at least 1"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "host:port of process 0"),
    ],
    ids=str,
)
def test_what_is_missing_or_out_of_range_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        described({}, THREE | changes)


def test_tasks_of_a_slurm_step_are_left_to_jax():
    assert described({}, SLURM) == Processes(None, None, None)


@pytest.mark.parametrize(
    "changes", [{"SLURM_STEP_NUM_TASKS": "1"}, {"JAX_NUM_PROCESSES": "1"}], ids=str
)
def test_one_task_is_a_single_process(changes):
    assert described({}, SLURM | changes) is None


def test_a_batch_script_outside_of_a_step_is_a_single_process():
    variables = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert described({}, variables) is None


@pytest.mark.parametrize(
    ("hosts", "processes"), [("a", None), ("a,b,c", Processes(None, None, None))]
)
def test_hosts_of_a_tpu_slice_are_left_to_jax_if_there_are_several(monkeypatch, hosts, processes):
    # As on a host with TPUs of GKE, where JAX reads this variable.
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts)
    monkeypatch.delenv("MEGASCALE_NUM_SLICES", raising=False)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.get_metadata", lambda _: ("", 404))
    assert clusters.GkeTpuCluster.get_process_count() == hosts.count(",") + 1
    assert described({}, {}) == processes
    assert described({}, {"JAX_PLATFORMS": "cpu"}) is None
