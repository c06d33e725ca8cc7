"""The hand-off to hf_xet, for files that the hub does not give by plain HTTP."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping

from tasks.errors import ModelError
from tasks.transfer.errors import host_of
from tasks.transfer.incomplete import Incomplete, Wanted


def demanded(wanted: Wanted) -> bool:
    """True where the hub says beforehand that it gives this file by Xet only."""
    from huggingface_hub import constants

    size = wanted.size or 0
    return size > constants.MAX_HTTP_DOWNLOAD_SIZE and wanted.on_hub


def download(wanted: Wanted, disk: Incomplete, headers: Mapping[str, str]) -> None:
    """Have hf_xet write the whole file, unverified, under its unfinished name."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import get_hf_file_metadata, xet_get
    from huggingface_hub.utils.tqdm import disable_progress_bars

    _check_installed(wanted, constants.HF_HUB_DISABLE_XET)
    own = dict(headers)
    data = get_hf_file_metadata(
        wanted.url, token=False, headers=own, retry_on_errors=True
    ).xet_file_data
    if data is None:
        raise ModelError(
            f"{wanted.name} cannot be downloaded",
            f"{host_of(wanted.url)} gives it neither by HTTP nor by Xet",
            "try again later, or without HF_ENDPOINT if that names a mirror",
        )
    disk.begin_unjournaled()
    disable_progress_bars("huggingface_hub.xet_get")
    try:
        xet_get(
            incomplete_path=disk.path, xet_file_data=data, headers=own, expected_size=wanted.size
        )
    except OSError:
        raise
    except Exception as error:
        raise ModelError(
            f"{wanted.name}: the download by Xet failed",
            # Its text may hold signed addresses.
            f"hf_xet ended with {type(error).__name__}",
            "check the network and run the same again",
        ) from None


def abort() -> None:
    """End what hf_xet does in other threads."""
    from huggingface_hub.utils._xet import abort_xet_session

    with contextlib.suppress(Exception):
        abort_xet_session()  # type: ignore[no-untyped-call]


def _check_installed(wanted: Wanted, disabled: bool) -> None:
    what = f"{wanted.name} is given by Xet only"
    if disabled:
        raise ModelError(what, "HF_HUB_DISABLE_XET forbids its use", "unset HF_HUB_DISABLE_XET")
    try:
        importlib.import_module("hf_xet")
    except ImportError:
        raise ModelError(
            what,
            "the Python package hf_xet is not installed",
            "install it into llamake's environment: .venv/bin/python -m pip install hf_xet",
        ) from None
