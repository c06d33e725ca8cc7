"""What this machine allows: recorded trees for other machines, real cgroups on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks import machine
from tasks.machine import (
    available_memory,
    compile_jobs,
    cpu_features,
    cpu_quota,
    features_in_cpuinfo,
    features_in_sysctl,
    memory_limit,
    name_of_platform,
    physical_cores,
    threads_within,
)

GIB = 1 << 30
V1_UNLIMITED = "9223372036854771712"
V1_GROUPS = "4:memory:{0}\n3:cpuset:/\n2:cpu,cpuacct:{0}\n1:name=systemd:/\n"


def tree(folder: Path, files: Mapping[str, object]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return folder


def proc(folder: Path, cgroup: str, mem_available_kib: int = 64 << 20) -> Path:
    meminfo = f"MemTotal: 99999999 kB\nMemAvailable:   {mem_available_kib} kB"
    return tree(folder / "proc", {"self/cgroup": cgroup, "meminfo": meminfo})


@pytest.mark.parametrize(
    ("system", "arch", "name"),
    [
        ("Linux", "x86_64", "linux-x86_64"),
        ("Linux", "aarch64", "linux-arm64"),
        ("Darwin", "arm64", "macos-arm64"),
        ("Darwin", "x86_64", "macos-x86_64"),
        ("Windows", "AMD64", "windows-x64"),
        ("Windows", "ARM64", "windows-arm64"),
    ],
)
def test_platforms_have_the_names_of_their_folders(system: str, arch: str, name: str) -> None:
    assert name_of_platform(system, arch) == name


def test_v1_limits_of_the_own_group(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "cgroup",
        {
            "cpu,cpuacct/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/job/cpu.cfs_quota_us": 150000,
            "cpu,cpuacct/job/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
            "memory/job/memory.limit_in_bytes": 3 * GIB,
        },
    )
    own = proc(tmp_path, V1_GROUPS.format("/job"))
    assert cpu_quota(root, own) == 1.5
    assert memory_limit(root, own) == 3 * GIB


def test_v1_without_limits(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "cgroup",
        {
            "cpu/cpu.cfs_quota_us": -1,
            "cpu/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
        },
    )
    own = proc(tmp_path, V1_GROUPS.format("/"))
    assert cpu_quota(root, own) is None
    assert memory_limit(root, own) is None


def test_v2_limits_are_the_smallest_of_all_ancestors(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "cgroup",
        {
            "cgroup.controllers": "cpu memory",
            "user.slice/cpu.max": "250000 100000",
            "user.slice/memory.max": 8 * GIB,
            "user.slice/run.scope/cpu.max": "max 100000",
            "user.slice/run.scope/memory.max": 2 * GIB,
            "user.slice/run.scope/leaf/cpu.max": "800000 100000",
            "user.slice/run.scope/leaf/memory.max": "max",
            "other/cpu.max": "10000 100000",
            "other/memory.max": 1,
        },
    )
    own = proc(tmp_path, "0::/user.slice/run.scope/leaf\n")
    assert cpu_quota(root, own) == 2.5
    assert memory_limit(root, own) == 2 * GIB


@pytest.mark.parametrize("path", ["/", "/docker/0123abc", "/../outside"])
def test_in_a_container_the_root_of_the_mount_is_the_own_group(tmp_path: Path, path: str) -> None:
    root = tree(
        tmp_path / "cgroup",
        {
            "cgroup.controllers": "cpu memory",
            "cpu.max": "200000 100000",
            "memory.max": 4 * GIB,
            # of a container started inside this one
            "docker/cpu.max": "10000 100000",
            "docker/memory.max": 1,
        },
    )
    tree(tmp_path, {"outside/cpu.max": "10000 100000"})
    own = proc(tmp_path, f"0::{path}\n")
    assert cpu_quota(root, own) == 2
    assert memory_limit(root, own) == 4 * GIB


def test_a_v1_container_sees_the_hosts_path(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "cgroup",
        {
            "cpu,cpuacct/cpu.cfs_quota_us": 50000,
            "cpu,cpuacct/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": GIB,
        },
    )
    own = proc(tmp_path, V1_GROUPS.format("/docker/0123abc"))
    assert cpu_quota(root, own) == 0.5
    assert memory_limit(root, own) == GIB


def test_hybrid_machines_limit_by_v1_and_v2_at_once(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "cgroup",
        {
            "cpu/job/cpu.cfs_quota_us": 300000,
            "cpu/job/cpu.cfs_period_us": 100000,
            "unified/job/memory.max": 5 * GIB,
            "unified/cgroup.controllers": "memory",
        },
    )
    own = proc(tmp_path, "1:cpu:/job\n0::/job\n")
    assert cpu_quota(root, own) == 3
    assert memory_limit(root, own) == 5 * GIB


def test_a_machine_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path) is None
    assert memory_limit(tmp_path, tmp_path) is None


def test_available_memory_is_the_machines_without_a_limit(tmp_path: Path) -> None:
    own = proc(tmp_path, "0::/\n", mem_available_kib=1 << 20)
    assert available_memory(tmp_path, own) == GIB


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        (
            "0::/job\n",
            {
                "cgroup.controllers": "memory",
                "job/memory.max": 4 * GIB,
                "job/memory.current": 3 * GIB,
                "job/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 5",
            },
        ),
        (
            "4:memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": 4 * GIB,
                "memory/job/memory.usage_in_bytes": 3 * GIB,
                "memory/job/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}",
            },
        ),
    ],
)
def test_available_memory_counts_cached_files_as_free(
    tmp_path: Path, cgroup: str, files: dict[str, object]
) -> None:
    root = tree(tmp_path / "cgroup", files)
    assert available_memory(root, proc(tmp_path, cgroup)) == 2 * GIB
    small = proc(tmp_path, cgroup, mem_available_kib=1024)
    assert available_memory(root, small) == 1 << 20


def test_available_memory_is_never_negative(tmp_path: Path) -> None:
    files = {"cgroup.controllers": "", "memory.max": 5, "memory.current": 9}
    assert available_memory(tree(tmp_path / "cgroup", files), proc(tmp_path, "0::/\n")) == 0


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [(8, None, 8), (8, 1.5, 1), (8, 0.5, 1), (8, 4.0, 4), (2, 4.0, 2), (8, 3.99, 3)],
)
def test_server_threads_stay_below_the_quota(cores: int, quota: float | None, threads: int) -> None:
    assert threads_within(cores, quota) == threads


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    siblings = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}
    files = {f"system/cpu/cpu{n}/topology/thread_siblings_list": s for n, s in siblings.items()}
    devices = tree(tmp_path, files)
    assert physical_cores({0, 1, 4, 5}, devices) == 2
    assert physical_cores({0, 4}, devices) == 1
    assert physical_cores({1, 4}, devices) == 2


def test_efficiency_cores_count_only_where_there_are_no_others(tmp_path: Path) -> None:
    files = {f"system/cpu/cpu{n}/topology/thread_siblings_list": str(n // 2) for n in range(4)}
    files |= {f"system/cpu/cpu{n}/topology/thread_siblings_list": str(n) for n in range(4, 8)}
    devices = tree(tmp_path, {**files, "cpu_core/cpus": "0-3", "cpu_atom/cpus": "4-7"})
    assert physical_cores(range(8), devices) == 2
    assert physical_cores({5, 6, 7}, devices) == 3


@pytest.mark.parametrize(
    ("cpus", "gigabytes", "jobs"),
    [(2, 64.0, 2), (64, 17.0, 11), (16, 5.0, 2), (16, 1.0, 1), (1, 64.0, 1)],
)
def test_compile_jobs_follow_cpus_and_memory(cpus: int, gigabytes: float, jobs: int) -> None:
    assert compile_jobs(cpus, int(gigabytes * 1e9)) == jobs


ZEN3 = """\
processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 1
model name	: AMD EPYC
flags		: fpu sse2 avx2 fma constant_tsc hypervisor pni ibpb
bugs		: spectre_v1

processor	: 1
"""
CORTEX = """\
processor	: {0}
BogoMIPS	: 108.00
Features	: fp asimd asimddp
CPU implementer	: 0x41
CPU part	: {1}

"""


def test_x86_features_are_the_model_and_its_instructions() -> None:
    found = features_in_cpuinfo(ZEN3.splitlines(keepends=True))
    model = ("cpu family=25", "model=1", "vendor_id=AuthenticAMD")
    assert found == tuple(sorted([*model, "avx2", "fma", "pni", "sse2"]))


@pytest.mark.parametrize(
    ("old", "new", "rebuild"),
    [
        ("ibpb", "ibpb stibp ssbd md_clear", False),
        ("hypervisor ", "", False),
        ("AMD EPYC", "AMD EPYC-Milan", False),
        ("avx2", "avx2 avx512f", True),
        ("avx2 ", "", True),
        ("family	: 25", "family	: 26", True),
    ],
)
def test_only_what_changes_the_code_rebuilds(old: str, new: str, rebuild: bool) -> None:
    assert old in ZEN3
    other = ZEN3.replace(old, new).splitlines(keepends=True)
    assert (features_in_cpuinfo(other) != features_in_cpuinfo(ZEN3.splitlines(True))) is rebuild


def test_arm_features_cover_all_kinds_of_cores() -> None:
    text = CORTEX.format(0, "0xd05") + CORTEX.format(1, "0xd41")
    found = features_in_cpuinfo(text.splitlines(keepends=True))
    assert {"asimddp", "CPU part=0xd05", "CPU part=0xd41", "CPU implementer=0x41"} <= set(found)


def test_mac_features_are_the_brand_and_what_is_on() -> None:
    text = (
        "machdep.cpu.brand_string: Apple M2\n"
        "hw.optional.arm.FEAT_I8MM: 1\nhw.optional.arm.FEAT_SME: 0\n"
    )
    assert features_in_sysctl(text) == (
        "hw.optional.arm.FEAT_I8MM",
        "machdep.cpu.brand_string=Apple M2",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled on Windows")
def test_this_cpu_has_features() -> None:
    assert len(cpu_features()) > 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_asking_needs_no_slow_imports() -> None:
    program = (
        "import sys; from tasks import machine as m; m.server_threads(), m.cpu_features(), "
        "m.available_memory(), m.allowed_cpus(); print('psutil' in sys.modules)"
    )
    assert ask(program) == "False"


def ask(program: str, before: str = "") -> str:
    """What a new process prints that ran `before` and then `program`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(machine.__file__).parents[1],
    )
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_affinity_is_respected_for_real() -> None:
    one = min(os.sched_getaffinity(0))
    narrow = f"import os; os.sched_setaffinity(0, {{{one}}})"
    program = "from tasks import machine as m; print(m.allowed_cpus(), m.server_threads())"
    assert ask(program, narrow) == "1 1"


@contextmanager
def real_group(controller: str) -> Iterator[Path]:
    """A new cgroup v1 folder; skips where this machine has none that we may write.

    CI is a machine that has: there it fails instead.
    """
    parent = Path("/sys/fs/cgroup") / controller
    if not parent.is_dir() or os.geteuid() != 0:
        pytest.skip("needs cgroup v1 and root")
    group = parent / f"llamake-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))
    try:
        yield group
    finally:
        group.rmdir()


def enter(group: Path) -> str:
    return f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"


def test_a_real_cpu_quota() -> None:
    program = (
        "from tasks import machine as m; print(m.cpu_quota(), m.allowed_cpus(), m.server_threads())"
    )
    with real_group("cpu") as group:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("50000")
        assert ask(program, enter(group)) == "0.5 1 1"


def test_a_real_memory_limit() -> None:
    program = (
        "from tasks import machine as m; limit = m.memory_limit()\n"
        "print(limit, 0 < m.available_memory() <= limit)"
    )
    with real_group("memory") as group:
        (group / "memory.limit_in_bytes").write_text(str(GIB))
        assert ask(program, enter(group)) == f"{GIB} True"
