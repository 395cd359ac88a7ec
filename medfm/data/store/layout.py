"""Folders of a store: one below it for each contract, by the hash of what decides its pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.errors import ConfigError
from medfm.io.files import atomic_write

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess

_MARK = "medfm-store.json"
_CONTRACT = "contract.json"
_VERSION = 1


def make_folder(store: Path, preprocess: Preprocess) -> Path:
    """The folder of a contract in a store, both made where they are not there yet.

    Raises:
        ConfigError: `store` holds something else, or cannot be written.
    """
    try:
        if not (store / _MARK).is_file():
            if store.exists() and (not store.is_dir() or any(store.iterdir())):
                raise ConfigError(f"out '{store}' is not empty and no store of medfm; choose a new folder")
            with atomic_write(store / _MARK) as temporary:
                temporary.write_text(json.dumps({"medfm_store": _VERSION}) + "\n", encoding="utf-8")
        _check_mark(store)
        folder = store / preprocess.stored_hash()
        if not (folder / _CONTRACT).is_file():
            with atomic_write(folder / _CONTRACT) as temporary:
                temporary.write_text(json.dumps(preprocess.stored_fields(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out '{store}' cannot be written: {error.strerror or type(error).__name__}") from None
    return folder


def find_folder(store: Path, preprocess: Preprocess) -> Path:
    """The folder of a contract in a store.

    Raises:
        ConfigError: there is no store, or it holds other contracts only; names the fields that differ.
    """
    if not (store / _MARK).is_file():
        raise ConfigError(
            f"data.cache '{store}' is no folder that `medfm cache` made; make it with "
            f"`medfm cache manifest=... recipe=... out={store}`"
        )
    _check_mark(store)
    folder = store / preprocess.stored_hash()
    if (folder / _CONTRACT).is_file():
        return folder
    others = sorted(store.glob(f"*/{_CONTRACT}"))
    if not others:
        raise ConfigError(f"data.cache '{store}' holds no images yet; run `medfm cache manifest=... recipe=... out={store}`")
    mine = preprocess.stored_fields()
    differences = sorted((_differences(_read(path), mine) for path in others), key=len)
    what = "; ".join(differences[0]) or "made by another version of medfm"
    raise ConfigError(
        f"data.cache '{store}' was made under another preprocessing contract ({what}); run "
        f"`medfm cache manifest=... recipe=... out={store}` with this recipe: a store holds several"
    )


def _check_mark(store: Path) -> None:
    version = _read(store / _MARK).get("medfm_store")
    if version != _VERSION:
        raise ConfigError(f"'{store}' is a store of another version of medfm ({version}); make a new one with `medfm cache`")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"'{path}' cannot be read; make the store anew with `medfm cache`") from None
    return content if isinstance(content, dict) else {}


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    # What one of them leaves out (the windows of int16 HU) follows from what both say.
    both = [name for name in names if name in there and name in here]
    return [f"preprocess.{name} {_shown(there, name)} there, {_shown(here, name)} here" for name in both or names]


def _shown(fields: dict[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "default"
