"""The best quantization that fits the memory, where the user asked for none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from tasks.errors import ModelError
from tasks.files import human_size
from tasks.hub.labels import family
from tasks.hub.listing import Candidate, listed, place
from tasks.hub.manifest import RemoteFile

PREFERENCE = (
    *("Q8_0", "Q8_K_XL"),
    *("Q6_K", "Q6_K_XL", "Q6_K_L"),
    *("Q5_K_XL", "Q5_K_L", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("Q4_K_XL", "Q4_K_L", "Q4_K_M", "MXFP4_MOE", "MXFP4", "NVFP4", "Q4_K_S"),
    *("IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"),
    *("Q3_K_XL", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS"),
    *("Q2_K_XL", "Q2_K_L", "Q2_K", "IQ2_M", "IQ2_S", "Q2_K_S", "IQ2_XS", "IQ2_XXS"),
    *("TQ2_0", "IQ1_M", "TQ1_0", "IQ1_S", "Q2_0", "Q1_0"),
    *("F16", "BF16", "F32"),
)
"""Types from the best to the last, where none is asked: the first that fits is taken.

By quality, as llama.cpp's own perplexity tables have it. At the top, where nobody can tell the
difference, the smaller and faster comes first: Q8_0 before its mixes with 16 bits, Q6_K before
its larger variants. 16 and 32 bits cost twice the memory and time for nothing that a reader
would see: only where there is nothing else. Names that llama.cpp does not know come after all.
"""
_ORDER = {name: place for place, name in enumerate(PREFERENCE)}
_FLAVOURS = ("", "I1", "UD")
_MODELS_APART = 1.5
"""Files of one quantization whose sizes differ by more are not the same model."""


@dataclass(frozen=True)
class Fit:
    """The memory to choose for."""

    usable: int
    """Bytes for the model and its context together."""
    context_bytes: Callable[[RemoteFile], int]
    """Bytes that serving takes beside the file; asked at most once, and only if it matters."""


def preference(one: Candidate) -> tuple[object, ...]:
    """A key to sort by: the best quantization first."""
    if one.label is None:
        return (len(_ORDER), 0, *place(one))
    order = _ORDER.get(one.label.type, _ORDER.get(one.label.alias, len(_ORDER)))
    return (order, _FLAVOURS.index(one.label.flavour), *place(one))


def refuse_several_models(pool: Iterable[Candidate], repo: str) -> None:
    """Where one quantization is there in sizes far apart, the name of a type says too little."""

    def kind(one: Candidate) -> tuple[str, str]:
        return (one.label.type, one.label.flavour) if one.label else ("", "")

    for (type_, _), group in groupby(sorted(pool, key=kind), kind):
        same = sorted(group, key=lambda each: each.size)
        small, large = same[0], same[-1]
        if type_ and large.size > _MODELS_APART * small.size:
            if family(small.name) == family(large.name):
                continue
            raise ModelError(
                f"{repo} holds several models",
                f"{small.name} has {human_size(small.size)}, {large.name} "
                f"{human_size(large.size)}, both {small.shown}",
                "name one with filename=, or narrow the choice with pattern=",
            )


def best_fit(
    pool: Sequence[Candidate],
    projectors: Mapping[Candidate, Candidate | None],
    fit: Fit,
    repo: str,
) -> tuple[Candidate, str]:
    """The first of the pool, in the order of preference, that leaves room for its context; why.

    `projectors` are loaded along with them. Raises ModelError where none fits.
    """
    refuse_several_models(pool, repo)
    ranked = sorted(pool, key=preference)

    def size(one: Candidate) -> int:
        projector = projectors[one]
        return one.size + (projector.size if projector else 0)

    # Asking for the context costs a request: not where the answer cannot matter.
    possible = [each for each in ranked if size(each) <= fit.usable]
    context = fit.context_bytes(possible[0].files[0]) if possible else 0
    best = next((each for each in possible if size(each) + context <= fit.usable), None)

    def numbers(one: Candidate) -> str:
        projector = projectors[one]
        terms = [f"{one.shown}: {human_size(one.size)}"]
        terms += [f"{human_size(projector.size)} mmproj"] if projector else []
        terms += [f"{human_size(context)} context"] if context else []
        return " + ".join(terms)

    if best is None:
        least = min(ranked, key=size)
        smaller = "take a smaller ctx-size=, or " if size(least) <= fit.usable else ""
        raise ModelError(
            f"nothing in {repo} fits the memory",
            f"{numbers(least)}; usable are {human_size(fit.usable)}",
            f"{smaller}name one with quantization= to try it all the same: {listed(ranked)}",
        )
    better = ranked[: ranked.index(best)]
    why = f"{numbers(best)} fits {human_size(fit.usable)}"
    return best, why + (f"; {better[-1].shown} would not" if better else "")
