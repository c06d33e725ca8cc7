"""What lies on the disk of a model from a hub: lost, damaged, edited, moved; and hostile names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from graph import flip_byte
from hub_project import README, REPO, HubProject, online, ran

__all__ = ["online"]

MODEL = f"model={REPO}"
NAME = "name-Q4_K_M.gguf"


@pytest.fixture
def single(online: HubProject) -> HubProject:
    """A project with the only file of `org/name` downloaded, its hub's counters at nothing."""
    online.upload({**online.quantizations("Q4_K_M"), **README})
    online.doit("prepare", MODEL)
    online.hub.reset()
    return online


@pytest.mark.parametrize(
    ("names", "content"),
    [
        ([".state.json"], None),
        ([".hub.json"], None),
        ([".state.json", ".hub.json"], None),
        ([".state.json", ".hub.json"], "{"),
    ],
)
def test_lost_or_damaged_notes_cost_no_download(
    single: HubProject, names: list[str], content: str | None
) -> None:
    before = single.files()
    for name in names:
        path = single.place() / name
        path.unlink()
        if content is not None:
            path.write_text(content)
    said = single.doit("prepare", MODEL)
    assert ran(said) == ({"download"} if ".state.json" in names else set())
    assert len(single.hub.asked("api")) == (".hub.json" in names)
    assert single.hub.bytes_sent == 0
    assert single.files() == before
    with single.silence():
        assert not ran(single.doit("prepare", MODEL))


def test_files_of_a_lost_manifest_are_recognized_at_another_commit(single: HubProject) -> None:
    (single.place() / ".hub.json").unlink()
    single.upload({**single.quantizations("Q4_K_M"), "new.txt": b"new"})
    said = single.doit("prepare", MODEL)
    assert f"{NAME} was there already: " in said
    assert single.hub.bytes_sent == 0


def test_a_repository_has_one_folder_whatever_its_case(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M"), repo="Org/Name-GGUF")
    online.doit("prepare", "model=org/name-gguf")
    assert online.place("Org/Name-GGUF").is_dir()
    with online.silence():
        assert not ran(online.doit("prepare", "model=ORG/Name-GGUF"))
    assert len(list(online.models.glob("gguf/*/"))) == 1


def test_a_file_that_another_repository_has_too_is_not_downloaded(single: HubProject) -> None:
    content = (single.place() / NAME).read_bytes()
    single.upload({"copy-Q4_K_M.gguf": content}, repo="other/copy")
    said = single.doit("prepare", "model=other/copy")
    assert f"copy-Q4_K_M.gguf was there already: {single.place() / NAME}" in said
    assert single.hub.bytes_sent == 0
    assert (single.place("other/copy") / "copy-Q4_K_M.gguf").read_bytes() == content


@pytest.mark.parametrize("damaged", [False, True])
def test_what_the_hugging_face_cache_holds_is_not_downloaded(
    online: HubProject, damaged: bool
) -> None:
    online.upload({**online.quantizations("Q4_K_M"), **README})
    code = "import sys, huggingface_hub; print(huggingface_hub.hf_hub_download(*sys.argv[1:]))"
    argv = [sys.executable, "-c", code, REPO, NAME]
    done = subprocess.run(argv, env=online.env, check=True, stdout=subprocess.PIPE, text=True)
    blob = Path(done.stdout.strip()).resolve()
    right = blob.read_bytes()
    if damaged:
        flip_byte(blob)
    before = blob.read_bytes()
    online.hub.reset()
    said = online.doit("prepare", MODEL)
    assert (f"{NAME} was there already: {blob}" in said) == (not damaged)
    assert online.hub.bytes_sent == (len(right) if damaged else 0)
    assert (online.place() / NAME).read_bytes() == right
    assert blob.read_bytes() == before


def test_models_copied_elsewhere_are_taken_as_they_are(single: HubProject) -> None:
    elsewhere = single.folder / "elsewhere"
    shutil.copytree(single.models, elsewhere, copy_function=shutil.copyfile)
    shutil.rmtree(single.models)
    with single.silence():
        assert not ran(single.doit("prepare", MODEL, f"models-dir={elsewhere}"))
        rows = single.rows(MODEL, f"models-dir={elsewhere}")
    assert rows["serve"][1] == f"starts {elsewhere / 'gguf' / single.place().name / NAME}"


def test_forgotten_download_is_downloaded_again_once(single: HubProject) -> None:
    single.doit("forget", "download", MODEL)
    assert ran(single.doit("prepare", MODEL)) == {"download"}
    assert single.hub.bytes_sent == len(single.content(""))
    with single.silence():
        assert not ran(single.doit("prepare", MODEL))


def test_all_forgets_every_download_of_a_model(online: HubProject) -> None:
    online.upload(online.quantizations("Q4_K_M", "Q8_0"))
    references = ("model=org/name:q4_k_m", "model=org/name:q8_0")
    for word in references:
        online.doit("prepare", word)
    online.doit("forget", "all=yes")
    step = f"download:{online.place().name}"
    assert [online.rows(word)[step] for word in references] == [("pending", "forgotten")] * 2


def test_edited_file_is_kept_aside_and_fetched_anew(single: HubProject) -> None:
    path = single.place() / NAME
    right = path.read_bytes()
    flip_byte(path)
    edited = path.read_bytes()
    step = f"download:{single.place().name}"
    assert single.rows(MODEL)[step] == ("pending", f"{NAME} was changed")
    said = single.doit("prepare", MODEL)
    (aside,) = [each for each in path.parent.iterdir() if each.name.startswith(f"{NAME}.")]
    assert aside.name in said
    assert aside.read_bytes() == edited
    assert path.read_bytes() == right
    assert single.hub.bytes_sent == len(right)


def test_missing_file_alone_is_fetched_anew(online: HubProject) -> None:
    names = [f"x-0000{number}-of-00002.gguf" for number in (1, 2)]
    online.upload({name: online.content(name) for name in names})
    online.doit("prepare", MODEL)
    (online.place() / names[1]).unlink()
    online.hub.reset()
    assert ran(online.doit("prepare", MODEL)) == {"download"}
    assert online.fetched() == {names[1]}


def test_steps_of_a_checkpoint_follow_its_download(online: HubProject) -> None:
    online.upload(online.safetensors())
    online.doit("prepare", MODEL)
    made = online.there()
    online.hub.reset()
    assert ran(online.doit("prepare", MODEL, "quantization=q8_0")) == {"quantize"}
    assert online.there().items() > made.items()
    with online.silence():
        for words in ((), ("quantization=q8_0",)):
            assert not ran(online.doit("prepare", MODEL, *words))
    assert not online.hub.bytes_sent
    online.doit("forget", "download", MODEL)
    model = online.place().name
    rows = online.rows(MODEL)
    assert rows[f"download:{model}"] == ("pending", "forgotten")
    assert rows[f"convert:{model}"] == ("pending", "after download")
    assert rows[f"quantize:{model}"] == ("pending", "after convert")
    assert ran(online.doit("prepare", MODEL)) == {"download", "convert", "quantize"}


# --- hostile names


def test_long_names(online: HubProject) -> None:
    """As they are in use: a repository's name again in a folder's and in each file's."""
    name = "Some-Merge-of-Models-8X3B-MOE-Champion-Instruct-uncensored-abliterated-18.4B"
    repo = f"mergers/{name}"
    names = {f"{name}/{name}.i1-Q4_K_M.gguf", f"{name}.mmproj-F16.gguf"}
    online.upload({each: online.content(each) for each in names}, repo)
    assert ran(online.doit("prepare", f"model={repo}")) == {"download"}
    assert online.fetched() == names


def tree(folder: Path, left_out: Path) -> dict[str, bytes | str]:
    """Everything below a folder but for what is in another: content, or where a link leads."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if left_out not in path.parents and (path.is_symlink() or path.is_file())
        if not path.name.startswith(".run-") and path.suffix != ".lock"
    }


def hostile(project: HubProject) -> list[str]:
    """Names of files that no repository may have, each of them a GGUF."""
    outside = project.folder / "absolute-Q8_0.gguf"
    return [
        "../evil-Q8_0.gguf",
        "../../../evil-Q8_0.gguf",
        "Q8_0/../../evil-Q8_0.gguf",
        "..\\evil-Q8_0.gguf",
        str(outside),
        f"/{outside}",
        "C:\\evil-Q8_0.gguf",
        "C:evil-Q8_0.gguf",
        "aux.gguf",
        "Q8_0/con.Q8_0.gguf",
        "evil\0-Q8_0.gguf",
        "evil\n-Q8_0.gguf",
        ".hub.json",
        ".state.json",
        ".hidden-Q8_0.gguf",
        "../mmproj-F16.gguf",
        "../evil-Q8_0-00001-of-00002.gguf",
        "../evil-Q8_0-00002-of-00002.gguf",
        "evil-Q8_0.gguf/../../../evil-Q8_0.gguf",
    ]


def test_hostile_names_write_nothing_outside(online: HubProject) -> None:
    evil = {name: online.content(name) for name in hostile(online)}
    good = {NAME: online.content("good")}
    online.upload(good, extra=evil)
    before = tree(online.folder, online.place())
    argv = online.served(MODEL)
    assert argv[argv.index("--model") + 1] == str(online.place() / NAME)
    assert "--mmproj" not in argv
    logs = {str(path): path.read_bytes() for path in online.logs.iterdir()}
    assert tree(online.folder, online.place()) == {**before, **logs}
    assert {path.name: data for path, data in contents(online.place()).items()} == good
    assert online.fetched() == {NAME}
    with online.silence():  # Nor do they make the notes unreadable.
        assert not ran(online.doit("prepare", MODEL))


def contents(folder: Path) -> dict[Path, bytes]:
    """Files of a folder that are not llamake's own notes."""
    own = (".hub.json", ".state.json")
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in own and path.suffix != ".lock"
    }


def test_hostile_names_alone_are_no_model(online: HubProject) -> None:
    evil = {name: online.content(name) for name in hostile(online)}
    online.upload({}, extra=evil)
    before = tree(online.folder, online.place())
    for words in ((), ("filename=../evil-Q8_0.gguf",), ("pattern=*evil*",)):
        online.doit("prepare", MODEL, *words, status=14)
    assert tree(online.folder, online.place()) == before
    assert not online.fetched()


def test_hostile_names_of_a_checkpoint(online: HubProject) -> None:
    evil = [
        "../tokenizer.json",
        "../config.json",
        "../model.safetensors",
        "../x/config.json",
        str(online.folder / "vocab.json"),
    ]
    online.upload(online.safetensors(), extra=dict.fromkeys(evil, b"{}"))
    places = (online.place(), online.place(kind="safetensors"))
    online.doit("prepare", MODEL)
    found = [path for path in (online.models).rglob("*") if path.is_file()]
    assert not [
        path
        for path in found
        if not path.is_relative_to(places[0])
        and not path.is_relative_to(places[1])
        and path.suffix != ".lock"
    ]
    assert online.fetched() == {"config.json", "tokenizer.json", "model.safetensors"}


def test_edited_manifest_leads_nowhere(single: HubProject) -> None:
    """A hub's answer that came to the disk otherwise is judged as well."""
    path = single.place() / ".hub.json"
    path.write_text(path.read_text().replace(NAME, "../evil.gguf"))
    before = tree(single.folder, single.place())
    assert not ran(single.doit("prepare", MODEL))
    assert tree(single.folder, single.place()) == before


@pytest.mark.parametrize("victim", ["there", "dangling"])
def test_link_in_the_folder_is_not_written_through(online: HubProject, victim: str) -> None:
    outside = online.folder / "outside"
    outside.mkdir()
    if victim == "there":
        (outside / "victim").write_text("mine")
    online.upload({NAME: online.content("good"), "sub/x-Q2_K.gguf": online.content("sub")})
    online.place().mkdir(parents=True)
    (online.place() / NAME).symlink_to(outside / "victim")
    before = tree(online.folder, online.place())
    assert ran(online.doit("prepare", f"{MODEL}:q4_k_m")) == {"download"}
    assert tree(online.folder, online.place()) == before
    assert (online.place() / NAME).read_bytes() == online.content("good")
    assert not (online.place() / NAME).is_symlink()


def test_linked_subfolder_is_not_written_through(online: HubProject) -> None:
    outside = online.folder / "outside"
    outside.mkdir()
    online.upload({"sub/x-Q2_K.gguf": online.content("sub")})
    online.place().mkdir(parents=True)
    (online.place() / "sub").symlink_to(outside)
    said = online.doit("prepare", MODEL, status=14)
    assert f"{online.place() / 'sub'} leads out of the model's folder" in said
    assert not [*outside.iterdir()]
