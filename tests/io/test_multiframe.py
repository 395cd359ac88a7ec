"""Enhanced objects: order, rescale and faults of frames; cines; NM reconstructions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.group import find_series
from medfm.io.load import load_image, peek

Writer = Callable[..., Path]
Frame = dict[str, dict[str, Any]]


def ramp(count: int) -> np.ndarray:
    return (np.arange(count)[:, None, None] * 100 + np.arange(6).reshape(2, 3)).astype(np.uint16)


def at(*heights: float, **macros: list[dict[str, Any]]) -> list[Frame]:
    """Frames at heights along z; of each macro sequence one item a frame."""
    return [
        {"PlanePositionSequence": {"ImagePositionPatient": [1, 2, z]}, **{name: items[n] for name, items in macros.items()}}
        for n, z in enumerate(heights)
    ]


def test_enhanced__frames_are_ordered_by_position(write_enhanced: Writer) -> None:
    image = load_image(write_enhanced(ramp(4), at(9, 3, 6, 0)))
    np.testing.assert_array_equal(image.array[0, 0], [300, 100, 200, 0])
    np.testing.assert_allclose(image.affine, [[-1, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert (image.modality, image.last_axis) == ("MR", None)
    assert peek(image.source).shape == image.shape == (3, 2, 4)


def test_enhanced__rescale_and_window_of_each_frame(write_enhanced: Writer) -> None:
    rescale = [{"RescaleSlope": s, "RescaleIntercept": i, "RescaleType": "US"} for s, i in ((1, 0), (2, -5), (0.5, 0))]
    window = [{"WindowCenter": c, "WindowWidth": 10} for c in (1, 2, 3)]
    frames = at(2, 1, 0, PixelValueTransformationSequence=rescale, FrameVOILUTSequence=window)
    image = load_image(write_enhanced(ramp(3), frames))
    np.testing.assert_allclose(image.array[1, 0], [100.5, 197, 1])
    assert image.windows[0].center == 3  # of the lowest slice


def test_enhanced__time_axis_from_the_temporal_index(write_enhanced: Writer) -> None:
    # Stored slice by slice, the later point in time first.
    content = [{"TemporalPositionIndex": t} for t in (2, 1, 2, 1, 2, 1)]
    path = write_enhanced(ramp(6), at(0, 0, 3, 3, 6, 6, FrameContentSequence=content))
    image = load_image(path)
    assert (image.shape, image.last_axis) == ((3, 2, 3, 2), "time")
    np.testing.assert_array_equal(image.array[0, 0], [[100, 0], [300, 200], [500, 400]])
    assert "2 volumes ordered by TemporalPositionIndex" in image.notes
    one = load_image(f"{path}#volume=1")
    assert (one.last_axis, one.source) == (None, f"{path}#volume=1")
    np.testing.assert_array_equal(one.array, image.array[..., 1])
    assert peek(one.source).shape == one.shape
    with pytest.raises(DataError, match="holds volumes 0 to 1, not 2"):
        load_image(f"{path}#volume=2")


def test_enhanced__b_values(write_enhanced: Writer) -> None:
    diffusion = [{"DiffusionBValue": b} for b in (1000.0, 1000.0, 0.0, 0.0)]
    image = load_image(write_enhanced(ramp(4), at(0, 3, 0, 3, MRDiffusionSequence=diffusion)))
    np.testing.assert_array_equal(image.array[0, 0], [[200, 0], [300, 100]])
    assert "2 volumes ordered by b-value" in image.notes


def test_enhanced__two_orientations_are_two_series(write_enhanced: Writer) -> None:
    frames = at(0, 3, 0, 3)
    for frame in frames[2:]:
        frame["PlaneOrientationSequence"] = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    frames[3]["PlanePositionSequence"] = {"ImagePositionPatient": [1, 5, 0]}
    path = write_enhanced(ramp(4), frames)
    with pytest.raises(DataError, match="differ in orientation by up to 90 degrees"):
        load_image(path)
    found = find_series([path])
    assert [(s.kind, s.header.shape, s.problem) for s in found] == [("multiframe", (3, 2, 2), "")] * 2
    values = sorted(sorted(load_image(s.path).array[0, 0].tolist()) for s in found)
    assert values == [[0, 100], [200, 300]]


def test_enhanced__several_files_make_one_time_series(write_enhanced: Writer) -> None:
    for n in range(3):
        frames = at(0, 3, FrameContentSequence=[{"FrameAcquisitionDateTime": f"2020010110{30 - n:02d}00.0"}] * 2)
        write_enhanced(ramp(2) + 7 * n, frames, name=f"s/{n}.dcm", InstanceNumber=n + 1)
    path = write_enhanced(ramp(1), at(0), name="x.dcm").parent / "s"
    image = load_image(path)
    assert image.shape == (3, 2, 2, 3)
    np.testing.assert_array_equal(image.array[0, 0, 0], [14, 7, 0])  # the file named last was taken first


@pytest.mark.parametrize(
    ("frames", "tags", "reason"),
    [
        (at(0, 3, 6, 12), {}, "missing slices: 1"),
        (at(0, 3, 6, 10), {}, "not uniform"),
        (at(0, 3, 6, 6), {}, "duplicate slices: 4 images lie at 3 positions"),
        (at(0, 3, 6), {"NumberOfFrames": 4}, "counts 4 frames and describes 3"),
        (at(0, 3, 6, float("1e30")), {}, "more than 10 m"),
        ([*at(0, 3, 6), {}], {}, "1 of 4 images have no usable"),
        ([{}] * 4, {}, r"multi-frame \(4 frames\), and its frames have no position"),
    ],
)
def test_enhanced__faults_are_named(write_enhanced: Writer, frames: list[Frame], tags: dict[str, Any], reason: str) -> None:
    path = write_enhanced(ramp(4), frames, **tags)
    with pytest.raises(DataError, match=reason):
        load_image(path)
    assert peek(path).problem


def test_enhanced__empty_slope_of_a_frame(write_enhanced: Writer) -> None:
    rescale = [{"RescaleSlope": s, "RescaleIntercept": 0} for s in (2, None, 2)]
    with pytest.raises(DataError, match="a frame's RescaleSlope is empty"):
        load_image(write_enhanced(ramp(3), at(0, 1, 2, PixelValueTransformationSequence=rescale)))


def test_enhanced__sheared_frames(write_enhanced: Writer) -> None:
    frames: list[Frame] = [{"PlanePositionSequence": {"ImagePositionPatient": [0, n, 3 * n]}} for n in range(5)]
    path = write_enhanced(ramp(5), frames)
    with pytest.raises(DataError, match="gantry tilt"):
        load_image(path)
    assert load_image(path, tilt="resample").shape == (3, 4, 5)  # 4 mm at 2 mm rows: two rows more


def test_enhanced__written_by_highdicom(tmp_path: Path) -> None:
    """A legacy-converted object of shuffled CT slices equals the slices' own series."""
    highdicom = pytest.importorskip("highdicom")
    import pydicom
    from pydicom.data import get_testdata_file

    source = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    slices = []
    for n in (3, 0, 2, 1):
        one = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n + 1}"
        one.InstanceNumber = 9 - n
        one.ImagePositionPatient = [*source.ImagePositionPatient[:2], float(source.ImagePositionPatient[2]) + 2.5 * n]
        one.PixelData = (one.pixel_array + 10 * n).astype(np.int16).tobytes()
        one.save_as(tmp_path / f"{len(slices)}.dcm")
        slices.append(one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, "1.2.9", 1, "1.2.9.1", 1)
        (tmp_path / "e").mkdir()
        converted.save_as(tmp_path / "e" / "e.dcm")
    series, enhanced = load_image(tmp_path), load_image(tmp_path / "e")
    assert enhanced.shape == (128, 128, 4)
    np.testing.assert_array_equal(enhanced.array, series.array)
    np.testing.assert_allclose(enhanced.affine, series.affine)
    assert (enhanced.modality, enhanced.intensity_units) == ("CT", series.intensity_units)


def test_cine__grey_and_colour(write_dicom: Writer) -> None:
    grey = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    tags = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1", "Modality": "US", "NumberOfFrames": 5, "Rows": 4, "Columns": 3}
    path = write_dicom(grey.reshape(20, 3), **tags)
    image = load_image(path)
    assert (image.shape, image.last_axis, image.oriented, image.spaced) == ((3, 4, 1, 5), "time", False, False)
    np.testing.assert_array_equal(image.array[:, :, 0].transpose(2, 1, 0), grey)
    np.testing.assert_array_equal(load_image(f"{path}#volume=2").array, image.array[..., 2])
    assert (peek(path).shape, peek(path).frames, peek(path).sop_class) == (
        image.shape,
        5,
        "Ultrasound Multi-frame Image Storage",
    )
    colour = np.stack([grey, grey + 1, grey + 2], axis=-1)
    image = load_image(write_dicom(colour.reshape(20, 3, 3), name="c.dcm", **tags))
    assert (image.shape, image.last_axis) == ((3, 4, 1, 5, 3), "time, colour")
    np.testing.assert_array_equal(image.array[:, :, 0].transpose(2, 1, 0, 3), colour)


def test_cine__real_ultrasound(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "pydicom_data"
    cine, first = load_image(folder / "OBXXXX1A_rle_2frame.dcm"), load_image(folder / "OBXXXX1A_rle.dcm")
    assert (cine.shape, cine.last_axis) == ((800, 600, 1, 2, 3), "time, colour")
    np.testing.assert_array_equal(cine.array[:, :, :, 0], first.array)


@pytest.mark.parametrize("spacing", [3.0, -3.0])
def test_nm_reconstruction__steps_along_the_normal(write_dicom: Writer, spacing: float) -> None:
    from pydicom.dataset import Dataset

    detector = Dataset()
    detector.ImageOrientationPatient, detector.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 10]
    tags = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.20",
        "Modality": "NM",
        "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        "NumberOfFrames": 3,
        "SliceVector": [1, 2, 3],
        "DetectorInformationSequence": [detector],
        "SpacingBetweenSlices": spacing,
        "PixelSpacing": [2, 2],
        "Rows": 2,
        "Columns": 3,
    }
    image = load_image(write_dicom(ramp(3).reshape(6, 3), **tags))
    # Slices run along +normal whatever way the frames were numbered.
    np.testing.assert_array_equal(image.array[0, 0], [0, 100, 200] if spacing > 0 else [200, 100, 0])
    assert image.affine[2, 2] == pytest.approx(3)
    assert image.affine[2, 3] == pytest.approx(10 if spacing > 0 else 4)


@pytest.mark.parametrize(("slope", "noted"), [(0.001, True), (1.0, False)])
def test_enhanced__an_unused_real_world_value_mapping_is_noted(write_enhanced: Writer, slope: float, noted: bool) -> None:
    mapping = {"RealWorldValueMappingSequence": {"RealWorldValueSlope": slope, "RealWorldValueIntercept": 0.0}}
    image = load_image(write_enhanced(ramp(2), at(0, 3), shared=mapping))
    assert image.intensity_units == "arbitrary"
    assert any("real world value mapping" in note for note in image.notes) == noted
