"""The binaries: llama.cpp compiled for this machine, or the prebuilt ones for Windows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tasks import console, device, files, machine, prebuilt, process, toolchain
from tasks.device import DeviceChoice
from tasks.errors import BuildError
from tasks.layout import Layout, executable
from tasks.settings import Settings
from tasks.state import Json
from tasks.step import Step
from tasks.toolchain import Compiler
from tasks.vendor import PREBUILT, Source

TARGETS = ("llama-server", "llama-quantize")
_PARAMETERS = "llamake.json"
_STEP_LINE = re.compile(r"^\[(\d+)/(\d+)\] ")
_ERROR_LINE = re.compile(
    r"(^|: )(fatal )?error: |^CMake Error|undefined (reference|symbol)|^ninja: error|cannot find -l"
)


def platform_of(settings: Settings) -> str:
    """The platform whose binaries are wanted."""
    return settings.platform or machine.platform_name()


def choose(settings: Settings) -> DeviceChoice:
    """The device to build for: one that this machine can build, or that prebuilt binaries have."""
    if platform_of(settings).startswith("windows"):
        if settings.device not in ("auto", "cpu"):
            raise BuildError(
                f"device={settings.device} cannot be had on Windows",
                "the prebuilt Windows binaries are for the CPU",
                "leave out device=",
            )
        return DeviceChoice("cpu", "cpu: the prebuilt Windows binaries are for the CPU", ())
    return device.choose_device(settings.device, device.probe(settings.device))


def steps(
    settings: Settings, layout: Layout, source: Source, vendor: Step, choice: DeviceChoice
) -> tuple[Step, Step]:
    """The steps `toolchain` and `build`."""
    platform = platform_of(settings)
    folder = layout.binaries(platform, choice.device)
    if platform.startswith("windows"):
        tools = Step("toolchain", "a compiler", skip="Windows binaries are prebuilt")
        return tools, _prebuilt_step(source, vendor, folder, platform)
    if platform != machine.platform_name():
        raise BuildError(
            f"binaries for {platform} cannot be made here",
            f"this machine is {machine.platform_name()}, and nothing is cross-compiled",
            "leave out platform=, or name windows-x64 for the prebuilt ones",
        )
    compiler = toolchain.find_compiler() or toolchain.zig_compiler(layout.zig)
    tools = _toolchain_step(layout, compiler)
    flags = tuple(configure_flags(source, choice, compiler))
    tree = layout.build_tree(platform, choice.device)

    def make() -> Mapping[str, Json]:
        made = build.record
        if made and made.forgotten:
            files.remove(tree)
        console.say("build", f"device {choice.reason}")
        return compile_source(source, tree, folder, flags, compiler, layout.log("build"))

    build = Step(
        "build",
        f"compile {source.label} for {choice.device}",
        folder=folder,
        key="build",
        parameters={
            "source": source.content,
            # Without the places of this checkout, which decide nothing.
            "flags": [_placeless(flag, source.root, layout.bins) for flag in flags],
            "compiler": compiler.identity,
            "cpu": list(machine.cpu_features()),
        },
        outputs={name: folder / name for name in TARGETS},
        make=make,
        data_from=(vendor,),
        tools=(tools,),
    )
    return tools, build


def _toolchain_step(layout: Layout, compiler: Compiler) -> Step:
    if compiler.kind != "zig":
        return Step("toolchain", "a compiler", skip=f"{compiler.cxx} is used")
    requirements = layout.requirements("zig")

    def make() -> Mapping[str, Json]:
        toolchain.install_zig(layout.zig, requirements, layout.log("toolchain"))
        return {"compiler": compiler.version()}

    return Step(
        "toolchain",
        "install the Zig compiler, since this machine has no C++ compiler",
        folder=layout.zig,
        key="toolchain",
        parameters={"requirements": files.sha256_of(requirements)},
        outputs={compiler.cxx.name: compiler.cxx},
        make=make,
    )


def _prebuilt_step(source: Source, vendor: Step, folder: Path, platform: str) -> Step:
    archive = source.root / PREBUILT
    names = [executable(folder, name, "win32").name for name in TARGETS]

    def make() -> Mapping[str, Json]:
        archives = sorted(archive.glob("*win-cpu-x64.zip"))
        if not archives:
            raise BuildError(
                f"{source.label} brings no binaries for Windows",
                f"there is no *win-cpu-x64.zip in {archive}",
                "leave out llama-cpp=, so that the pinned version is used",
            )
        unpacked = prebuilt.unpack_prebuilt(archives[0], folder)
        return {"platform": platform, "archive": archives[0].name, "files": len(unpacked)}

    return Step(
        "build",
        f"unpack {source.label} for {platform}",
        folder=folder,
        key="build",
        parameters={"source": source.identity},
        outputs={name: folder / name for name in names},
        make=make,
        data_from=(vendor,),
    )


def _placeless(flag: str, *folders: Path) -> str:
    for folder in folders:
        flag = flag.replace(str(folder), "")
    return flag


def configure_flags(source: Source, choice: DeviceChoice, compiler: Compiler) -> Iterator[str]:
    """CMake's cache entries for llama-server and llama-quantize, self-contained."""
    yield "-DCMAKE_BUILD_TYPE=Release"
    # One file per program: it can be moved out of the build tree.
    yield "-DBUILD_SHARED_LIBS=OFF"
    yield "-DGGML_NATIVE=ON"
    yield "-DGGML_RPC=ON"
    yield "-DLLAMA_BUILD_TESTS=OFF"
    yield "-DLLAMA_BUILD_EXAMPLES=OFF"
    # The web UI lies in the source; without this CMake would ask the hub for a newer one.
    yield "-DLLAMA_USE_PREBUILT_UI=OFF"
    # It would write into the source, which may be the user's.
    yield "-DLLAMA_UI_GZIP=OFF"
    if source.pin:
        # Else the build asks git, which answers with the commit of the enclosing project.
        yield f"-DLLAMA_BUILD_NUMBER={source.pin.build_number}"
        yield f"-DLLAMA_BUILD_COMMIT={source.pin.commit}"
    # Messages and asserts name source files: without the path of this machine.
    for language in ("C", "CXX"):
        yield f"-DCMAKE_{language}_FLAGS=-ffile-prefix-map={source.root}=llama.cpp"
    yield from (f"-D{flag}" for flag in choice.cmake_flags)
    yield from (f"-D{flag}" for flag in compiler.cmake_flags)


def compile_source(
    source: Source,
    tree: Path,
    folder: Path,
    flags: Iterable[str],
    compiler: Compiler,
    log: Path,
) -> Mapping[str, Json]:
    """Configure and compile in `tree`, then put the programs that run into `folder`."""
    toolchain.check_works(compiler, tree.parent)
    flags = list(flags)
    # CMake refuses a tree whose folder was moved.
    places = {"source": str(source.root), "tree": str(tree)}
    _prepare_tree(tree, {"flags": flags, "compiler": compiler.identity, **places})
    files.remove(log)
    environment = {"CC": str(compiler.cc), "CXX": str(compiler.cxx)}
    jobs = machine.compile_jobs(machine.allowed_cpus(), machine.available_memory())
    cmake, ninja = _cmake_tools()
    configure = [cmake, "-S", str(source.root), "-B", str(tree), "-G", "Ninja", *flags]
    console.say("build", f"{source.label}: configuring, then compiling with {jobs} jobs")
    _run([*configure, f"-DCMAKE_MAKE_PROGRAM={ninja}"], log, environment)
    # Others must stay responsive, and a conversion that runs beside must get its share.
    polite = ["nice", "-n", "10"] if shutil.which("nice") else []
    compile_argv = [cmake, "--build", str(tree), "--parallel", str(jobs), "--target", *TARGETS]
    _run([*polite, *compile_argv], log, environment)
    for name in TARGETS:
        with files.replacing(folder / name, verify=lambda path: _check_runs(path, log)) as partial:
            partial.write_bytes((tree / "bin" / name).read_bytes())
            partial.chmod(0o755)
    if source.pin:
        files.remove(tree)
    return {
        "platform": machine.platform_name(),
        "compiler": compiler.version(),
        "llama.cpp": _version(folder / "llama-server"),
        "jobs": jobs,
    }


def _prepare_tree(tree: Path, parameters: Mapping[str, Json]) -> None:
    """Keep what an interrupted or older compilation left only where it was made alike."""
    stamp = tree / _PARAMETERS
    wanted = json.dumps(parameters, indent=1)
    if tree.exists() and (not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted):
        files.remove(tree)
    files.write_text(stamp, wanted)


def _cmake_tools() -> tuple[str, str]:
    import cmake
    import ninja

    return str(Path(cmake.CMAKE_BIN_DIR) / "cmake"), str(Path(ninja.BIN_DIR) / "ninja")


def _run(argv: list[str], log: Path, environment: Mapping[str, str]) -> None:
    def report(line: str) -> None:
        match = _STEP_LINE.match(line)
        if match:
            done, total = int(match[1]), int(match[2])
            console.progress("build", f"compiling {done}/{total} ({100 * done // total}%)")

    try:
        process.run(argv, log=log, env=environment, on_line=report)
    except process.CommandFailed as failed:
        why = first_error(log.read_text(encoding="utf-8", errors="replace").splitlines())
        memory = "the compiler ran out of memory: close other programs; " if "Killed" in why else ""
        raise BuildError("llama.cpp did not compile", why, f"{memory}see {log}") from failed


def first_error(lines: Iterable[str]) -> str:
    """The first line of a build log that is an error, or its last line."""
    last = ""
    for line in lines:
        last = line.strip() or last
        if _ERROR_LINE.search(line):
            return line.strip()
    return last


def _check_runs(program: Path, log: Path) -> None:
    if not process.can_run([str(program), "--version"]):
        raise BuildError(f"{program.name} was compiled but does not run", fix=f"see {log}")


def _version(server: Path) -> str:
    lines = (process.capture([str(server), "--version"]) or "").splitlines()
    return next((line.strip() for line in lines if line.startswith("version")), "unknown")
