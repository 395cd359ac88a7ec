"""A fixed part of the damaged files of `benchmarks.fuzz`, read by medfm in child processes of at most 2 GiB."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import corpus
from benchmarks.fuzz.judge import FAILURES, OK, REFUSED, answers, outcome
from benchmarks.fuzz.mutant import Mutant


@pytest.fixture(scope="module")
def mutants() -> list[Mutant]:
    return corpus.corpus(1000)


def chosen(mutants: list[Mutant]) -> list[Mutant]:
    """Every sound but odd input, and every tenth damaged one, of each kind of damage some."""
    good = [m for m in mutants if m.good]
    seen: dict[str, int] = {}
    damaged = []
    for mutant in mutants:
        if not mutant.good:
            seen[mutant.family] = seen.get(mutant.family, -1) + 1
            if seen[mutant.family] % 14 == 0:
                damaged.append(mutant)
    return good[::2] + damaged


def test_load_image__refuses_damage_or_reads_it_rightly(mutants: list[Mutant], tmp_path: Path) -> None:
    inputs = corpus.write(chosen(mutants), tmp_path)
    assert len(inputs) >= 140
    assert len({i.mutant.family for i in inputs}) >= 25
    given = answers("medfm", inputs)
    failed = [
        f"{i.mutant.name}: {outcome(i, a)}: {a.words}" for i, a in zip(inputs, given, strict=True) if outcome(i, a) in FAILURES
    ]
    assert failed == []
    found = [outcome(i, a) for i, a in zip(inputs, given, strict=True)]
    assert min(found.count(OK), found.count(REFUSED)) > 40
    assert max(a.peak for a in given) < 300 * 2**20


def test_corpus__is_large_varied_and_the_same_each_time(mutants: list[Mutant]) -> None:
    assert len(mutants) >= 1000
    assert len({m.name for m in mutants}) == len(mutants)
    assert [m.files for m in corpus.corpus(1000)] == [m.files for m in mutants]
    assert sum(m.good for m in mutants) >= 60
    assert sum(m.refuse for m in mutants) >= 300
    kinds = {"truncated", "wrong VR", "size", "spacing", "gzip", "wrong length", "encapsulation", "bit flips, header"}
    assert kinds <= {m.family for m in mutants}


def test_judge__a_reader_that_returns_damage_is_wrong(mutants: list[Mutant], tmp_path: Path) -> None:
    """nibabel, which tests no checksum and trusts sizes, is caught: the judge is not blind."""
    inputs = corpus.write([m for m in mutants if m.kind == "nifti" and m.family in ("gzip", "NIfTI size")], tmp_path)
    found = [outcome(i, a) for i, a in zip(inputs, answers("nibabel", inputs), strict=True)]
    assert found.count("WRONG") >= 3
    assert found.count(OK) >= 3
