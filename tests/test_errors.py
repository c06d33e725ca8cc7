"""Errors: three lines at most, and an exit code of its own for each class."""

from __future__ import annotations

from tasks import errors
from tasks.commands.help import _EXIT_CODES
from tasks.errors import LlamakeError


def classes() -> list[type[LlamakeError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, LlamakeError) and kind is not LlamakeError]


def test_an_error_says_what_why_and_what_to_do() -> None:
    assert str(LlamakeError("it broke")) == "it broke"
    assert str(LlamakeError("it broke", fix="mend it")) == "it broke\n  fix: mend it"
    assert str(LlamakeError("it broke", "age", "mend it")) == (
        "it broke\n  why: age\n  fix: mend it"
    )


def test_exit_codes_are_distinct_and_documented() -> None:
    codes = [kind.exit_code for kind in classes()]
    assert len(set(codes)) == len(codes) >= 8
    assert all(code == 3 or 10 <= code < 126 for code in codes)
    documented = {word for row in _EXIT_CODES for word in row[0].split(", ")}
    assert {str(code) for code in codes} <= documented
