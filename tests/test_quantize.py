"""Which type to quantize to, and what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import Refused
from tasks.quantization import QUANTIZATIONS
from tasks.quantize import DEFAULT, choose
from tasks.settings import Settings


def test_the_default_and_what_was_asked_for() -> None:
    assert choose(Settings()) == DEFAULT == "q4_k_m"
    assert choose(Settings(quantization="f16")) == "f16"


@pytest.mark.parametrize("row", QUANTIZATIONS.values(), ids=lambda row: str(row.name))
def test_types_that_need_an_importance_matrix(row: object, tmp_path: Path) -> None:
    name, needs = row.name, row.needs_imatrix  # type: ignore[attr-defined]
    if needs:
        with pytest.raises(Refused, match=f"quantization={name} needs an importance matrix"):
            choose(Settings(quantization=name))
    (tmp_path / "imatrix.gguf").write_text("")
    assert choose(Settings(quantization=name, imatrix=tmp_path / "imatrix.gguf")) == name


def test_a_matrix_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not a file"):
        choose(Settings(imatrix=tmp_path / "none"))
