"""`device=`: the decision for recorded machines, and the probe on this one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.device import (
    Probe,
    choose_device,
    cuda_architectures,
    find_nvcc,
    has_nvidia_driver,
    has_vulkan_gpu,
    probe,
)
from tasks.errors import BuildError

BARE = Probe("linux-x86_64")
NVCC = Path("/usr/local/cuda/bin/nvcc")
CUDA_TOOLS = replace(BARE, nvcc=NVCC, cuda_version="13.0", cublas=True)
CUDA = replace(CUDA_TOOLS, nvidia_driver=True)
VULKAN_TOOLS = replace(BARE, glslc=Path("/usr/bin/glslc"), vulkan_headers=True, spirv_headers=True)
VULKAN = replace(VULKAN_TOOLS, vulkan_gpu=True)
BOTH = replace(CUDA, glslc=VULKAN.glslc, vulkan_headers=True, spirv_headers=True, vulkan_gpu=True)
MAC = Probe("macos-arm64", xcode_tools=True)
INTEL_MAC = Probe("macos-x86_64", xcode_tools=True)
WINDOWS = Probe("windows-x64")


@pytest.mark.parametrize(
    ("facts", "device", "reason"),
    [
        (BARE, "cpu", "no NVIDIA GPU with its driver; no GPU with a Vulkan driver"),
        (CUDA_TOOLS, "cpu", "CUDA toolkit found but no NVIDIA GPU with its driver"),
        (replace(BARE, nvidia_driver=True), "cpu", "found but no CUDA toolkit (nvcc)"),
        (replace(CUDA, cublas=False), "cpu", "found but CUDA toolkit 13.0 has no cuBLAS headers"),
        (replace(CUDA, cuda_version=""), "cpu", f"{NVCC} --version fails"),
        (VULKAN_TOOLS, "cpu", "no GPU with a Vulkan driver"),
        (replace(VULKAN, glslc=None), "cpu", "GPU with a Vulkan driver found but no glslc"),
        (CUDA, "cuda", "CUDA toolkit 13.0 and an NVIDIA GPU"),
        (VULKAN, "vulkan", "GPU with a Vulkan driver"),
        (BOTH, "cuda", ""),
        (replace(BOTH, nvcc=None), "vulkan", ""),
        (MAC, "metal", "Apple silicon"),
        (replace(MAC, xcode_tools=False), "cpu", "no Xcode command line tools"),
        (INTEL_MAC, "cpu", "Metal is for Macs with Apple silicon"),
        (WINDOWS, "cpu", "the prebuilt program for Windows has no GPU backend"),
    ],
)
def test_auto_takes_the_best_and_says_why_not_more(facts: Probe, device: str, reason: str) -> None:
    choice = choose_device("auto", facts)
    assert choice.device == device
    assert choice.reason.startswith(f"{device}: ")
    assert reason in choice.reason
    assert "\n" not in choice.reason


@pytest.mark.parametrize(
    ("asked", "facts", "why", "install"),
    [
        ("cuda", BARE, "no CUDA toolkit (nvcc)", "nvidia-cuda-toolkit"),
        ("cuda", replace(CUDA, cublas=False), "no cuBLAS headers", "libcublas-dev-13-0"),
        ("cuda", replace(CUDA, cuda_version=""), "--version fails", "CUDA toolkit again"),
        ("cuda", MAC, "no CUDA for macOS", "device=metal"),
        ("vulkan", BARE, "no glslc, no Vulkan headers, no SPIR-V headers", "libvulkan-dev glslc"),
        ("vulkan", replace(VULKAN, spirv_headers=False), "no SPIR-V headers", "spirv-headers"),
        ("vulkan", MAC, "no glslc", "brew install vulkan-headers"),
        ("metal", BARE, "Apple silicon", "device=cpu"),
        ("metal", INTEL_MAC, "Apple silicon", "device=cpu"),
        ("metal", replace(MAC, xcode_tools=False), "Xcode", "xcode-select --install"),
        ("cuda", WINDOWS, "prebuilt", "device=cpu"),
    ],
)
def test_a_named_device_that_cannot_be_built_names_what_to_install(
    asked: str, facts: Probe, why: str, install: str
) -> None:
    with pytest.raises(BuildError) as caught:
        choose_device(asked, facts)
    assert caught.value.what == f"device={asked} cannot be built here"
    assert why in caught.value.why
    assert install in caught.value.fix


@pytest.mark.parametrize(
    ("asked", "facts", "flags"),
    [
        ("cpu", BARE, set()),
        ("cpu", BOTH, set()),
        ("cpu", MAC, {"GGML_METAL=OFF"}),
        ("metal", MAC, {"GGML_METAL=ON", "GGML_METAL_EMBED_LIBRARY=ON"}),
        ("vulkan", VULKAN, {"GGML_VULKAN=ON"}),
        ("vulkan", replace(VULKAN, platform="macos-arm64"), {"GGML_VULKAN=ON", "GGML_METAL=OFF"}),
        (
            "cuda",
            CUDA,
            {
                "GGML_CUDA=ON",
                f"CMAKE_CUDA_COMPILER={NVCC}",
                "CMAKE_CUDA_ARCHITECTURES=native",
            },
        ),
    ],
)
def test_flags_for_cmake(asked: str, facts: Probe, flags: set[str]) -> None:
    assert set(choose_device(asked, facts).cmake_flags) == flags


def test_a_build_machine_without_a_gpu_compiles_for_the_usual_ones() -> None:
    choice = choose_device("cuda", CUDA_TOOLS)
    assert f"CMAKE_CUDA_ARCHITECTURES={cuda_architectures('13.0')}" in choice.cmake_flags
    assert cuda_architectures("13.0") in choice.reason
    assert "no GPU with a Vulkan driver" in choose_device("vulkan", VULKAN_TOOLS).reason


@pytest.mark.parametrize(
    ("version", "first", "last"),
    [
        ("11.5", "61-virtual", "86-real"),
        ("12.4", "61-virtual", "90-virtual"),
        ("12.8", "61-virtual", "120a-real"),
        ("13.0", "75-virtual", "120a-real"),
    ],
)
def test_architectures_that_a_toolkit_knows(version: str, first: str, last: str) -> None:
    names = cuda_architectures(version).split(";")
    assert (names[0], names[-1]) == (first, last)


def manifest(folder: Path, name: str) -> tuple[Path]:
    (folder / "icd.d").mkdir()
    (folder / "icd.d" / name).write_text("{}")
    return (folder / "icd.d",)


@pytest.mark.parametrize(
    ("driver", "node", "found"),
    [
        ("radeon_icd.x86_64.json", "dri/renderD128", True),
        ("nvidia_icd.json", "nvidia0", True),
        ("lvp_icd.x86_64.json", "dri/renderD128", False),
        ("radeon_icd.x86_64.json", "dri/card0", False),
        ("README", "dri/renderD128", False),
    ],
)
def test_vulkan_needs_a_gpu_and_its_driver(
    tmp_path: Path, driver: str, node: str, found: bool
) -> None:
    device = tmp_path / "dev" / node
    device.parent.mkdir(parents=True)
    device.touch()
    assert has_vulkan_gpu(tmp_path / "dev", manifest(tmp_path, driver)) is found


def test_no_nvidia_driver_without_a_device_file(tmp_path: Path) -> None:
    # what a container shows that was given no GPU
    (tmp_path / "nvidiactl").touch()
    assert not has_nvidia_driver(tmp_path)


def test_nvcc_is_found_off_path_and_as_named(tmp_path: Path) -> None:
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert find_nvcc({"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path / "cuda")}) == nvcc
    assert find_nvcc({"PATH": str(tmp_path), "CUDACXX": str(nvcc)}) == nvcc
    assert find_nvcc({"PATH": str(tmp_path), "CUDACXX": "no-such-nvcc"}) is None


def test_nothing_is_probed_for_the_cpu(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\necho release 12.4\n")
    nvcc.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.defpath}"}
    assert probe("cpu", env).nvcc is None
    assert not (tmp_path / "ran").exists()
    assert probe("cuda", env).cuda_version == "12.4"
    assert (tmp_path / "ran").exists()


def test_auto_on_this_machine_is_a_device_it_can_build() -> None:
    choice = choose_device("auto", probe("auto"))
    facts = probe(choice.device)
    assert choose_device(choice.device, facts).device == choice.device


@pytest.mark.skipif(
    not find_nvcc(os.environ) or has_nvidia_driver(), reason="needs nvcc and no NVIDIA GPU"
)
def test_a_real_toolkit_without_a_gpu() -> None:
    facts = probe("cuda")
    major, minor = facts.cuda_version.split(".")
    assert int(major) >= 11
    assert minor.isdigit()
    assert choose_device("auto", facts).device != "cuda"
    assert "CUDA toolkit found but no NVIDIA GPU" in choose_device("auto", facts).reason
    if facts.cublas:
        assert choose_device("cuda", facts).device == "cuda"
    else:
        with pytest.raises(BuildError, match="libcublas-dev"):
            choose_device("cuda", facts)
