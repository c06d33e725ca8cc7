"""A model on a hub: resolved once, downloaded once, and asked for again only where one says so."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from hub import Hub
from hub_project import README, REPO, HubProject, online, ran, value_of

from tasks.files import sha256_of

__all__ = ["online"]

MODEL = f"model={REPO}"
TERA = 10**12


# --- once


def test_second_run_asks_nothing_and_does_nothing(online: HubProject) -> None:
    files = online.quantizations("Q4_K_M", "Q8_0")
    online.upload({**files, **README})
    assert ran(online.doit("prepare", MODEL)) == {"download"}
    name = "name-Q8_0.gguf"
    assert {Path(path).name: content for path, content in online.there().items()} == {
        name: files[name]
    }
    # Once for its header, to choose; once for good.
    assert online.hub.bytes_sent == 2 * len(files[name])
    assert len(online.hub.asked("api")) == 1
    before = online.files()
    with online.silence():
        again = online.doit("prepare", MODEL)
        assert {status for status, _ in online.rows(MODEL, "download").values()} == {"fresh"}
    assert not ran(again)
    assert re.search(r"^download +fresh$", again, re.MULTILINE)
    assert online.files() == before


def test_what_is_there_needs_no_network(online: HubProject) -> None:
    online.upload({**online.quantizations("Q4_K_M"), **README})
    online.doit("prepare", MODEL)
    model = str(online.place() / "name-Q4_K_M.gguf")

    def works(*words: str) -> None:
        rows = online.rows(MODEL, *words)
        assert {status for name, (status, _) in rows.items() if name != "serve"} == {"fresh"}
        assert rows["serve"][1] == f"starts {model}"
        assert value_of(online.served(MODEL, *words), "--model") == model

    with online.silence():
        works("offline=yes")
        online.env["HF_HUB_OFFLINE"] = "1"
        works()
        del online.env["HF_HUB_OFFLINE"]
    online.hub.stop()
    works()
    assert not ran(online.doit("prepare", MODEL))


def test_unknown_without_a_network(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    with online.silence():
        for env in ({"HF_HUB_OFFLINE": "1"}, {"LLAMA_SERVER_OFFLINE": "yes"}):
            said = online.doit("prepare", MODEL, status=14, env=env)
            assert "org/name was never looked up on the hub" in said
    online.hub.stop()
    for words in ((MODEL,), (MODEL, "offline=yes")):
        rows = online.rows(*words)
        for step in ("download", "convert", "quantize"):
            status, why = rows[f"{step}:org__name"]
            assert status == "unresolved"
            assert why
    assert not online.models.exists()


def test_download_that_is_not_there_says_so_where_offline(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    online.doit("prepare", MODEL)
    (online.place() / "name-Q4_K_M.gguf").unlink()
    with online.silence():
        said = online.doit("prepare", MODEL, "offline=yes", status=14)
    assert "name-Q4_K_M.gguf of org/name is not on this machine" in said


def test_what_needs_no_model_asks_nothing(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    with online.silence():
        assert not ran(online.doit("vendor", "build", "converter", MODEL))
        online.doit("settings", MODEL)
        assert online.doit("forget", MODEL).startswith("nothing to forget")
    assert not online.models.exists()
    online.doit("prepare", MODEL)
    step = f"download:{online.place().name}"
    with online.silence():
        assert str(online.place() / "name-Q4_K_M.gguf") in online.doit("info", step, MODEL)
        assert online.doit("forget", MODEL) == f"forgot {step}\n"
        assert online.rows("all=yes")[step] == ("pending", "forgotten")


def test_list_shows_what_is_there_but_writes_nothing(online: HubProject) -> None:
    files = online.quantizations("Q4_K_M", "Q5_K_M")
    commit = online.upload(files)
    step = f"org__name__{commit[:12]}"
    for _ in range(2):
        rows = online.rows(MODEL)
        assert rows[f"download:{step}"] == ("pending", "not downloaded: 6.2 kB")
        assert rows["serve"][1] == f"starts {online.place() / 'name-Q5_K_M.gguf'}"
        assert not online.models.exists()
    status, why = online.rows(f"{MODEL}:q2_k")["download:org__name"]
    assert status == "unresolved"
    assert why.startswith("org/name has no q2_k")


def test_manifest_says_what_was_listed(online: HubProject) -> None:
    files = online.quantizations("Q4_K_M", "Q8_0")
    commit = online.upload({**files, **README})
    online.doit("prepare", MODEL)
    manifest = online.manifest()
    assert (manifest["repo"], manifest["commit"]) == (REPO, commit)
    assert {entry["name"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]} == {
        **{name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()},
        "README.md": (len(README["README.md"]), ""),
    }
    assert manifest["choices"]["main"]["files"] == ["name-Q8_0.gguf"]
    state = online.state("org__name")
    assert state["source"] == {"type": "hub", "reference": REPO, "revision": commit}
    (record,) = state["steps"].values()
    noted = record["outputs"]["name-Q8_0.gguf"]
    assert noted["sha256"] == sha256_of(online.place() / "name-Q8_0.gguf")


# --- refresh


def test_moved_revision_changes_nothing_until_refresh(online: HubProject) -> None:
    old = online.upload({"x.gguf": online.content("old")})
    online.doit("prepare", MODEL)
    new = online.upload({"x.gguf": online.content("new")})
    with online.silence():
        assert not ran(online.doit("prepare", MODEL))
        assert online.rows(MODEL)["serve"][1] == f"starts {online.place(commit=old) / 'x.gguf'}"
    online.hub.reset()
    assert ran(online.doit("prepare", MODEL, "refresh=yes")) == {"download"}
    assert len(online.hub.asked("api")) == 1
    with online.silence():
        assert not ran(online.doit("prepare", MODEL))
        assert online.rows(MODEL)["serve"][1] == f"starts {online.place(commit=new) / 'x.gguf'}"
    assert {place.name for place in (online.models / "gguf").iterdir() if place.is_dir()} == {
        f"org__name__{commit[:12]}" for commit in (old, new)
    }


def test_refresh_redoes_nothing_where_nothing_that_is_used_changed(online: HubProject) -> None:
    files = online.safetensors()
    online.upload({**files, **README})
    online.doit("prepare", MODEL)
    before = online.files()
    for readme in (README["README.md"], b"# read me again"):
        online.upload({**files, "README.md": readme})
        online.hub.reset()
        assert not ran(online.doit("prepare", MODEL, "refresh=yes"))
        assert [record.kind for record in online.hub.requests] == ["api"]
    assert online.files() == before
    with online.silence():
        assert not ran(online.doit("prepare", MODEL))


def test_refresh_downloads_only_the_file_that_changed(online: HubProject) -> None:
    names = [f"name-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
    first = {name: online.content(name) for name in names}
    online.upload(first)
    online.doit("prepare", MODEL)
    second = {**first, names[1]: online.content("changed")}
    online.upload(second)
    online.hub.reset()
    assert ran(online.doit("prepare", MODEL, "refresh=yes")) == {"download"}
    assert online.fetched() == {names[1]}
    assert online.hub.bytes_sent == len(second[names[1]])
    for name, content in second.items():
        assert (online.place() / name).read_bytes() == content


def test_refresh_converts_what_changed(online: HubProject) -> None:
    files = online.safetensors()
    online.upload(files)
    online.doit("prepare", MODEL)
    online.upload({**files, **online.safetensors(**{"tiny.note": "changed"})})
    online.hub.reset()
    again = online.doit("prepare", MODEL, "refresh=yes")
    assert ran(again) == {"download", "convert", "quantize"}
    assert online.fetched() == {"config.json"}
    with online.silence():
        assert not ran(online.doit("prepare", MODEL))


# --- a choice once made


def test_choice_stays_when_there_is_less_memory(online: HubProject) -> None:
    """Less for the weights: a context that no machine has room for."""
    online.upload({f"{label}.gguf": online.content(label, 100) for label in ("Q4_K_M", "Q8_0")})
    huge = f"ctx-size={1 << 27}"
    said = online.doit("prepare", MODEL, huge, status=14)
    assert "nothing in org/name fits the memory" in said
    online.doit("prepare", MODEL)
    with online.silence():
        assert not ran(online.doit("prepare", MODEL, huge))
        rows = online.rows(MODEL, huge)
    assert rows["serve"][1] == f"starts {online.place() / 'Q8_0.gguf'}"
    online.hub.reset()
    assert not ran(online.doit("prepare", MODEL, huge, "refresh=yes"))
    assert [record.kind for record in online.hub.requests] == ["api"]


def test_choice_stays_when_a_better_file_appears(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    online.doit("prepare", MODEL)
    old = online.place()
    online.upload(online.quantizations("Q4_K_M", "Q8_0"))
    online.hub.reset()
    assert not ran(online.doit("prepare", MODEL, "refresh=yes"))
    assert online.hub.bytes_sent == 0
    changed = {"name-Q4_K_M.gguf": online.content("changed")}
    online.upload({**online.quantizations("Q8_0"), **changed})
    assert ran(online.doit("prepare", f"{MODEL}:q8_0", "refresh=yes")) == {"download"}
    assert {path.name for path in online.place().glob("*.gguf")} == {"name-Q8_0.gguf"}
    with online.silence():
        assert online.rows(MODEL)["serve"][1] == f"starts {old / 'name-Q4_K_M.gguf'}"


def test_conversion_stays_when_ggufs_appear(online: HubProject) -> None:
    files = online.safetensors()
    online.upload(files)
    online.doit("prepare", MODEL)
    online.upload({**files, **online.quantizations("Q4_K_M", "Q8_0")})
    assert not ran(online.doit("prepare", MODEL, "refresh=yes"))
    changed = {**files, **online.safetensors(**{"tiny.note": "changed"})}
    online.upload({**changed, **online.quantizations("Q4_K_M", "Q8_0")})
    steps = {"download", "convert", "quantize"}
    assert ran(online.doit("prepare", MODEL, "refresh=yes")) == steps


def test_line_says_why(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M", "Q5_K_M", "Q8_0"))
    large = online.hub.fault("size", where="api", name="*Q8_0.gguf", to=100 * TERA)
    said = online.doit("prepare", MODEL)
    line = r"^model +Q5_K_M: 6\.2 kB \+ \d+\.\d MB context fits \d+\.\d [MG]B; Q8_0 would not$"
    assert re.search(line, said, re.MULTILINE)
    assert set(online.there()) == {
        str((online.place() / "name-Q5_K_M.gguf").relative_to(online.models))
    }
    large.clear()
    online.hub.fault("size", where="api", name="*.gguf", to=100 * TERA)
    elsewhere = f"models-dir={online.folder / 'elsewhere'}"
    said = online.doit("prepare", MODEL, elsewhere, status=14)
    assert "nothing in org/name fits the memory" in said
    assert "name one with quantization=" in said
    assert not (online.folder / "elsewhere").exists()


# --- revisions


def test_revisions_stay_side_by_side(online: HubProject) -> None:
    old = online.upload({"x.gguf": online.content("old")}, refs={"v1.0": ""})
    new = online.upload({"x.gguf": online.content("new")})
    wanted = {
        MODEL: new,
        f"{MODEL}@v1.0": old,
        f"{MODEL}@{old}": old,
        f"{MODEL}@{new}": new,
    }
    for word, commit in wanted.items():
        online.doit("prepare", word)
        assert (online.place(commit=commit) / "x.gguf").exists()
    assert len(online.hub.asked("api")) == 2, "a commit that is known is asked for no more"
    assert online.hub.bytes_sent == 2 * len(online.content(""))
    online.upload({"x.gguf": online.content("newer")}, revision="v1.0")
    with online.silence():
        for words in (*((word,) for word in wanted), (MODEL, "revision=v1.0")):
            assert not ran(online.doit("prepare", *words))
        rows = online.rows(f"{MODEL}@v1.0")
    assert rows["serve"][1] == f"starts {online.place(commit=old) / 'x.gguf'}"


def test_unknown_revision(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    said = online.doit("prepare", f"{MODEL}@v2", status=14)
    assert "org/name has no revision 'v2'" in said
    assert not online.models.exists()


# --- what was asked for


@pytest.fixture
def several(online: HubProject) -> HubProject:
    """Three types in `org/name`, the second one downloaded."""
    online.upload({**online.quantizations("Q4_K_M", "Q5_K_M", "Q8_0"), **README})
    online.doit("prepare", f"{MODEL}:Q5_K_M")
    return online


def test_ways_to_name_a_file(several: HubProject) -> None:
    page = f"{several.hub.endpoint}/{REPO}"
    with several.silence():
        for words in (
            (f"{MODEL}:q5_k_m",),
            (f"{MODEL}:Q5-K-M",),
            (f"{MODEL}:q5km@main",),
            (f"hf-model={REPO}:Q5_K_M",),
            (MODEL, "quantization=q5_K_m"),
            (MODEL, "filename=name-Q5_K_M.gguf"),
            (MODEL, "pattern=*q5*"),
            (f"model={page}", "quantization=Q5_K_M"),
            (f"model={page}/blob/main/name-Q5_K_M.gguf",),
            (f"model={page}/resolve/main/name-Q5_K_M.gguf?download=true",),
        ):
            rows = several.rows(*words)
            assert rows["serve"][1] == f"starts {several.place() / 'name-Q5_K_M.gguf'}", words


def test_same_file_by_another_name_is_not_downloaded_again(several: HubProject) -> None:
    with several.silence():
        for words in ((MODEL, "pattern=*q5*"), ("model=org/name:q5km",)):
            assert not ran(several.doit("prepare", *words))


_THERE_IS = "there is Q4_K_M (6.2 kB), Q5_K_M (6.2 kB), Q8_0 (6.2 kB)"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["model=org/name:q2_k"], f"org/name has no q2_k; {_THERE_IS}"),
        (["model=org/name", "quantization=q2_k"], f"org/name has no q2_k; {_THERE_IS}"),
        (
            ["model=org/name", "pattern=*q6*"],
            f"no GGUF in org/name matches pattern=*q6*; {_THERE_IS}",
        ),
        (
            ["model=org/name", "filename=name-Q8_1.gguf"],
            "org/name holds no file 'name-Q8_1.gguf'; did you mean name-Q8_0.gguf",
        ),
        (
            ["model=org/name", "filename=README.md"],
            "'README.md' in org/name is not a GGUF; leave out filename=",
        ),
    ],
)
def test_what_is_not_there(several: HubProject, words: list[str], what: str) -> None:
    with several.silence():
        said = several.doit("prepare", *words, status=14)
    for part in what.split("; "):
        assert part in said


@pytest.mark.parametrize(
    "words",
    [
        ["model=org/name:q5_k_m", "quantization=q4_k_m"],
        ["model=org/name@v1", "revision=v2"],
        ["model=org/name", "filename=name-Q4_K_M.gguf", "pattern=*"],
        ["model=org/name", "filename=name-Q4_K_M.gguf", "quantization=q5_k_m"],
        ["model=org/name", "hf-model=org/name"],
        ["model=org/name", f"sha256={'0' * 64}"],
        ["model=org/name:q5_k_m:q4_k_m"],
    ],
)
def test_contradictions_are_refused_before_anything_is_asked(
    online: HubProject, words: list[str]
) -> None:
    with online.silence():
        assert online.doit("prepare", *words, status=3).startswith("ERROR: ")


@pytest.mark.parametrize(
    ("words", "variable", "value"),
    [
        (["filename=name-Q8_0.gguf"], "QUANTIZATION", "q4_k_m"),
        (["filename=name-Q8_0.gguf"], "PATTERN", "*Q4*"),
        (["quantization=q8_0"], "FILENAME", "name-Q4_K_M.gguf"),
    ],
)
def test_command_line_wins_over_the_environment(
    several: HubProject, words: list[str], variable: str, value: str
) -> None:
    env = {f"LLAMA_SERVER_{variable}": value}
    said = several.doit("list", MODEL, *words, env=env)
    assert said.splitlines()[-1].endswith("/name-Q8_0.gguf")


def test_local_path_wins_and_says_so(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"))
    folder = online.checkpoint(REPO)
    with online.silence():
        said = online.doit("prepare", MODEL)
    assert f"{folder} is a local folder: it is taken, not org/name on the hub" in said
    assert ran(said) == {"convert", "quantize"}
    assert ran(online.doit("prepare", f"hf-model={REPO}")) == {"download"}


# --- an address outside of any hub


def test_address(online: HubProject) -> None:
    content = online.content("web")
    (online.folder / "some model.gguf").write_bytes(content)
    with Hub() as web:
        word = f"model={web.file(online.folder / 'some model.gguf')}"
        with online.silence():
            assert ran(online.doit("prepare", word)) == {"download"}
            assert web.bytes_sent <= len(content) + 4
            web.reset()
            assert not ran(online.doit("prepare", word))
            assert not web.requests
    (path,) = online.models.glob("gguf/*/*.gguf")
    assert path.name == "some model.gguf"
    assert path.read_bytes() == content
    assert value_of(online.served(word), "--model") == str(path)


def test_address_with_a_checksum(online: HubProject) -> None:
    content = online.content("web")
    (online.folder / "x.gguf").write_bytes(content)
    right, wrong = hashlib.sha256(content).hexdigest(), "0" * 64
    with Hub() as web:
        word = f"model={web.file(online.folder / 'x.gguf')}"
        said = online.doit("prepare", word, f"sha256={wrong}", status=14)
        assert f"its checksum is {right[:12]}…, not {wrong[:12]}…" in said
        assert not [*online.models.glob("gguf/*/*.gguf")]
        (kept,) = online.models.glob("gguf/*/*.mismatch")
        assert kept.read_bytes() == content
        assert ran(online.doit("prepare", word, f"sha256={right}")) == {"download"}
        web.reset()
        for words in ((word,), (word, f"sha256={right}")):
            assert not ran(online.doit("prepare", *words))
        assert not web.requests
    (path,) = online.models.glob("gguf/*/*.gguf")
    assert path.read_bytes() == content


def test_address_by_the_id_of_its_model(online: HubProject) -> None:
    (online.folder / "x.gguf").write_bytes(online.content("web"))
    with Hub() as web, online.silence():
        online.doit("prepare", f"model={web.file(online.folder / 'x.gguf')}")
        (path,) = online.models.glob("gguf/*/*.gguf")
        path.unlink()
        assert ran(online.doit(f"download:{path.parent.name}")) == {"download"}
    assert path.read_bytes() == online.content("web")


def test_address_with_another_query(online: HubProject) -> None:
    """It may be another file, or the same one by another signature."""
    file = online.folder / "x.gguf"
    file.write_bytes(online.content("one"))
    with Hub() as web:
        word = f"model={web.file(file)}?"
        assert ran(online.doit("prepare", f"{word}id=1")) == {"download"}
        assert not ran(online.doit("prepare", f"{word}id=2"))
        other = online.folder / "other.gguf"
        other.write_bytes(online.content("two"))
        web.file(other, "x.gguf")
        assert ran(online.doit("prepare", f"{word}id=3")) == {"download"}
    (path,) = online.models.glob("gguf/*/*.gguf")
    assert path.read_bytes() == online.content("two")
