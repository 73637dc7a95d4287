from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_dqn import ExperienceDataModule, ReplayBuffer
from lightning_dqn.experience.memory import available_memory, cgroup_headroom, check_fits, ranks_here
from lightning_dqn.experience.rows import Place
from tests.environments import Chain, Counted

GIB = 2**30


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def cgroup(tmp_path):
    """Writes limits into a false control group file system; ask with ``cgroup.headroom()``."""

    class Cgroup:
        root, membership = tmp_path / "cgroup", tmp_path / "membership"

        def v2(self, group, limit, usage):
            write(self.root / group / "memory.max", limit)
            write(self.root / group / "memory.current", usage)

        def v1(self, group, limit, usage):
            write(self.root / "memory" / group / "memory.limit_in_bytes", limit)
            write(self.root / "memory" / group / "memory.usage_in_bytes", usage)

        def headroom(self):
            return cgroup_headroom(self.root, self.membership)

    Cgroup.root.mkdir()
    return Cgroup()


def test_a_version_2_limit_leaves_what_is_not_used(cgroup):
    write(cgroup.membership, "0::/job")
    cgroup.v2("job", 1000, 300)
    assert cgroup.headroom() == 700


def test_a_version_2_limit_of_max_is_none(cgroup):
    write(cgroup.membership, "0::/job")
    cgroup.v2("job", "max", 300)
    assert cgroup.headroom() is None


@pytest.mark.parametrize("group", ["", "slurm", "slurm/job"])
def test_a_version_2_limit_of_any_ancestor_binds(cgroup, group):
    write(cgroup.membership, "0::/slurm/job/step")
    cgroup.v2("slurm/job/step", 5000, 100)
    cgroup.v2(group, 1000, 400)
    assert cgroup.headroom() == 600


def test_inside_a_container_its_own_group_is_the_root(cgroup):
    write(cgroup.membership, "0::/../elsewhere")
    cgroup.v2("", 1000, 100)
    assert cgroup.headroom() == 900


def test_a_version_1_limit_leaves_what_is_not_used(cgroup):
    write(cgroup.membership, "5:cpu,cpuacct:/other\n4:memory:/job\n0::/")
    cgroup.v1("job", 2000, 500)
    assert cgroup.headroom() == 1500


def test_inside_a_version_1_container_its_own_group_is_the_root(cgroup):
    write(cgroup.membership, "4:memory:/docker/0123abcd")
    cgroup.v1("", 2000, 1999)
    assert cgroup.headroom() == 1


def test_a_version_1_limit_of_an_ancestor_binds(cgroup):
    write(cgroup.membership, "4:memory:/slurm/job/step")
    cgroup.v1("slurm/job/step", 2**63 - 4096, 100)
    cgroup.v1("slurm/job", 1000, 400)
    assert cgroup.headroom() == 600


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_where_the_groups_of_the_process_are_not_told_the_root_counts(cgroup, version):
    getattr(cgroup, version)("", 1000, 100)
    assert cgroup.headroom() == 900


def test_without_control_groups_there_is_no_limit(cgroup):
    assert cgroup.headroom() is None


def test_files_that_make_no_sense_are_no_limit(cgroup):
    write(cgroup.membership, "what is this")
    cgroup.v2("", "lots", 300)
    assert cgroup.headroom() is None


def test_the_kernel_is_asked_for_available_memory():
    memory = available_memory()
    assert memory is None or 2**20 < memory < 2**50


@pytest.fixture
def limits(monkeypatch):
    def set_limits(available, headroom):
        monkeypatch.setattr("lightning_dqn.experience.memory.available_memory", lambda: available)
        monkeypatch.setattr("lightning_dqn.experience.memory.cgroup_headroom", lambda: headroom)

    return set_limits


@pytest.mark.parametrize("sizes", [(10 * GIB, 5 * GIB), (5 * GIB, 10 * GIB), (5 * GIB, None), (None, 5 * GIB)])
def test_the_smaller_limit_counts(limits, sizes):
    limits(*sizes)
    check_fits(5 * GIB, "data.buffer.capacity")
    with pytest.raises(MemoryError):
        check_fits(5 * GIB + 1, "data.buffer.capacity")


def test_the_error_names_the_field_and_the_three_numbers(limits):
    limits(10 * GIB, 2 * GIB)
    with pytest.raises(MemoryError) as error:
        check_fits(3 * GIB // 2 * 3, "data.buffer.capacity")
    for part in ("data.buffer.capacity", "4.50 GiB", "10.00 GiB", "2.00 GiB"):
        assert part in str(error.value)


def test_a_limit_that_is_not_there_is_said_to_be_none(limits):
    limits(GIB, None)
    with pytest.raises(MemoryError, match="no limit"):
        check_fits(2 * GIB, "data.buffer.capacity")


def test_where_nothing_is_known_everything_fits(limits):
    limits(None, None)
    check_fits(2**60, "data.buffer.capacity")


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}, 4),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, 2),
        ({"WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1"}, 1),  # on how many machines nobody says
    ],
    ids=["one process", "torchrun", "Lightning, one machine", "Lightning, several machines"],
)
def test_ranks_on_this_machine_are_as_many_as_what_started_them_says(monkeypatch, said, ranks):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert ranks_here() == ranks


def test_what_all_ranks_of_a_machine_take_has_to_fit_together(limits, monkeypatch):
    buffer, kind = ReplayBuffer(1000), ((4,), np.dtype("float32"))
    limits(2 * buffer.num_bytes(*kind), None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    buffer.allocate(*kind)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(MemoryError, match=r"^data\.buffer\.capacity: .* by 3 ranks on this machine"):
        buffer.allocate(*kind)


def test_the_error_names_what_all_ranks_need_and_what_each_does(limits, monkeypatch):
    limits(8 * GIB, None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(MemoryError, match=r"\(needed: 26\.00 GiB by 4 ranks on this machine, 6\.50 GiB each, "):
        check_fits(13 * GIB // 2, "data.buffer.capacity")


@pytest.mark.parametrize("place", [Place(Path("replay")), Place(device=torch.device("cuda"))], ids=["disk", "device"])
def test_a_disk_says_itself_what_others_have_taken_and_an_accelerator_is_a_ranks_own(limits, monkeypatch, place):
    limits(8 * GIB, None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("lightning_dqn.experience.memory.free_space", lambda directory: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 9 * GIB))
    place.check_fits(5 * GIB, 2 * GIB, "data.buffer.capacity")
    with pytest.raises(MemoryError, match="4 ranks on this machine"):
        place.check_fits(5 * GIB, 2 * GIB + 1, "data.buffer.capacity")


@pytest.fixture
def forbid_allocation(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch, "zeros", refuse)


@pytest.mark.usefixtures("forbid_allocation")
def test_a_huge_buffer_is_refused_before_anything_is_allocated():
    buffer = ReplayBuffer(10**15)
    with pytest.raises(MemoryError, match=r"data\.buffer\.capacity"):
        buffer.allocate((4,), np.dtype("float32"))
    assert len(buffer) == 0


@pytest.mark.usefixtures("forbid_allocation")
def test_a_run_with_a_huge_buffer_is_refused_before_anything_is_allocated():
    data = ExperienceDataModule(Chain, buffer=ReplayBuffer(10**15))
    with pytest.raises(MemoryError, match=r"data\.buffer\.capacity"):
        data.open()


def test_a_fit_with_a_huge_buffer_leaves_no_environment_open(make_trainer, make_model):
    Counted.made = Counted.closed = 0
    data = ExperienceDataModule(Counted, buffer=ReplayBuffer(10**15))
    model = make_model(data)
    with pytest.raises(MemoryError, match=r"data\.buffer\.capacity"):
        make_trainer().fit(model, data)
    assert Counted.made == Counted.closed
