"""Rows of several sequences: files of one examination that together are one image with channels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from medfm.data.scan import Item, Scan
from medfm.errors import DataError
from medfm.io.sequences import join_sequences


def group_sequences(found: Scan, endings: Sequence[str]) -> dict[str, str]:
    """Keeps of `found.items` the first sequence of each complete set, and says how its row names the whole set.

    Items belong together that are named alike but for their ending: `p1/T1.nii.gz`, `p1/T2.nii.gz` for the endings `T1.nii.gz`,
    `T2.nii.gz`; `x_t1.nii.gz`, `x_t2.nii.gz` for `_t1.nii.gz`, `_t2.nii.gz`. Items without any of the endings, and those of
    sets that lack one, are rejected.

    Returns:
        Path of the first sequence -> reference of all, see `medfm.io.sequences`.

    Raises:
        DataError: no set is complete.
    """
    sets: dict[str, dict[str, Item]] = defaultdict(dict)
    for item in found.items:
        # The longest: `_t1.nii.gz` also ends in `t1.nii.gz`.
        ending = max((e for e in endings if item.path.endswith(e)), key=len, default=None)
        if ending is None:
            found.rejected.append((item.path, f"is none of the sequences {', '.join(endings)}"))
        else:
            sets[item.path.removesuffix(ending)][ending] = item
    whole: dict[str, str] = {}
    kept = []
    for members in sets.values():
        lacking = [e for e in endings if e not in members]
        if lacking:
            found.rejected += [(item.path, f"has no {', '.join(lacking)} beside it") for item in members.values()]
            continue
        first = members[endings[0]]
        whole[first.path] = join_sequences([members[e].path for e in endings])
        kept.append(first)
    if not kept:
        seen = f"; the first image found is '{found.rejected[0][0]}'" if found.rejected else ""
        raise DataError(f"no examination has all of sequences={list(endings)}, which are endings of file names{seen}")
    found.items = sorted(kept, key=lambda item: item.path)
    return whole
