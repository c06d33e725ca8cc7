"""Every kind of repository: what is downloaded of it, and what llama-server is given."""

from __future__ import annotations

import re

import pytest
from graph import Gate, Tools, own_tools
from hub_project import README, REPO, HubProject, online, ran, value_of

__all__ = ["online"]

MODEL = f"model={REPO}"
PARTS = [f"name-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


# --- GGUF


def test_single(online: HubProject) -> None:
    online.upload({"ggml-model.gguf": online.content("only"), **README, ".gitattributes": b"x"})
    argv = online.served(MODEL)
    assert value_of(argv, "--model") == str(online.place() / "ggml-model.gguf")
    assert value_of(argv, "--alias") == REPO
    assert online.fetched() == {"ggml-model.gguf"}


def test_of_many_quantizations_one_is_downloaded(online: HubProject) -> None:
    online.upload(online.quantizations("Q2_K", "Q4_K_M", "Q6_K", "F16"))
    argv = online.served(MODEL)
    assert value_of(argv, "--model") == str(online.place() / "name-Q6_K.gguf")
    assert online.fetched() == {"name-Q6_K.gguf"}


@pytest.mark.parametrize("folder", ["", "Q4_K_M/"])
def test_split(online: HubProject, folder: str) -> None:
    files = {f"{folder}{name}": online.content(name) for name in PARTS}
    online.upload({**files, "Q2_K/name-Q2_K.gguf": online.content("other"), **README})
    run = online.start("serve", f"{MODEL}:q4_k_m", "port=auto")
    size = sum(map(len, files.values()))
    assert run.field("size") == f"{size / 1000:.1f} kB"
    assert value_of(online.argv(run), "--model") == str(online.place() / folder / PARTS[0])
    prefix = f"gguf/{online.place().name}/"
    assert online.there() == {prefix + name: content for name, content in files.items()}
    with online.silence():
        assert not ran(online.doit("prepare", f"{MODEL}:q4_k_m"))


def test_split_that_is_incomplete(online: HubProject) -> None:
    online.upload({name: online.content(name) for name in PARTS[:2]})
    said = online.doit("prepare", MODEL, status=14)
    assert f"Q4_K_M in org/name is incomplete\n  why: there is no {PARTS[2]}" in said
    assert not online.fetched()


def test_projector(online: HubProject) -> None:
    files = {**online.quantizations("Q4_K_M"), "mmproj-name-F16.gguf": online.content("mmproj")}
    online.upload({**files, "mmproj-name-F32.gguf": online.content("other")})
    argv = online.served(MODEL)
    assert value_of(argv, "--model") == str(online.place() / "name-Q4_K_M.gguf")
    assert value_of(argv, "--mmproj") == str(online.place() / "mmproj-name-F16.gguf")
    prefix = f"gguf/{online.place().name}/"
    assert online.there() == {prefix + name: content for name, content in files.items()}
    mine = online.folder / "mine.gguf"
    mine.write_bytes(online.content("mine"))
    online.hub.reset()
    assert "--mmproj" not in online.served(MODEL, "mmproj=no")
    assert value_of(online.served(MODEL, "mmproj=mine.gguf"), "--mmproj") == str(mine)
    assert online.hub.bytes_sent == 0


def test_projector_is_no_model(online: HubProject) -> None:
    online.upload({"mmproj-name-F16.gguf": online.content("mmproj")})
    for words in ((), ("filename=mmproj-name-F16.gguf",)):
        said = online.doit("prepare", MODEL, *words, status=14)
        assert "mmproj-name-F16.gguf" in said
        assert "is a vision or audio projector" in said
    assert not online.fetched()


def test_adapters_from_the_hub_and_from_here(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    online.upload({"style-lora-F16.gguf": online.content("lora")}, "org/lora")
    mine = online.folder / "mine.gguf"
    mine.write_bytes(online.content("mine"))
    words = (MODEL, "lora=org/lora, mine.gguf")
    argv = online.served(*words)
    hubs = online.place("org/lora") / "style-lora-F16.gguf"
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--lora"] == [
        str(hubs),
        str(mine),
    ]
    assert hubs.read_bytes() == online.content("lora")
    with online.silence():
        assert not ran(online.doit("prepare", *words))
        assert "--lora" not in online.served(MODEL)


def test_adapters_of_one_repository(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    adapters = {f"{name}-lora.gguf": online.content(name) for name in ("a", "b")}
    online.upload(adapters, "org/lora")
    words = (MODEL, f"lora={','.join(f'org/lora:{name}' for name in adapters)}")
    argv = online.served(*words)
    served = [argv[at + 1] for at, word in enumerate(argv) if word == "--lora"]
    assert served == [str(online.place("org/lora") / name) for name in adapters]
    twice = online.doit(
        "prepare", MODEL, "lora=org/lora:a-lora.gguf,org/lora:a-lora.gguf", status=3
    )
    assert "org/lora is named twice" in twice


def test_adapter_is_no_model(online: HubProject) -> None:
    online.upload({"style-lora-F16.gguf": online.content("lora")})
    said = online.doit("prepare", MODEL, status=14)
    assert "style-lora-F16.gguf is a LoRA adapter" in said
    assert not online.fetched()


def test_draft_model_from_elsewhere(online: HubProject) -> None:
    online.upload(online.quantizations("Q8_0"))
    online.upload({"tiny-Q4_K_M.gguf": online.content("draft")}, "org/draft")
    argv = online.served(MODEL, "draft-model=org/draft")
    drafts = online.place("org/draft") / "tiny-Q4_K_M.gguf"
    assert value_of(argv, "--model-draft") == str(drafts)
    assert value_of(argv, "--model") == str(online.place() / "name-Q8_0.gguf")
    mine = online.folder / "mine.gguf"
    mine.write_bytes(online.content("mine"))
    with online.silence():
        assert value_of(online.served(MODEL, "draft-model=mine.gguf"), "--model-draft") == str(mine)


def test_draft_model_from_the_same_repository(online: HubProject) -> None:
    online.upload(online.quantizations("Q8_0", "Q2_K"))
    words = (MODEL, "draft-model=org/name:q2_k")
    argv = online.served(*words)
    assert value_of(argv, "--model") == str(online.place() / "name-Q8_0.gguf")
    assert value_of(argv, "--model-draft") == str(online.place() / "name-Q2_K.gguf")
    assert len(online.hub.asked("api")) == 1
    with online.silence():
        assert not ran(online.doit("prepare", *words))


# --- safetensors


def test_draft_model_is_not_quantized_as_the_model(online: HubProject) -> None:
    online.upload(online.quantizations("Q8_0"))
    online.upload(online.safetensors(), "org/draft")
    argv = online.served(MODEL, "quantization=q8_0", "draft-model=org/draft")
    assert value_of(argv, "--model-draft").endswith("model.q4_k_m.gguf")


def test_checkpoint_is_downloaded_converted_and_served(online: HubProject) -> None:
    """Only what conversion needs, and nothing that could run."""
    needed = {
        **online.safetensors(auto_map={"AutoModel": "modeling_x.XModel"}),
        "tokenizer.model": b"sentences",
        "1_Pooling/config.json": b"{}",
    }
    marker = online.folder / "executed"
    code = f"open({str(marker)!r}, 'x')".encode()
    others = {
        "modeling_x.py": code,
        "tokenization_x.py": code,
        "sub/code.py": code,
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": needed["model.safetensors"],
        "onnx/model.onnx": b"onnx",
        "onnx/config.json": b"{}",
        "training_args.bin": b"pickle",
        "picture.png": b"png",
        **README,
    }
    online.upload({**needed, **others})
    run = online.start("serve", MODEL, "port=auto")
    product = online.place() / "model.q4_k_m.gguf"
    assert value_of(online.argv(run), "--model") == str(product)
    assert ran(run.output) == {"download", "convert", "quantize"}
    assert online.fetched() == needed.keys()
    prefix = f"safetensors/{online.place().name}/"
    assert online.there("safetensors") == {prefix + name: data for name, data in needed.items()}
    assert not marker.exists()
    with online.silence():
        assert not ran(online.doit("prepare", MODEL))


def test_type_of_a_checkpoint_by_its_reference(online: HubProject) -> None:
    online.upload(online.safetensors())
    assert ran(online.doit("prepare", f"{MODEL}:Q5-K-M")) == {"download", "convert", "quantize"}
    assert online.gguf("q5_k_m", "org__name").exists()
    said = online.doit("prepare", f"{MODEL}:q9_z", status=3)
    assert "q9_z" in said


def test_another_type_needs_no_network(online: HubProject) -> None:
    """Nor is the 16-bit type guessed that the weights were converted to."""
    online.upload(online.safetensors("BF16"))
    online.doit("prepare", MODEL)
    with online.silence():
        said = online.doit("prepare", MODEL, "quantization=q8_0", "offline=yes")
    assert ran(said) == {"quantize"}
    names = {f"model.{kind}.gguf" for kind in ("bf16", "q4_k_m", "q8_0")}
    assert online.files().keys() == names


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused(online: HubProject, name: str) -> None:
    online.upload({name: b"pickle", "config.json": b"{}", "tokenizer.json": b"{}", **README})
    said = online.doit("prepare", MODEL, status=14)
    assert "org/name holds only pickles" in said
    assert f"{name} is a pickle, and a pickle can run code when it is read" in said
    assert not online.fetched()
    assert not online.models.exists()


def test_ggufs_beside_safetensors(online: HubProject) -> None:
    """A GGUF where there is one of the type, else converted."""
    checkpoint = online.safetensors()
    online.upload({**checkpoint, **online.quantizations("Q4_K_M")})
    assert ran(online.doit("prepare", MODEL)) == {"download"}
    assert online.fetched() == {"name-Q4_K_M.gguf"}
    online.hub.reset()
    said = online.doit("prepare", f"{MODEL}:q5_k_m")
    assert re.search(r"^model +no q5_k_m among its GGUFs: converted from safetensors$", said, re.M)
    assert ran(said) == {"download", "convert", "quantize"}
    assert online.fetched() == checkpoint.keys()
    assert not online.hub.asked("api")
    with online.silence():
        for word, name in ((MODEL, "name-Q4_K_M.gguf"), (f"{MODEL}:q5_k_m", "model.q5_k_m.gguf")):
            assert online.rows(word)["serve"][1] == f"starts {online.place() / name}"


# --- while it downloads, it builds


def test_download_build_and_converter_run_at_once(tools: Tools, online: HubProject) -> None:
    """Each has begun and none may go on before all have."""
    nothing_built = Tools(tools.tree, online.folder / "nowhere")
    own = own_tools(nothing_built, online.folder / "own")
    online.upload(online.safetensors())
    download = online.hub.fault("stall", where="resolve", method="GET", name="tokenizer.json")
    configure, pip = Gate(own.folder / "configure"), Gate(own.folder / "pip")
    with open(own.folder / "llama.cpp" / "CMakeLists.txt", "a") as script:
        script.write(f'execute_process(COMMAND cat "{configure.path}")\n')
    # A configuration file that pip reads before it does anything.
    own.env = {**online.env, "PIP_CONFIG_FILE": str(pip.path)}
    run = own.start("prepare", MODEL)
    try:
        configure.reached(run)
        pip.reached(run)
        run.wait_until(lambda: download.hits > 0)
        pip.path.unlink()  # Whoever looks again finds none.
        for gate in (configure, pip):
            gate.open()
        download.release()
        steps = {"download", "build", "converter", "convert", "quantize"}
        assert ran(run.end()) == steps
    finally:
        own.close()
