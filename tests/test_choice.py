"""Which files of a repository are chosen, and what is said where none can be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import LlamakeError, ModelError, Refused
from tasks.files import inside
from tasks.hub.choice import choose
from tasks.hub.fit import PREFERENCE, Fit
from tasks.hub.labels import parse_label
from tasks.hub.listing import Kind, candidates, usable
from tasks.hub.manifest import Choice, RemoteFile, Request
from tasks.quantization import QUANTIZATIONS

GB = 10**9


def files(*names: str, **sizes: float) -> list[RemoteFile]:
    """Files of a kB each; keywords are GGUFs by their label, in GB."""
    made = [RemoteFile(name, 1000) for name in names]
    return made + [RemoteFile(f"m-{k}.gguf", int(size * GB)) for k, size in sizes.items()]


def chosen(
    listing: Sequence[RemoteFile], gb: float = 1000, role: Kind = Kind.MODEL, **asked: str
) -> Choice:
    fit = Fit(int(gb * GB), lambda file: int(1.1 * GB))
    return choose(listing, Request(**asked), fit, role=role, repo="org/name")


def without_memory(listing: Sequence[RemoteFile], **asked: str) -> Choice:
    """The choice where memory must not be asked for."""

    def unwanted(file: RemoteFile) -> int:
        raise AssertionError(f"asked the context of {file.name}")

    return choose(listing, Request(**asked), Fit(0, unwanted), repo="org/name")


def why_not(listing: Sequence[RemoteFile], **asked: Any) -> str:
    with pytest.raises(ModelError) as refused:
        chosen(listing, **asked)
    return str(refused.value)


MANY = files("README.md", "config.json", Q4_K_M=4.7, Q5_K_M=5.7, Q6_K=10.2, Q8_0=14, f16=28)
CHECKPOINT = files(
    *("config.json", "tokenizer.json", "tokenizer.model", "model.safetensors.index.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    *("merges.txt", "chat_template.jinja", "1_Pooling/config.json", "qwen.tiktoken"),
)


def test_one_gguf_is_taken_without_a_look_at_the_memory() -> None:
    assert without_memory(files("a.gguf", "README.md")) == Choice("gguf", ("a.gguf",))
    assert without_memory(files(Q4_0=90)).quantization == "Q4_0"


@pytest.mark.parametrize(
    ("gb", "label", "why"),
    [
        (100, "Q8_0", "Q8_0: 14.0 GB + 1.1 GB context fits 100.0 GB"),
        (15, "Q6_K", "Q6_K: 10.2 GB + 1.1 GB context fits 15.0 GB; Q8_0 would not"),
        (11.2, "Q5_K_M", "Q5_K_M: 5.7 GB + 1.1 GB context fits 11.2 GB; Q6_K would not"),
        (5.8, "Q4_K_M", "Q4_K_M: 4.7 GB + 1.1 GB context fits 5.8 GB; Q5_K_M would not"),
    ],
)
def test_the_best_that_fits(gb: float, label: str, why: str) -> None:
    choice = chosen(MANY, gb)
    assert choice == Choice("gguf", (f"m-{label}.gguf",), label, why=why)


def test_the_context_is_asked_for_once_and_only_where_a_file_fits() -> None:
    asked: list[str] = []

    def context(file: RemoteFile) -> int:
        asked.append(file.name)
        return GB

    choose(MANY, Request(), Fit(11 * GB, context))
    assert asked == ["m-Q6_K.gguf"]
    with pytest.raises(ModelError):
        choose(MANY, Request(), Fit(GB, context))
    assert len(asked) == 1


def test_where_none_fits_the_numbers_are_given() -> None:
    assert why_not(MANY, gb=5) == (
        "nothing in org/name fits the memory\n"
        "  why: Q4_K_M: 4.7 GB + 1.1 GB context; usable are 5.0 GB\n"
        "  fix: take a smaller ctx-size=, or name one with quantization= to try it all the same: "
        "Q4_K_M (4.7 GB), Q5_K_M (5.7 GB), Q6_K (10.2 GB), Q8_0 (14.0 GB), f16 (28.0 GB)"
    )
    assert "why: Q4_K_M: 4.7 GB; usable are 4.0 GB\n  fix: name one" in why_not(MANY, gb=4)


@pytest.mark.parametrize(
    ("names", "best"),
    [
        ("f32 bf16 f16", "f16"),
        ("f16 Q2_K", "Q2_K"),
        ("Q6_K_L UD-Q6_K_XL Q6_K", "Q6_K"),
        ("Q8_0 UD-Q8_K_XL", "Q8_0"),
        ("Q4_K_M UD-Q4_K_XL Q4_K_S", "UD-Q4_K_XL"),
        ("UD-Q4_K_M i1-Q4_K_M Q4_K_M", "Q4_K_M"),
        ("UD-Q4_K_M i1-Q4_K_M", "i1-Q4_K_M"),
        ("IQ4_XS Q4_0", "IQ4_XS"),
        ("IQ4_KS Q1_0", "Q1_0"),
        ("Q4_0_8_8 IQ1_S", "IQ1_S"),
        ("Q4_K Q4_K_S", "Q4_K"),
    ],
)
def test_the_order_of_preference(names: str, best: str) -> None:
    listing = files(*(f"m-{name}.gguf" for name in [*names.split(), "no-label"]))
    assert chosen(listing).quantization == best


def test_every_type_has_its_place_in_the_order() -> None:
    assert len(set(PREFERENCE)) == len(PREFERENCE)
    assert {name.upper() for name in QUANTIZATIONS} <= set(PREFERENCE)
    assert all((label := parse_label(name)) and label.type == name for name in PREFERENCE)


@pytest.mark.parametrize("asked", ["Q5_K_M", "q5_k_m", "q5-k-m", "Q5KM", "q5_k", "UD-Q5_K_M"])
def test_an_asked_quantization_in_any_spelling(asked: str) -> None:
    assert without_memory(MANY, quantization=asked).files == ("m-Q5_K_M.gguf",)


def test_an_answer_that_is_not_plain_is_said() -> None:
    choice = without_memory(files("UD-Q4_K_M.gguf", "Q5_0.gguf"), quantization="q4_k_m")
    assert choice.quantization == "UD-Q4_K_M"
    assert choice.why == "UD-Q4_K_M: there is no plain Q4_K_M"
    assert without_memory(files("Q4_K.gguf"), quantization="q4_k_m").why == ""


def test_what_is_not_there_is_listed() -> None:
    assert why_not(MANY, quantization="q5_k_s") == (
        "org/name has no q5_k_s (did you mean 'Q5_K_M'?)\n"
        "  fix: there is Q4_K_M (4.7 GB), Q5_K_M (5.7 GB), Q6_K (10.2 GB), Q8_0 (14.0 GB), "
        "f16 (28.0 GB)"
    )
    assert "m.gguf (1.0 kB)" in why_not(files("m.gguf"), quantization="q4_0")
    crowd = files(*(f"m{number}.gguf" for number in range(50)))
    assert why_not(crowd, quantization="q4_0").endswith("and 20 more")


def test_files_of_one_quantization() -> None:
    same = files("sub/a-Q4_0.gguf", "a-chat-Q4_0.gguf", "a-Q4_0.gguf", "b-chat-Q4_0.gguf")
    choice = without_memory(same, quantization="q4_0")
    assert choice.files == ("a-Q4_0.gguf",)
    assert choice.why.startswith("a-Q4_0.gguf and not a-chat-Q4_0.gguf, b-chat-Q4_0.gguf")
    apart = [RemoteFile("a-7B-Q4_0.gguf", 4 * GB), RemoteFile("b-70B-Q4_0.gguf", 40 * GB)]
    for asked in ("q4_0", ""):
        assert "both Q4_0\n  fix: name one with filename=" in why_not(apart, quantization=asked)
    assert chosen(apart, filename="b-70B-Q4_0.gguf").files == ("b-70B-Q4_0.gguf",)
    assert chosen(apart, pattern="a-*").files == ("a-7B-Q4_0.gguf",)


def parts(stem: str, count: int, *missing: int) -> list[str]:
    numbers = [number for number in range(1, count + 1) if number not in missing]
    return [f"{stem}-{number:05}-of-{count:05}.gguf" for number in numbers]


@pytest.mark.parametrize("folder", ["", "Q8_0/", "a/b/"])
def test_split_files_come_together(folder: str) -> None:
    names = parts(f"{folder}m-Q8_0", 3)
    listing = files(*names, "m-Q4_0.gguf")
    random.Random(1).shuffle(listing)
    whole = Choice("gguf", tuple(names), "Q8_0")
    assert without_memory(listing, quantization="q8_0") == whole
    for name in (*names, names[1].rpartition("/")[2]):
        assert without_memory(listing, filename=name) == whole
    assert chosen(listing).why == "Q8_0: 3.0 kB + 1.1 GB context fits 1000.0 GB"


def test_an_incomplete_split_file_is_never_taken() -> None:
    names = parts("m-Q8_0", 3, 2)
    listing = files(*names, "m-Q4_0.gguf", *parts("m-Q5_0", 2, 1))
    assert chosen(listing).files == ("m-Q4_0.gguf",)
    gone = "m-Q8_0-00002-of-00003.gguf"
    for asked in ({"quantization": "Q8_0"}, {"filename": names[0]}, {"filename": gone}):
        assert f"there is no {gone}" in why_not(listing, **asked)
    assert "Q5_0 (incomplete)" in why_not(listing, quantization="q2_k")
    assert "is incomplete" in why_not(files(*names))
    assert "and 99995 more" not in why_not(files("m-00007-of-99999.gguf"))


def test_a_complete_file_is_preferred_to_an_incomplete_one_of_its_type() -> None:
    listing = files(*parts("m-Q8_0", 2, 1), "sub/longer-Q8_0.gguf")
    assert without_memory(listing, quantization="q8_0").files == ("sub/longer-Q8_0.gguf",)


NOT_MODELS = (
    *("mmproj-model-f16.gguf", "m-mmproj-Q8_0.gguf", "imatrix.gguf", "m.imatrix.gguf"),
    *("m-imatrix.gguf", "imatrix_unsloth.gguf", "imatrix.dat", "ggml-vocab-llama.gguf"),
    *("m-lora-f16.gguf", "adapter.gguf", "m-LoRA.gguf", "m-draft-Q8_0.gguf", "m-MTP-Q8_0.gguf"),
    *("m-eagle3-Q8_0.gguf", "m-control-vector.gguf", "m-cvector-f16.gguf"),
)


@pytest.mark.parametrize("name", NOT_MODELS)
def test_what_goes_along_is_not_the_model(name: str) -> None:
    assert chosen(files(name, "m-Q4_0.gguf", "m-Q2_K.gguf")).files == ("m-Q4_0.gguf",)


@pytest.mark.parametrize(
    "name",
    [
        *("m-imatrix-Q4_K_M.gguf", "Flora-7B-Q8_0.gguf", "Overdraft-Q8_0.gguf"),
        "adapted-Q8_0.gguf",
    ],
)
def test_names_that_mislead(name: str) -> None:
    assert candidates(files(name))[0].kind is Kind.MODEL


def test_models_that_were_trained_by_lora() -> None:
    kinds = {each.kind for each in candidates(files("m-lora-Q8_0.gguf", "m-lora-Q4_K_M.gguf"))}
    assert kinds == {Kind.MODEL}


def test_adapters_and_drafts_by_their_roles() -> None:
    listing = files("m-Q4_0.gguf", "m-lora-f16.gguf", "m-draft-Q8_0.gguf")
    assert chosen(listing, role=Kind.ADAPTER).files == ("m-lora-f16.gguf",)
    assert chosen(listing, role=Kind.DRAFT).files == ("m-draft-Q8_0.gguf",)
    assert chosen(files("m-draft-Q8_0.gguf")).files == ("m-draft-Q8_0.gguf",)
    assert chosen(files("x.gguf"), role=Kind.ADAPTER).files == ("x.gguf",)
    only = files("m-lora-f16.gguf")
    assert "name it with lora=" in why_not(only)
    assert chosen(only, filename="m-lora-f16.gguf").files == ("m-lora-f16.gguf",)
    assert "does not hold a LoRA adapter" in why_not(CHECKPOINT, role=Kind.ADAPTER)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"filename": "m-Q4_K.gguf"}, "did you mean m-Q4_K_M.gguf"),
        ({"filename": "zzzzzzzz"}, "mmproj.gguf (1.0 kB), m-Q4_K_M.gguf (4.7 GB), m-Q5_K_M.gguf"),
        ({"filename": "README.md"}, "is not a GGUF"),
        ({"filename": "mmproj.gguf"}, "is a vision or audio projector, not a model"),
        ({"filename": "same.gguf"}, "more than once\n  why: a/same.gguf, b/same.gguf"),
        ({"pattern": "*q9*"}, "no GGUF in org/name matches pattern=*q9*"),
        ({"pattern": "*mmproj*"}, "matches"),
        ({"mmproj": "mmprj.gguf"}, "did you mean mmproj.gguf"),
    ],
)
def test_names_that_are_not_there(asked: dict[str, str], message: str) -> None:
    listing = MANY + files("mmproj.gguf", "a/same.gguf", "b/same.gguf")
    assert message in why_not(listing, **asked)


def test_a_pattern_narrows_the_choice() -> None:
    assert chosen(MANY, pattern="*q4*").files == ("m-Q4_K_M.gguf",)
    assert chosen(MANY, gb=14, pattern="m-Q[4-6]*.gguf").quantization == "Q6_K"
    assert chosen(MANY, pattern="m-Q[4-6]*", quantization="q5_k").quantization == "Q5_K_M"
    assert "has no q8_0" in why_not(MANY + CHECKPOINT, pattern="*Q4*", quantization="q8_0")
    deep = files("a/m-Q4_0.gguf", "b/m-Q4_0.gguf", *parts("c/m-Q4_0", 2))
    assert chosen(deep, pattern="b/*").files == ("b/m-Q4_0.gguf",)
    assert chosen(deep, pattern="*-00002-of-*").files == tuple(parts("c/m-Q4_0", 2))


@pytest.mark.parametrize(
    ("model", "projector"),
    [("m-Q4_0.gguf", "mmproj-F16.gguf"), ("q8/n-Q8_0.gguf", "q8/mmproj-Q8_0.gguf")],
)
def test_the_projector_that_goes_along(model: str, projector: str) -> None:
    listing = files(*("mmproj-F32.gguf", "mmproj-F16.gguf", "mmproj-BF16.gguf"), "m-Q4_0.gguf")
    listing += files("q8/n-Q8_0.gguf", "q8/mmproj-Q8_0.gguf", "mmproj-Q4_0.gguf")
    assert chosen(listing, filename=model).mmproj == projector
    assert chosen(listing, filename=model, mmproj="no").mmproj == ""
    for name in ("mmproj-Q8_0.gguf", "q8/mmproj-Q8_0.gguf"):
        assert chosen(listing, filename=model, mmproj=name).mmproj == "q8/mmproj-Q8_0.gguf"


def test_the_projector_needs_memory_too() -> None:
    listing = [*MANY, RemoteFile("mmproj-f16.gguf", GB)]
    choice = chosen(listing, gb=7.5)
    assert choice.mmproj == "mmproj-f16.gguf"
    assert choice.why.startswith("Q4_K_M: 4.7 GB + 1.0 GB mmproj + 1.1 GB context fits 7.5 GB")
    assert chosen(listing, gb=7.5, mmproj="no").quantization == "Q5_K_M"


def test_a_checkpoint_with_all_that_its_conversion_needs() -> None:
    others = files(
        *("README.md", "LICENSE.txt", "requirements.txt", "modeling.py", "pytorch_model.bin"),
        *("original/config.json", "onnx/config.json", "onnx/model.onnx", "a/b/config.json"),
        *("consolidated.safetensors", "model.fp16.safetensors", ".hub.json", ".gitattributes"),
        *("mmproj-f16.gguf", "sub/model.safetensors", "tokenizer.py"),
    )
    choice = without_memory(others + CHECKPOINT)
    assert choice.kind == "safetensors"
    assert choice.files[0] == "config.json"
    assert list(choice.files[1:]) == sorted(choice.files[1:])
    assert set(choice.files) == {file.name for file in CHECKPOINT}
    assert (choice.mmproj, choice.why) == ("", "")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("model.safetensors", "model.safetensors"),
        ("model.safetensors model.fp16.safetensors", "model.safetensors"),
        ("model.safetensors model-00001-of-00001.safetensors", "model.safetensors"),
        ("model.safetensors adapter_model.safetensors", "model.safetensors"),
        ("model.safetensors-00001-of-00001.safetensors",) * 2,
        ("model_weights.safetensors",) * 2,
    ],
)
def test_weights_are_taken_once(names: str, taken: str) -> None:
    choice = without_memory(files("config.json", *names.split()))
    assert choice.files == ("config.json", taken)


def test_a_missing_quantization_is_made_of_safetensors() -> None:
    choice = without_memory(MANY + CHECKPOINT, quantization="q3km")
    assert choice.kind == "safetensors"
    assert choice.why == "no q3km among its GGUFs: converted from safetensors"
    assert without_memory(MANY + CHECKPOINT, quantization="q4km").kind == "gguf"
    assert without_memory(CHECKPOINT, quantization="q4km").why == ""
    assert "has no Q4_K_L" in why_not(MANY + CHECKPOINT, quantization="Q4_K_L")
    with pytest.raises(Refused, match="unknown quantization 'Q4_K_L'"):
        chosen(CHECKPOINT, quantization="Q4_K_L")
    assert "a projector goes with a GGUF" in why_not(CHECKPOINT, mmproj="x.gguf")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "it is empty"),
        ("README.md", "its files are 1 .md"),
        ("a.onnx b.onnx c.msgpack", "its files are 2 .onnx, 1 .msgpack"),
        ("openvino_model.bin openvino_model.xml", "neither GGUF nor safetensors"),
        ("config.json pytorch_model.bin", "a pickle can run code when it is read"),
        ("original/consolidated.00.pth", "a pickle can run code when it is read"),
        ("model.safetensors tokenizer.json", "it has no config.json"),
        ("config.json unet/model.safetensors", "as pipelines of several models have it"),
        ("adapter_config.json adapter_model.safetensors", "lora="),
        ("config.json consolidated.safetensors", "must be called model*.safetensors"),
        ("config.json model-00001-of-00003.safetensors", "of 3 parts number 2 is missing"),
        ("imatrix.gguf", "imatrix.gguf is an importance matrix"),
        ("mmproj.gguf pytorch_model.bin", "mmproj.gguf is a vision"),
    ],
)
def test_repositories_that_cannot_be_served(names: str, message: str) -> None:
    for quantization in ("", "q4_0"):
        assert message in why_not(files(*names.split()), quantization=quantization)


BAD_NAMES = (
    *("../x.gguf", "/x.gguf", "a/../x.gguf", "C:x.gguf", "a\\x.gguf", "x\0.gguf", "./x.gguf"),
    *("a//x.gguf", "aux.gguf", "NUL.gguf", "con/x.gguf", "a/lpt1.x.gguf", "COM¹.gguf"),
    *("x.gguf.", "a /x.gguf", ".x.gguf", ".git/x.gguf", "x\n.gguf", "\ud800.gguf", "x\u202e.gguf"),
    *("y" * 252 + ".gguf", ""),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_not_to_be_trusted(name: str) -> None:
    assert usable(files(name)) == []
    assert chosen(files(name, "a.gguf")).files == ("a.gguf",)


@pytest.mark.parametrize("size", [-1, 1 << 60, None, "1", 1.5, True])
def test_sizes_that_cannot_be(size: Any) -> None:
    assert usable([RemoteFile("a.gguf", size)]) == []


def test_names_that_are_one_on_some_disks() -> None:
    assert [file.name for file in usable(files("a.gguf", "A.gguf", "a.gguf"))] == ["a.gguf"]
    assert usable([RemoteFile("a", 1, "x"), RemoteFile("a", 1, "y")]) == []
    assert [file.name for file in usable(files("a/b", "A", "b"))] == ["a/b", "b"]


WORDS = ("m", "Q4_0", "Q8_0", "-00001-of-00002", "-00002-of-00002", "mmproj", "lora", "config")
NAMES = st.lists(st.sampled_from((*WORDS, "/", "-", "..", ".", "\\", "aux", "A", "a")), max_size=5)
ENDINGS = st.sampled_from((".gguf", ".safetensors", ".json", ".bin", ".GGUF", ""))
LISTED = st.builds("{}{}".format, NAMES.map("".join), ENDINGS)
FILES = st.builds(
    RemoteFile,
    LISTED | st.sampled_from([*BAD_NAMES, *(file.name for file in CHECKPOINT)]) | st.text(),
    st.integers(-1, 40) | st.integers() | st.none(),
)
REQUESTS = st.builds(
    Request,
    st.sampled_from(("", "", "q4_0", "q8_0", "q4_k_m", "[")),
    st.sampled_from(("", "", "")) | LISTED,
    st.sampled_from(("", "", "*Q4*", "[", "*")),
    st.sampled_from(("", "", "no", "mmproj.gguf")),
)


@settings(max_examples=300)
@given(st.lists(FILES, max_size=12), REQUESTS, st.integers(0, 60), st.sampled_from(Kind))
def test_whatever_is_listed_the_choice_is_safe(
    listing: list[RemoteFile], request: Request, memory: int, role: Kind
) -> None:
    asked = []
    fit = Fit(memory, lambda file: asked.append(file.name) or 7)  # type: ignore[func-returns-value]
    roles = (Kind.MODEL, Kind.DRAFT, Kind.ADAPTER)
    try:
        choice = choose(listing, request, fit, role=role if role in roles else Kind.MODEL)
    except LlamakeError:
        return
    finally:
        assert len(asked) <= 1
    names = [*choice.files, *([choice.mmproj] if choice.mmproj else [])]
    assert choice.files
    assert len({name.casefold() for name in names}) == len(names)
    assert set(names) <= {file.name for file in listing}
    for name in names:
        assert inside(Path("folder"), name) == Path("folder") / name
        assert not name.endswith((".bin", ".py"))
    assert choice.kind == "safetensors" or all(name.lower().endswith(".gguf") for name in names)
