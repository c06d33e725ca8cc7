"""What this machine allows the calling process: platform, CPUs, memory, instruction sets."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
DEVICES = Path("/sys/devices")

BYTES_PER_COMPILE_JOB = 1_300_000_000
"""The peak of the largest llama.cpp source files under gcc -O3."""
BYTES_FOR_CONVERSION = 2 << 30
"""A conversion may run beside the compilation."""

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "aarch64": "arm64"}
# cgroup v1 says "unlimited" as the largest signed 64-bit number of whole pages
_UNLIMITED = 1 << 60


def platform_name() -> str:
    """`<os>-<arch>` as in the folders of bins/: linux-x86_64, macos-arm64, windows-x64."""
    import platform

    return name_of_platform(platform.system(), platform.machine())


def name_of_platform(system: str, machine: str) -> str:
    """`platform_name` for what `platform.system()` and `platform.machine()` say."""
    system = {"darwin": "macos"}.get(system.lower(), system.lower())
    machine = _ARCHITECTURES.get(machine.lower(), machine.lower())
    if system == "windows" and machine == "x86_64":
        machine = "x64"
    return f"{system}-{machine}"


def has_xcode_tools() -> bool:
    """True where Apple's compiler can run, and not only the program that asks to install it."""
    tools = ("/Library/Developer/CommandLineTools/usr/bin/clang", "/Applications/Xcode.app")
    return any(Path(tool).exists() for tool in tools)


def cpu_quota(root: Path = CGROUPS, proc: Path = PROC) -> float | None:
    """CPUs that cgroups grant this process per period (1.5 = one and a half); None: no limit."""
    quotas = [_quota(folder) for folder in _cgroups("cpu", root, proc)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    if v2 := _read(folder / "cpu.max"):
        quota, _, period = v2.partition(" ")
    else:
        quota = _read(folder / "cpu.cfs_quota_us")
        period = _read(folder / "cpu.cfs_period_us")
    # v2 says "max" and v1 says -1 where there is no quota
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def memory_limit(root: Path = CGROUPS, proc: Path = PROC) -> int | None:
    """Bytes of memory that cgroups grant this process; None: no limit."""
    limits = [_limit(folder) for folder in _cgroups("memory", root, proc)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(folder: Path) -> int | None:
    text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def available_memory(root: Path = CGROUPS, proc: Path = PROC) -> int:
    """Bytes this process can take without swapping and without meeting a cgroup's limit."""
    bounds = [_unused(folder) for folder in _cgroups("memory", root, proc)]
    return max(0, min([_system_memory(proc), *(bound for bound in bounds if bound is not None)]))


def _unused(folder: Path) -> int | None:
    limit = _limit(folder)
    usage = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    if limit is None or not usage.isdigit():
        return limit
    # v1 leaves children out of the plain counters; cached files go before anything is killed
    cached = re.search(r"^total_inactive_file (\d+)", _read(folder / "memory.stat"), re.M)
    cached = cached or re.search(r"^inactive_file (\d+)", _read(folder / "memory.stat"), re.M)
    return limit - int(usage) + (int(cached[1]) if cached else 0)


def _system_memory(proc: Path) -> int:
    if found := re.search(r"^MemAvailable:\s+(\d+) kB", _read(proc / "meminfo"), re.M):
        return int(found[1]) * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def _cgroups(controller: str, root: Path, proc: Path) -> Iterator[Path]:
    """Every folder whose `controller` limits hold for this process: its cgroup, all ancestors.

    A hybrid machine has v1 and v2 side by side; both are looked at.
    """
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _with_ancestors(root if _is_v2(root) else root / "unified", path)
        elif controller in controllers.split(","):
            mounts = (root / controllers, root / controller)
            yield from _with_ancestors(next(filter(Path.is_dir, mounts), mounts[-1]), path)


def _is_v2(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


def _with_ancestors(mount: Path, path: str) -> Iterator[Path]:
    # In a container the path may be the host's; what is mounted then is the container's own
    # group, and a folder below it of the path's first name would be somebody else's.
    parts = [part for part in path.split("/") if part]
    folder = mount.joinpath(*parts)
    if ".." not in parts and folder.is_dir():
        while folder != mount:
            yield folder
            folder = folder.parent
    yield mount


def affinity() -> set[int]:
    """The numbers of the CPUs this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def allowed_cpus() -> int:
    """CPUs for work in independent pieces (compile jobs), at least 1.

    A quota is rounded up: two jobs under a quota of 1.5 use all of it, and wait for nobody.
    """
    quota = cpu_quota()
    return max(1, min(len(affinity()), math.ceil(quota) if quota else len(affinity())))


def server_threads() -> int:
    """Threads for llama-server: the physical cores it may use, within the quota; at least 1."""
    return threads_within(physical_cores(affinity()), cpu_quota())


def threads_within(cores: int, quota: float | None) -> int:
    """Threads for `cores` physical cores under a quota in CPUs (None: no quota), at least 1.

    The quota is rounded *down*, 1.5 gives 1: the threads meet at a barrier after every layer,
    spinning, so one more than the quota pays for gets all of them throttled, every period.
    """
    return max(1, cores if quota is None else min(cores, math.floor(quota)))


def physical_cores(cpus: Iterable[int], devices: Path = DEVICES) -> int:
    """How many physical cores the logical CPUs belong to; efficiency cores count only alone.

    Hyperthreads share the vector units that inference is made of, and a slow core makes the
    fast ones wait. Elsewhere than on Linux all of the machine's (performance) cores.
    """
    cpus = set(cpus)
    if not (devices / "system/cpu").is_dir():
        return _cores_elsewhere() or len(cpus)
    performance = cpus & _cpu_list(_read(devices / "cpu_core" / "cpus"))
    cores = {
        _read(devices / f"system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        for cpu in performance or cpus
    }
    return len(cores)


def _cores_elsewhere() -> int | None:
    from tasks.process import capture

    if (text := capture(["sysctl", "-n", "hw.perflevel0.physicalcpu"])) and text.strip().isdigit():
        return int(text)
    import psutil

    cores: int | None = psutil.cpu_count(logical=False)
    return cores


def _cpu_list(text: str) -> set[int]:
    """'0-3,8' -> {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def compile_jobs(cpus: int, available_bytes: int) -> int:
    """Compilers to run at once: one per CPU, as many as memory holds beside a conversion."""
    return max(1, min(cpus, (available_bytes - BYTES_FOR_CONVERSION) // BYTES_PER_COMPILE_JOB))


# What a compiler may use under -march=native. Other flags come and go with kernels,
# hypervisors and mitigations, and must not cause a rebuild.
_X86_INSTRUCTIONS = re.compile(
    r"pni|ssse3|sse\w*|avx\w*|amx\w*|fma4?|f16c|bmi[12]|movbe|popcnt|abm|adx|aes|vaes"
    r"|v?pclmulqdq|gfni|sha\w*|sm[34]|xop|tbm|cx16|lahf_lm|3dnowprefetch|movdir\w+"
)
_X86_MODEL = ("vendor_id", "cpu family", "model")
_ARM_MODEL = ("CPU implementer", "CPU part")


def cpu_features(proc: Path = PROC) -> tuple[str, ...]:
    """What decides the code of a native build: CPU model and instruction sets, sorted.

    Empty on Windows, where nothing is compiled.
    """
    try:
        with open(proc / "cpuinfo", encoding="utf-8", errors="replace") as file:
            return features_in_cpuinfo(file)
    except FileNotFoundError:
        return _features_elsewhere()


def features_in_cpuinfo(lines: Iterable[str]) -> tuple[str, ...]:
    """`cpu_features` from the lines of Linux's /proc/cpuinfo."""
    features: set[str] = set()
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in _X86_MODEL or key in _ARM_MODEL:
            features.add(f"{key}={value}")
        elif key == "flags":
            features.update(filter(_X86_INSTRUCTIONS.fullmatch, value.split()))
        elif key == "Features":
            features.update(value.split())
        elif not key and any(feature.startswith("vendor_id=") for feature in features):
            # x86 cores are all alike, and each further one costs the kernel time to describe
            break
    return tuple(sorted(features))


def _features_elsewhere() -> tuple[str, ...]:
    from tasks.process import capture

    text = capture(["sysctl", "machdep.cpu.brand_string", "hw.optional"]) or ""
    return features_in_sysctl(text)


def features_in_sysctl(text: str) -> tuple[str, ...]:
    """`cpu_features` from what macOS's sysctl prints: the brand and each feature that is 1."""
    pairs = [line.partition(": ")[::2] for line in text.splitlines()]
    return tuple(
        sorted(
            f"{key}={value}" if key == "machdep.cpu.brand_string" else key
            for key, value in pairs
            if key == "machdep.cpu.brand_string" or value == "1"
        )
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
