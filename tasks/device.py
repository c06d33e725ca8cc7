"""`device=`: which backend the build gets, decided from this machine's tools and drivers."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BuildError
from tasks.machine import has_xcode_tools, platform_name

NVIDIA_NODES = ("nvidia[0-9]*", "dxg", "nvhost-gpu", "nvgpu")
"""Device files of NVIDIA GPUs: desktop and server, Windows' Linux subsystem, Jetson."""

_SOFTWARE_VULKAN = re.compile(r"lvp|lavapipe|llvmpipe|swiftshader|swrast", re.I)


@dataclass(frozen=True)
class Probe:
    """Facts about this machine's GPU tools (what builds) and drivers (what runs).

    `cuda_version` is '' where nvcc was not asked, or failed.
    """

    platform: str
    nvcc: Path | None = None
    cuda_version: str = ""
    cublas: bool = False
    nvidia_driver: bool = False
    glslc: Path | None = None
    vulkan_headers: bool = False
    spirv_headers: bool = False
    vulkan_gpu: bool = False
    xcode_tools: bool = False

    @property
    def macos(self) -> bool:
        """True on any Mac."""
        return self.platform.startswith("macos-")

    @property
    def windows(self) -> bool:
        """True on Windows."""
        return self.platform.startswith("windows-")


@dataclass(frozen=True)
class DeviceChoice:
    """The backend to build; `reason` is one line for people, `cmake_flags` NAME=VALUE for -D."""

    device: str
    reason: str
    cmake_flags: tuple[str, ...] = ()


def choose_device(asked: str, facts: Probe) -> DeviceChoice:
    """Decide `auto`, or check a named device; BuildError names what to install for it.

    `auto` wants tools and a GPU. A named device wants the tools only: a build machine or a
    container image may compile for a GPU that it has not got.
    """
    if asked == "auto":
        return _best(facts)
    if asked == "cpu":
        return _cpu(facts, "as asked")
    if missing := _missing_tools(asked, facts):
        raise BuildError(f"device={asked} cannot be built here", missing, _fix(asked, facts))
    return _gpu(asked, facts)


def _best(facts: Probe) -> DeviceChoice:
    candidates = ["metal"] if facts.macos else [] if facts.windows else ["cuda", "vulkan"]
    lacks = []
    for device in candidates:
        lack = _lack(device, facts)
        if not lack:
            return _gpu(device, facts)
        lacks.append(lack)
    return _cpu(facts, "; ".join(lacks) or "the prebuilt program for Windows has no GPU backend")


def _lack(device: str, facts: Probe) -> str:
    """Why `auto` does not take `device`, '' where it does."""
    tools = _missing_tools(device, facts)
    if device == "metal":
        return tools
    gpu = facts.nvidia_driver if device == "cuda" else facts.vulkan_gpu
    what = "NVIDIA GPU with its driver" if device == "cuda" else "GPU with a Vulkan driver"
    if gpu:
        return f"{what} found but {tools}" if tools else ""
    if device == "cuda" and facts.nvcc:
        return f"CUDA toolkit found but no {what}"
    return f"no {what}"


def _missing_tools(device: str, facts: Probe) -> str:
    """What is missing to compile for `device`, '' where nothing is."""
    if facts.windows:
        return "the prebuilt program for Windows has no GPU backend"
    if device == "metal":
        if facts.platform != "macos-arm64":
            return "Metal is for Macs with Apple silicon"
        return "" if facts.xcode_tools else "no Xcode command line tools"
    if device == "cuda":
        if facts.macos:
            return "there is no CUDA for macOS"
        if not facts.nvcc:
            return "no CUDA toolkit (nvcc)"
        if not facts.cuda_version:
            return f"{facts.nvcc} --version fails"
        version = facts.cuda_version
        return "" if facts.cublas else f"CUDA toolkit {version} has no cuBLAS headers"
    wanted = {
        "glslc": facts.glslc,
        "Vulkan headers": facts.vulkan_headers,
        "SPIR-V headers": facts.spirv_headers,
    }
    return ", ".join(f"no {tool}" for tool, found in wanted.items() if not found)


def _fix(device: str, facts: Probe) -> str:
    if facts.windows:
        return "use device=cpu"
    if device == "metal":
        install = "run xcode-select --install" if facts.platform == "macos-arm64" else ""
    elif device == "vulkan":
        install = (
            "brew install vulkan-headers vulkan-loader molten-vk shaderc spirv-headers"
            if facts.macos
            else "apt install libvulkan-dev glslc spirv-headers, or install the Vulkan SDK"
        )
    elif facts.macos:
        install = "use device=metal"
    elif facts.nvcc and not facts.cuda_version:
        install = "install the CUDA toolkit again"
    elif facts.nvcc:
        package = f"libcublas-dev-{facts.cuda_version.replace('.', '-')}"
        install = f"apt install {package}, from NVIDIA's package source"
    else:
        install = (
            "apt install nvidia-cuda-toolkit (in Debian's non-free), or cuda-toolkit "
            "from NVIDIA's package source"
        )
    return f"{install}; or use device=cpu" if install else "use device=cpu"


def _cpu(facts: Probe, reason: str) -> DeviceChoice:
    # llama.cpp turns Metal on by itself on a Mac
    return DeviceChoice("cpu", f"cpu: {reason}", ("GGML_METAL=OFF",) if facts.macos else ())


def _gpu(device: str, facts: Probe) -> DeviceChoice:
    if device == "metal":
        flags: tuple[str, ...] = ("GGML_METAL=ON", "GGML_METAL_EMBED_LIBRARY=ON")
        return DeviceChoice(device, "metal: Apple silicon", flags)
    metal_off = ("GGML_METAL=OFF",) if facts.macos else ()
    if device == "vulkan":
        reason = "vulkan: GPU with a Vulkan driver"
        if not facts.vulkan_gpu:
            reason = "vulkan: as asked, though this machine has no GPU with a Vulkan driver"
        return DeviceChoice(device, reason, ("GGML_VULKAN=ON", *metal_off))
    architectures = "native" if facts.nvidia_driver else cuda_architectures(facts.cuda_version)
    flags = (
        "GGML_CUDA=ON",
        f"CMAKE_CUDA_COMPILER={facts.nvcc}",
        f"CMAKE_CUDA_ARCHITECTURES={architectures}",
    )
    reason = f"cuda: CUDA toolkit {facts.cuda_version} and an NVIDIA GPU"
    if not facts.nvidia_driver:
        reason = (
            f"cuda: CUDA toolkit {facts.cuda_version} and no NVIDIA GPU here, so built for "
            f"the usual ones ({architectures})"
        )
    return DeviceChoice(device, reason, flags)


def cuda_architectures(version: str) -> str:
    """CMAKE_CUDA_ARCHITECTURES for GPUs that are not here: the usual ones of a toolkit version.

    Compute capability 6.1 to 12.0; the virtual ones are compiled on the GPU's first use.
    llama.cpp has such a list too, but takes `native` when the CPU code is native.
    """
    major, _, minor = version.partition(".")
    toolkit = (int(major), int(minor or 0))
    architectures = ["75-virtual", "80-virtual", "86-real"]
    if toolkit < (13, 0):
        architectures[:0] = ["61-virtual", "70-virtual"]
    if toolkit >= (11, 8):
        architectures += ["89-real", "90-virtual"]
    if toolkit >= (12, 8):
        architectures += ["120a-real"]
    return ";".join(architectures)


def probe(asked: str, env: Mapping[str, str] = os.environ) -> Probe:
    """Look for GPU tools and drivers: a few ms of file look-ups, none for device=cpu.

    nvcc is run for its version only where the answer matters: there is a GPU, or it was asked for.
    """
    platform = platform_name()
    if asked == "cpu" or platform.startswith("windows-"):
        return Probe(platform)
    nvcc = find_nvcc(env)
    nvidia_driver = has_nvidia_driver()
    prefixes = [Path(p) for p in (env.get("VULKAN_SDK"), "/usr", "/usr/local") if p]
    if platform.startswith("macos-"):
        prefixes.append(Path("/opt/homebrew"))
    glslc = shutil.which("glslc", path=_search_path(env, [p / "bin" for p in prefixes]))
    return Probe(
        platform,
        nvcc=nvcc,
        cuda_version=_cuda_version(nvcc) if nvcc and (nvidia_driver or asked == "cuda") else "",
        cublas=nvcc is not None and _has_cublas(nvcc),
        nvidia_driver=nvidia_driver,
        glslc=Path(glslc) if glslc else None,
        vulkan_headers=any((p / "include/vulkan/vulkan.h").is_file() for p in prefixes),
        spirv_headers=any((p / "include/spirv/unified1/spirv.hpp").is_file() for p in prefixes),
        vulkan_gpu=has_vulkan_gpu(),
        xcode_tools=has_xcode_tools(),
    )


def _search_path(env: Mapping[str, str], folders: list[Path]) -> str:
    return os.pathsep.join([env.get("PATH", os.defpath), *map(str, folders)])


def find_nvcc(env: Mapping[str, str]) -> Path | None:
    """CUDACXX, or nvcc on PATH, or where a toolkit installs it without touching PATH."""
    roots = [env.get("CUDA_HOME"), env.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    folders = [Path(root) / "bin" for root in roots if root]
    found = shutil.which(env.get("CUDACXX") or "nvcc", path=_search_path(env, folders))
    return Path(found) if found else None


def _cuda_version(nvcc: Path) -> str:
    from tasks.process import capture

    found = re.search(r"release (\d+\.\d+)", capture([str(nvcc), "--version"]) or "")
    return found[1] if found else ""


def _has_cublas(nvcc: Path) -> bool:
    roots = [nvcc.resolve().parents[1], Path("/usr/local/cuda"), Path("/usr")]
    return any(
        next(root.glob(pattern), None) is not None
        for root in roots
        for pattern in ("include/cublas_v2.h", "targets/*/include/cublas_v2.h")
    )


def has_nvidia_driver(devices: Path = Path("/dev")) -> bool:
    """A GPU this process may use: its device file, and the driver's library.

    /proc/driver/nvidia would not do: it shows in containers that were given no GPU.
    """
    if not any(next(devices.glob(pattern), None) for pattern in NVIDIA_NODES):
        return False
    import ctypes

    for name in ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"):
        try:
            ctypes.CDLL(name)
            return True
        except OSError:
            continue
    return False


def has_vulkan_gpu(
    devices: Path = Path("/dev"),
    manifests: tuple[Path, ...] = (
        Path("/usr/share/vulkan/icd.d"),
        Path("/usr/local/share/vulkan/icd.d"),
        Path("/etc/vulkan/icd.d"),
    ),
) -> bool:
    """A GPU's device file that may be used, and a Vulkan driver that is no software renderer.

    Both are needed: Mesa installs the drivers of all makers together, on any machine.
    """
    nodes = [*devices.glob("dri/renderD*"), *devices.glob("nvidia[0-9]*"), *devices.glob("dxg")]
    drivers = (driver for folder in manifests for driver in folder.glob("*.json"))
    return any(os.access(node, os.R_OK | os.W_OK) for node in nodes) and any(
        not _SOFTWARE_VULKAN.search(driver.name) for driver in drivers
    )
