"""What medfm reads when it is asked to: a tilted gantry resampled, one series of a folder that mixes several, one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.conformance.cases import Case, files_of
from benchmarks.conformance.space import Truth, difference
from benchmarks.conformance.truth import dcm2niix, image_truths, stack_truth


def _tilted(case: Case) -> str:
    """The sheared volume interpolated linearly at the returned voxels' places; the grid straight, and dcm2niix's own."""
    from scipy.ndimage import map_coordinates

    from medfm.io.load import load_image

    image = load_image(case.path, tilt="resample")
    sheared = stack_truth(files_of(case.path), straight=False)
    voxels = np.indices(image.array.shape).reshape(3, -1)
    matrix = np.linalg.inv(sheared.affine) @ image.affine
    places = np.round(matrix[:3, :3] @ voxels + matrix[:3, 3:], 6)
    wanted = map_coordinates(sheared.array, places, order=1, mode="constant", cval=np.nan).reshape(image.array.shape)
    inside = np.isfinite(wanted)
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        return "the axes are not at right angles"
    if inside.sum() < 0.98 * sheared.array.size:
        return f"{inside.sum()} of {sheared.array.size} voxels kept"
    off = float(np.abs(image.array - wanted)[inside].max())
    made = dcm2niix(files_of(case.path), made="_Tilt_1.nii")
    if made is not None and made.array.shape != image.array.shape:
        return f"the grid {image.array.shape} is not dcm2niix's {made.array.shape}"
    return "" if off <= 0.51 else f"values off by up to {off:.3g}"  # whole Hounsfield units


def _selected(case: Case) -> str:
    """Every series that `find_series` offers of a folder, against its own files."""
    from medfm.io.group import find_series
    from medfm.io.load import load_image

    found = [s for s in find_series(files_of(case.path)) if not s.problem]
    if len(found) < 2:
        return f"{len(found)} series found"
    for series in found:
        image = load_image(series.path)
        truths = [stack_truth(series.files)] if len(series.files) > 1 else image_truths(series.files[0])
        why = [difference(image.array, image.affine, truth) for truth in truths]
        if "" not in why:
            return why[0]
    return ""


def _moments(case: Case) -> str:
    """`#volume=n` of a time series, against its truth's n-th volume."""
    from medfm.io.load import load_image
    from medfm.io.reference import join_reference

    truth = case.truth()[0] if case.truth is not None else Truth(np.zeros((1, 1, 1, 0)), np.eye(4))
    for moment in range(truth.array.shape[3]):
        image = load_image(join_reference(case.path, volume=moment))
        why = difference(image.array, image.affine, Truth(truth.array[..., moment], truth.affine))
        if why:
            return f"moment {moment}: {why}"
    return ""


def asked(cases: list[Case]) -> Iterator[tuple[str, Callable[[], str]]]:
    """(what, a function that says how the result differs, "" where it is right), of the cases that have an answer."""
    for case in cases:
        name = case.name
        if "tilting" in name or ("gantry tilt" in name and name.startswith("CT") and "1.5" not in name):
            yield f"{name}, tilt=resample", partial(_tilted, case)
        elif (name.startswith("ny_sbu ") and case.path.is_dir()) or "two series" in name:
            yield f"{name}, each #series=", partial(_selected, case)
        elif name.endswith(("fmri/001", "fmri_classic/001", ": two moments")):
            yield f"{name}, each #volume=", partial(_moments, case)
