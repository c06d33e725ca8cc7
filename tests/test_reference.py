"""References and labels: what a user writes, what a file's name says, when the two agree."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.errors import LlamakeError, ModelError, Refused
from tasks.hub.labels import family, label_of, match_rank, parse_label, quantizable
from tasks.hub.manifest import Request
from tasks.hub.reference import Reference, Url, combine, parse
from tasks.quantization import QUANTIZATIONS

HUB = "https://huggingface.co"
MIRROR = "mirror.local:8443"
PREFIXED = "mirror.local/hub"


@pytest.mark.parametrize(
    ("text", "quantization", "revision", "filename"),
    [
        ("org/name", "", "", ""),
        (" org/name\n", "", "", ""),
        ("org/name:Q5_K_M", "Q5_K_M", "", ""),
        ("org/name@v1.0", "", "v1.0", ""),
        ("org/name:q5-k-m@main", "q5-k-m", "main", ""),
        ("org/name@main:Q5_K_M", "Q5_K_M", "main", ""),
        ("org/name:Q4_0@refs/pr/3", "Q4_0", "refs/pr/3", ""),
        ("org/name@refs/pr/3:Q4_0", "Q4_0", "refs/pr/3", ""),
        ("org/name:sub.Q4_0.gguf", "", "", "sub.Q4_0.gguf"),
        ("hf:org/name:Q4_0", "Q4_0", "", ""),
        ("hf://org/name@main", "", "main", ""),
        ("HF://org/name/", "", "", ""),
        ("hf://org/name/a/b.gguf", "", "", "a/b.gguf"),
        ("hf://org/name@v1/a/b.gguf", "", "v1", "a/b.gguf"),
        ("hf://org/name@refs/pr/3/a/b.gguf", "", "refs/pr/3", "a/b.gguf"),
        ("hf.co/org/name:Q8_0", "Q8_0", "", ""),
        ("huggingface.co/org/name", "", "", ""),
        (f"{HUB}/org/name", "", "", ""),
        (f"{HUB}/org/name/?x=y#z", "", "", ""),
        (f"{HUB}/org/name/tree/main", "", "main", ""),
        (f"{HUB}/org/name/tree/refs%2Fpr%2F1/folder", "", "refs/pr/1", ""),
        (f"{HUB}/org/name/blob/main/a/b.gguf", "", "main", "a/b.gguf"),
        (f"{HUB}/org/name/resolve/v1/a%20b.gguf?download=true", "", "v1", "a b.gguf"),
        (f"{HUB}/org/name/resolve/refs/pr/1/b.gguf", "", "refs/pr/1", "b.gguf"),
        (f"{HUB}/org/name?show_file_info=a%2Fb.gguf", "", "", "a/b.gguf"),
        ("https://user:secret@hf.co/org/name", "", "", ""),
        (f"http://{MIRROR}/org/name/resolve/main/b.gguf", "", "main", "b.gguf"),
        (f"http://{PREFIXED}/org/name/blob/main/b.gguf", "", "main", "b.gguf"),
    ],
)
def test_references(text: str, quantization: str, revision: str, filename: str) -> None:
    expected = Reference("org/name", quantization, revision, filename)
    assert parse(text, [MIRROR, PREFIXED]) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("./x", "../x/y", "/org/name", "~/x/y", "~nobody/x/y", "C:\\x\\y", "C:/x/y", "a\\b"),
        *("x.gguf", "folder/x.gguf", "folder/x.safetensors", "a/b/c", "a/b/c.gguf"),
    ],
)
def test_what_can_only_be_a_path(text: str) -> None:
    assert parse(text) is None


def test_a_repository_may_have_a_files_name_where_it_must_be_one() -> None:
    assert parse("org/name.gguf", is_hub=True) == Reference("org/name.gguf")


@pytest.mark.parametrize(
    ("text", "name", "shown"),
    [
        ("https://example.com/a/b.gguf", "b.gguf", "https://example.com/a/b.gguf"),
        ("http://localhost:1/b.GGUF", "b.GGUF", "http://localhost:1/b.GGUF"),
        (
            "https://user:secret@example.com/a%20b.gguf?sign=secret#x",
            "a b.gguf",
            "https://example.com/a%20b.gguf",
        ),
        # A hub's name within another host's, or without its port, is no hub.
        (f"{HUB}.example.com/o/n/b.gguf", "b.gguf", f"{HUB}.example.com/o/n/b.gguf"),
        ("http://mirror.local/x/b.gguf", "b.gguf", "http://mirror.local/x/b.gguf"),
        ("http://mirror.local/hubs/b.gguf", "b.gguf", "http://mirror.local/hubs/b.gguf"),
    ],
)
def test_urls(text: str, name: str, shown: str) -> None:
    url = parse(text, [MIRROR, PREFIXED])
    assert isinstance(url, Url)
    assert (url.url, url.name, url.shown) == (text, name, shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("org/name:", "no quantization after its ':'"),
        ("org/name@", "no revision after its '@'"),
        ("org/name:@main", "no quantization"),
        ("org/name:Q4_0@", "no revision"),
        ("org/name:Q4_0:Q8_0", "':' or '@' twice"),
        ("org/name@a@b", "':' or '@' twice"),
        ("org//name", "did you mean 'org/name'?"),
        ("org/name/", "did you mean 'org/name'?"),
        ("org/name:Q4/x", "a revision comes after '@'"),
        ("org/name@../x", "no revision"),
        ("org/name@-x", "no revision"),
        ("org/na..me", "'na..me' must be of letters"),
        ("or--g/name", "'or--g' must be of letters"),
        ("org/-name", "'-name' must be of letters"),
        ("org/name.git", "nor end with '.git'"),
        ("örg/name", "'örg' must be of letters"),
        ("o/" + "n" * 95, "too long"),
        ("name:7b", "looks like a model of Ollama"),
        ("llama3.2:7b-instruct-q4_0", "looks like a model of Ollama"),
        ("s3://a/b", "unknown kind"),
        ("ollama://a", "unknown kind"),
        ("https://example.com/x", "its path does not end with .gguf"),
        ("https://[::1/x.gguf", "malformed"),
        (f"{HUB}/datasets/org/name", "it is of the hub's datasets"),
        ("hf://spaces/org/name", "it is of the hub's spaces"),
        (f"{HUB}/org/name/resolve/main/model.safetensors", "name org/name instead"),
        (f"{HUB}/org/../resolve/main/x.gguf", "must be of letters"),
    ],
)
def test_near_misses(text: str, message: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(text)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["name", "", "hf:name", "hf:", f"{HUB}/org", HUB + "/"])
def test_a_name_without_an_owner(text: str) -> None:
    with pytest.raises(ModelError, match="a repository has an owner: org/"):
        parse(text)


def test_no_secret_of_an_address_is_in_an_error() -> None:
    for text in ("https://u:secret@x.com/y?k=secret", "https://u:secret@hf.co/datasets/a/b"):
        with pytest.raises(Refused) as refused:
            parse(text)
        assert "secret" not in str(refused.value)


PIECES = ["org", "name", "/", ":", "@", "..", "hf:", "//", "Q4_0", ".gguf", HUB, "resolve", "%2F"]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8), st.booleans())
@example([HUB, "/org/name/resolve/%2F..%2F/x.gguf"], False)
def test_whatever_is_written_is_a_safe_reference_or_an_error(
    parts: list[str], is_hub: bool
) -> None:
    try:
        found = parse("".join(parts), is_hub=is_hub)
    except LlamakeError:
        return
    assert found is not None or not is_hub
    if isinstance(found, Reference):
        org, name = found.repo.split("/")
        assert org.strip(".-") and name.strip(".-")
        assert ".." not in found.repo + found.revision


@pytest.mark.parametrize(
    ("settings", "request_"),
    [
        ({}, Request("Q4_K_M")),
        ({"quantization": "q4_k_m"}, Request("Q4_K_M")),
        ({"quantization": "q4_k"}, Request("Q4_K_M")),
        ({"pattern": "*x*", "mmproj": "no"}, Request("Q4_K_M", "", "*x*", "no")),
        ({"filename": "x-Q4_K_M.gguf"}, Request("Q4_K_M", "x-Q4_K_M.gguf")),
        ({"filename": "x.gguf"}, Request("Q4_K_M", "x.gguf")),
    ],
)
def test_settings_beside_a_reference(settings: dict[str, str], request_: Request) -> None:
    wanted = combine(Reference("org/name", "Q4_K_M", "v1"), **settings)
    assert (wanted.repo, wanted.revision, wanted.request) == ("org/name", "v1", request_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "q8_0"}, "quantization=q8_0 contradicts 'org/name:Q4_K_M'"),
        ({"revision": "v2"}, "revision=v2 contradicts the reference to org/name"),
        ({"filename": "x-Q8_0.gguf"}, "quantization=Q4_K_M contradicts the file x-Q8_0.gguf"),
        ({"filename": "x.gguf", "pattern": "*"}, "pattern=* does not go with the file x.gguf"),
    ],
)
def test_contradictions(settings: dict[str, str], message: str) -> None:
    with pytest.raises(Refused) as refused:
        combine(Reference("org/name", "Q4_K_M", "v1"), **settings)
    assert message in str(refused.value)


def test_settings_alone() -> None:
    wanted = combine(Reference("org/name"), quantization="q8_0", revision="v2")
    assert (wanted.revision, wanted.request) == ("v2", Request("q8_0"))
    with pytest.raises(Refused, match="filename=b"):
        combine(Reference("org/name", filename="a"), filename="b")


@pytest.mark.parametrize(
    ("name", "text", "type_"),
    [
        ("Qwen3-8B-Q5_K_M.gguf", "Q5_K_M", "Q5_K_M"),
        ("model-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL", "Q4_K_XL"),
        ("phi-IQ4_XS", "IQ4_XS", "IQ4_XS"),
        ("x.q4_k_m.gguf", "q4_k_m", "Q4_K_M"),
        ("x-q4-k-m.GGUF", "q4-k-m", "Q4_K_M"),
        ("x-q4km.gguf", "q4km", "Q4_K_M"),
        ("Q8_0/Model-00001-of-00002.gguf", "Q8_0", "Q8_0"),
        ("a/UD-IQ2_XXS/b/Model.gguf", "UD-IQ2_XXS", "IQ2_XXS"),
        ("Q8_0/Model-Q4_0.gguf", "Q4_0", "Q4_0"),
        ("x-BF16.gguf", "BF16", "BF16"),
        ("x.fp16.gguf", "fp16", "F16"),
        ("x-f32.gguf", "f32", "F32"),
        ("x-MXFP4.gguf", "MXFP4", "MXFP4"),
        ("x-MXFP4_MOE.gguf", "MXFP4_MOE", "MXFP4_MOE"),
        ("TQ1_0.gguf", "TQ1_0", "TQ1_0"),
        ("x-Q6_K_L.gguf", "Q6_K_L", "Q6_K_L"),
        ("x-Q4_0_4_4.gguf", "Q4_0_4_4", "Q4_0_4_4"),
        ("x.i1-Q4_K_M.gguf", "i1-Q4_K_M", "Q4_K_M"),
        ("x-Q2_K_S.gguf", "Q2_K_S", "Q2_K_S"),
        ("x-IQ4_KS.gguf", "IQ4_KS", "IQ4_KS"),
        ("x-q8.gguf", "q8", "Q8"),
        ("x-f16-Q4_K_M.gguf", "Q4_K_M", "Q4_K_M"),
        ("x-Q4_K_M-f16.gguf", "Q4_K_M", "Q4_K_M"),
        ("x-Q4_0-4x7B.gguf", "Q4_0", "Q4_0"),
    ],
)
def test_labels_in_names(name: str, text: str, type_: str) -> None:
    label = label_of(name)
    assert label
    assert (label.text, label.type) == (text, type_)


@pytest.mark.parametrize("name", ["model.gguf", "Q.gguf", "xQ4_0.gguf", "Q40x.gguf", "Q9_0.gguf"])
def test_names_without_a_label(name: str) -> None:
    assert label_of(name) is None


def test_every_type_that_can_be_made_is_read_in_any_spelling() -> None:
    for name in QUANTIZATIONS:
        for text in (name, name.upper(), name.replace("_", "-"), name.replace("_", "")):
            assert quantizable(text) == name
            label = label_of(f"some-model-7B.{text}.gguf")
            assert label and label.type == name.upper()
    assert quantizable("fp16") == "f16"
    assert quantizable("Q4_K") == "q4_k_m"


@pytest.mark.parametrize("text", ["Q4_K_L", "UD-Q4_K_XL", "i1-q4_0", "many"])
def test_types_that_cannot_be_made(text: str) -> None:
    with pytest.raises(Refused, match="unknown quantization"):
        quantizable(text)


@pytest.mark.parametrize(
    ("asked", "best_first"),
    [
        ("q4_k_m", ("Q4_K_M", "i1-Q4_K_M", "UD-Q4_K_M", "Q4_K", "i1-Q4_K")),
        ("ud-q4km", ("UD-Q4_K_M", "Q4_K_M")),
        ("Q4.K", ("Q4_K", "Q4_K_M")),
        ("q4-k-xl", ("UD-Q4_K_XL",)),
        ("fp16", ("f16",)),
        ("mxfp4", ("MXFP4", "MXFP4_MOE")),
        ("q8", ("Q8_0",)),
    ],
)
def test_how_well_labels_answer(asked: str, best_first: tuple[str, ...]) -> None:
    others = [parse_label(text) for text in ("Q4_K_S", "Q4_0", "BF16", "Q8_K_XL", "IQ4_NL")]
    ranks = [match_rank(asked, label) for text in best_first if (label := parse_label(text))]
    assert [rank for rank in ranks if rank is not None] == ranks
    assert len(set(ranks)) == len(best_first)
    assert sorted(ranks, key=lambda rank: rank or 0) == ranks
    assert {match_rank(asked, label) for label in others if label} == {None}


def test_families_are_names_without_labels() -> None:
    names = ("a/Phi-4-Q4_K_M.gguf", "phi-4.i1-Q8_0-00001-of-00002.gguf", "Q4_0/phi_4.gguf")
    assert {family(name) for name in names} == {"phi-4"}
    assert family("phi-4-mini-Q4_0.gguf") == "phi-4-mini"
