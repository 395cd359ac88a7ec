"""The cases of `benchmarks.conformance` that cost little, read by medfm in this process."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conformance.asked import asked
from benchmarks.conformance.cases import FAULT, MUST, Case, nifti_cases, real_cases
from benchmarks.conformance.enhanced import enhanced_cases
from benchmarks.conformance.space import Truth, difference
from benchmarks.conformance.synth import Base, bases, synthetic_faults, synthetic_stacks
from medfm.errors import MedfmError
from medfm.io.load import load_image

pytest.importorskip("dcm2niix")
pytest.importorskip("highdicom")

# A stack of 192 slices and a few of hundreds of MB: left to the benchmark.
_LARGE = {"mr_sag_mprage", "nibabel philips_mprage.dcm", "totalsegmentator CT"}
_LARGEST_NIFTI = 3_000_000


@pytest.fixture(scope="module")
def parts(data_dir: Path) -> list[Base]:
    return bases(data_dir)


def failing(cases: list[Case], limit: int = 0) -> list[str]:
    """A line for each case that medfm gets wrong, does not read though it must, or refuses by another name."""
    found = []
    assert len(cases) > limit
    for case in cases:
        truths: list[Truth] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if case.truth is not None:
                try:
                    truths = case.truth()
                except Exception:  # decoders raise whatever they do; then nothing but a refusal is right
                    assert not case.must, case.name
            try:
                image = load_image(case.path)
            except MedfmError as error:
                words = re.sub(r"'[^']*/[^']*'", "", str(error))
                if case.must:
                    found.append(f"{case.name}: refused: {words}")
                elif case.fault and not re.search(case.fault, words, re.IGNORECASE):
                    found.append(f"{case.name}: refused by another name: {words}")
                continue
        why = [difference(image.array, image.affine, truth) for truth in truths]
        if not case.free and "" not in why:
            found.append(f"{case.name}: WRONG: {'; '.join(why) or 'there is nothing right but a refusal'}")
    return found


def test_load_image__real_files_as_their_truths_say(data_dir: Path, tmp_path: Path) -> None:
    cases = [c for c in real_cases(data_dir, tmp_path) if c.name not in _LARGE and "ny_sbu" not in c.name]
    assert {c.category for c in cases} >= {*MUST[:3], FAULT}
    assert failing(cases, limit=180) == []


def test_load_image__orders_and_encodings_of_a_series(parts: list[Base], tmp_path: Path) -> None:
    assert failing([_without_oracle(c) for c in synthetic_stacks(parts[:1], tmp_path)], limit=25) == []


def test_load_image__every_geometry_fault_is_named_or_mended(parts: list[Base], tmp_path: Path) -> None:
    assert failing(list(synthetic_faults(parts[1:], tmp_path)), limit=40) == []


def test_load_image__enhanced_multi_frame(data_dir: Path, parts: list[Base], tmp_path: Path) -> None:
    assert failing(list(enhanced_cases(data_dir, parts, tmp_path)), limit=35) == []


def test_load_image__what_it_is_asked_for(data_dir: Path, parts: list[Base], tmp_path: Path) -> None:
    """A tilt resampled as dcm2niix does, each series of a mixed folder, each moment of a time series."""
    cases = [c for c in real_cases(data_dir, tmp_path) if "A0023" in c.name or "tilting" in c.name or "fmri" in c.name]
    cases += [c for c in synthetic_faults(parts[:1], tmp_path) if "tilt 12" in c.name or "same places" in c.name]
    found = {name: check() for name, check in asked(cases)}
    assert len(found) >= 6
    assert set(found.values()) == {""}, found


def test_load_image__nifti_as_nibabel_reads_it(data_dir: Path) -> None:
    cases = [c for c in nifti_cases(data_dir) if c.path.stat().st_size < _LARGEST_NIFTI]
    assert failing(cases, limit=60) == []


def _without_oracle(case: Case) -> Case:
    """The maker's truth alone: dcm2niix takes a tenth of a second a case."""
    from dataclasses import replace
    from functools import partial

    truth = case.truth.args[0] if isinstance(case.truth, partial) else None
    assert isinstance(truth, Truth)
    return replace(case, truth=lambda: [truth])


def test_difference__sees_a_flip_a_shift_and_a_value() -> None:
    """The judge itself: a result that is off by a flip, half a voxel, one value or a transposition is not right."""
    array = np.arange(24.0).reshape(2, 3, 4)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    truth = Truth(array, affine)
    assert difference(array, affine, truth) == ""
    turned = affine.copy()
    turned[:, 0] *= -1
    turned[0, 3] = 1.0
    assert difference(array[::-1], turned, truth) == ""
    assert "values wrong" in difference(array[::-1], affine, truth)
    shifted = affine.copy()
    shifted[2, 3] += 1.5
    assert "voxels off by up to 1.5 mm" in difference(array, shifted, truth)
    other = array.copy()
    other[1, 1, 1] += 0.5
    assert "1 of 24 values wrong" in difference(other, affine, truth)
    assert "shape" in difference(array.transpose(1, 0, 2), affine, truth)
    assert "affine" in difference(array, np.full((4, 4), np.nan), truth)
