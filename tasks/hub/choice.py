"""Which files of a repository answer a request: by name, by quantization, or by memory."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tasks.errors import ModelError, Refused
from tasks.hub.checkpoint import checkpoint_files, convertible
from tasks.hub.fit import Fit, best_fit, refuse_several_models
from tasks.hub.labels import match_rank, quantizable
from tasks.hub.listing import Candidate, Kind, candidates, incomplete, place, some, there_is, usable
from tasks.hub.manifest import Choice, RemoteFile, Request

_PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
"""llama.cpp's vision code is made for f16; below 8 bits images suffer."""

_POOLS = {
    Kind.MODEL: (Kind.MODEL, Kind.DRAFT),
    Kind.DRAFT: (Kind.DRAFT, Kind.MODEL),
    Kind.ADAPTER: (Kind.ADAPTER, Kind.MODEL),
}
"""By what is looked for: the kinds that will do; the second only where there is none of the
first, for names may mislead and there are repositories of draft models alone."""
_NEVER_BY_NAME = {
    Kind.MMPROJ: "it goes along with a model: mmproj=",
    Kind.IMATRIX: "it helps to quantize one: imatrix=",
    Kind.VOCABULARY: "it has no weights",
}


def choose(
    files: Iterable[RemoteFile],
    request: Request,
    fit: Fit,
    *,
    role: Kind = Kind.MODEL,
    repo: str = "the repository",
) -> Choice:
    """The files to download for a request; `role` is what they are for.

    Raises ModelError that lists what there is.
    """
    listing = usable(files)
    ggufs = candidates(listing)
    if request.filename:
        one = _named(ggufs, listing, request.filename, role, repo)
        return _of(one, _projector(ggufs, one, request, repo))
    pool = _pool(ggufs, role)
    if request.pattern:
        pool = _matching(pool, request.pattern, repo)
    if request.quantization:
        if not (answers := _asked(pool, request.quantization, repo)):
            return _converted(listing, ggufs, pool, request, role, repo)
        one, why = _one_of(answers, request.quantization, repo)
        return _of(one, _projector(ggufs, one, request, repo), why)
    if not pool:
        return _converted(listing, ggufs, pool, request, role, repo)
    whole = [each for each in pool if not each.missing]
    if not whole:
        raise incomplete(pool[0], repo)
    projectors = {each: _projector(ggufs, each, request, repo) for each in whole}
    one, why = best_fit(whole, projectors, fit, repo) if len(whole) > 1 else (whole[0], "")
    return _of(one, projectors[one], why)


def _of(one: Candidate, projector: Candidate | None, why: str = "") -> Choice:
    return Choice(
        "gguf",
        tuple(file.name for file in one.files),
        one.label.text if one.label else "",
        projector.name if projector else "",
        why,
    )


def _pool(ggufs: Sequence[Candidate], role: Kind) -> list[Candidate]:
    pools = ([each for each in ggufs if each.kind is kind] for kind in _POOLS[role])
    return next((pool for pool in pools if pool), [])


def _named(
    ggufs: Sequence[Candidate], listing: Sequence[RemoteFile], wanted: str, role: Kind, repo: str
) -> Candidate:
    """The GGUF of which `wanted` is a path or base name, any part of it."""
    one = _find(ggufs, wanted, "filename=", repo)
    if one is None:
        if any(file.name == wanted for file in listing):
            raise ModelError(
                f"'{wanted}' in {repo} is not a GGUF", fix="leave out filename=, or name a .gguf"
            )
        raise _no_file(ggufs, wanted, repo)
    if one.missing:
        raise incomplete(one, repo)
    # The other kinds are told by words that a model's name may have as well.
    if one.kind in _NEVER_BY_NAME:
        raise ModelError(
            f"'{wanted}' in {repo} is {one.kind.value}, not {role.value}", _NEVER_BY_NAME[one.kind]
        )
    return one


def _find(ggufs: Sequence[Candidate], wanted: str, setting: str, repo: str) -> Candidate | None:
    def names(one: Candidate) -> tuple[str, ...]:
        return (*(file.name for file in one.files), *one.missing)

    exact = [each for each in ggufs if wanted in names(each)]
    bases = [each for each in ggufs if wanted in {n.rpartition("/")[2] for n in names(each)}]
    found = exact or bases
    if len(found) > 1:
        raise ModelError(
            f"{repo} holds '{wanted}' more than once",
            some([each.name for each in found]),
            f"name the whole path with {setting}",
        )
    return found[0] if found else None


def _no_file(ggufs: Sequence[Candidate], wanted: str, repo: str) -> ModelError:
    names = {name: each.name for each in ggufs for name in (each.base, each.name)}
    near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.5)
    found = list(dict.fromkeys(names[name] for name in near))
    fix = f"did you mean {' or '.join(found)}?" if found else there_is(ggufs, by_name=True)
    return ModelError(f"{repo} holds no file '{wanted}'", fix=fix)


def _matching(pool: Sequence[Candidate], pattern: str, repo: str) -> list[Candidate]:
    def matches(name: str) -> bool:
        name, glob = name.lower(), pattern.lower()
        return fnmatchcase(name, glob) or fnmatchcase(name.rpartition("/")[2], glob)

    found = [each for each in pool if any(matches(file.name) for file in each.files)]
    if not found:
        raise ModelError(f"no GGUF in {repo} matches pattern={pattern}", fix=there_is(pool))
    return found


def _asked(pool: Sequence[Candidate], quantization: str, repo: str) -> list[Candidate]:
    """The files that answer a quantization best, the one to take first."""
    ranks = {
        each: rank
        for each in pool
        if each.label and (rank := match_rank(quantization, each.label)) is not None
    }
    best = min((rank for each, rank in ranks.items() if not each.missing), default=None)
    if best is None and ranks:
        raise incomplete(min(ranks, key=place), repo)
    return sorted((each for each in ranks if ranks[each] == best and not each.missing), key=place)


def _one_of(answers: Sequence[Candidate], asked: str, repo: str) -> tuple[Candidate, str]:
    refuse_several_models(answers, repo)
    one = answers[0]
    if len(answers) > 1:
        others = some([each.name for each in answers[1:]])
        return one, f"{one.name} and not {others}; filename= names another"
    assert one.label
    if one.label.flavour and match_rank(asked, one.label):
        return one, f"{one.label.text}: there is no plain {one.label.alias}"
    return one, ""


def _projector(
    ggufs: Sequence[Candidate], one: Candidate, request: Request, repo: str
) -> Candidate | None:
    """The mmproj to go with a model."""
    wanted = request.mmproj
    if wanted.lower() == "no" or one.kind is not Kind.MODEL:
        return None
    there = [each for each in ggufs if each.kind is Kind.MMPROJ and not each.missing]
    if wanted:
        if (found := _find(ggufs, wanted, "mmproj=", repo)) is None:
            raise _no_file(there or ggufs, wanted, repo)
        if found.missing:
            raise incomplete(found, repo)
        return found

    def order(each: Candidate) -> tuple[object, ...]:
        label = each.label.type if each.label else ""
        types = _PROJECTORS.index(label) if label in _PROJECTORS else len(_PROJECTORS)
        return (each.folder != one.folder, types, *place(each))

    return min(there, key=order, default=None)


def _converted(
    listing: Sequence[RemoteFile],
    ggufs: Sequence[Candidate],
    pool: Sequence[Candidate],
    request: Request,
    role: Kind,
    repo: str,
) -> Choice:
    """The safetensors to convert, where no GGUF answers; the error says what there is."""
    possible = not request.pattern and role is not Kind.ADAPTER
    asked = request.quantization
    if not (possible and convertible(listing)):
        if pool:
            raise _no_quantization(pool, asked, repo)
        if ggufs or not possible:
            raise _no_model(ggufs, role, repo)
    names = checkpoint_files(listing, repo)
    if request.mmproj and request.mmproj.lower() != "no":
        raise ModelError(
            f"mmproj={request.mmproj} does not go with {repo}",
            "it would be converted from safetensors, and a projector goes with a GGUF",
            "leave out mmproj=",
        )
    if not asked:
        return Choice("safetensors", names)
    try:
        quantizable(asked)
    except Refused as error:
        if pool:
            raise _no_quantization(pool, asked, repo) from error
        raise
    why = f"no {asked} among its GGUFs: converted from safetensors" if pool else ""
    return Choice("safetensors", names, why=why)


def _no_model(ggufs: Sequence[Candidate], role: Kind, repo: str) -> ModelError:
    what = f"{repo} does not hold {role.value} as GGUF"
    if not ggufs:
        return ModelError(what, fix="name a repository that holds one")
    fix = "name the repository of the model it belongs to"
    if ggufs[0].kind is Kind.ADAPTER:
        fix = "name it with lora=, and the model it was made for with model="
    return ModelError(what, f"{ggufs[0].name} is {ggufs[0].kind.value}", fix)


def _no_quantization(pool: Sequence[Candidate], asked: str, repo: str) -> ModelError:
    labels = {each.label.text.upper(): each.label.text for each in pool if each.label}
    near = difflib.get_close_matches(asked.upper().replace("-", "_"), list(labels), n=1)
    guess = f" (did you mean '{labels[near[0]]}'?)" if near else ""
    return ModelError(f"{repo} has no {asked}{guess}", fix=there_is(pool))
