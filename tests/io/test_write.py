"""Masks and images out and back: equal voxel for voxel, and what a PACS needs is in the SEG."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from medfm import __version__
from medfm.errors import DataError
from medfm.io.load import load_image
from medfm.io.masks import load_mask
from medfm.io.write import save_image, save_mask
from medfm.types import Image, Mask

OBLIQUE = np.array([[-0.9, 0.1, 0.3, 40], [0.15, -1.1, 0.5, 55], [0.1, 0.2, 2.4, -120], [0, 0, 0, 1.0]])


def image_of(shape: tuple[int, ...], affine: np.ndarray = OBLIQUE, dtype: Any = np.int16, **more: Any) -> Image:
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    return Image(array, affine, **{"modality": "MR", "intensity_units": "arbitrary", "source": "", **more})


def blobs(image: Image, count: int = 3) -> np.ndarray:
    """(S, i, j, k) ellipsoids that overlap, each ending before the edge on another side."""
    grid = np.indices(image.shape[:3], sparse=True)
    layers = []
    for number in range(count):
        centre = [n * (0.35 + 0.1 * number * (axis + 1) % 0.4) for axis, n in enumerate(image.shape[:3])]
        radius = [max(0.25 * n, 0.6) for n in image.shape[:3]]
        layers.append(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) < 1)
    return np.stack(layers)


def check_round_trip(mask: np.ndarray, path: Path, image: Image, **more: Any) -> Mask:
    save_mask(mask, path, image, **more)
    again = load_mask(path, image)
    layers = mask if mask.ndim == 4 else mask[None]
    np.testing.assert_array_equal(again.array, layers)
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    return again


# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_save_mask__nifti_keeps_names_overlap_and_empty_segments(tmp_path: Path, suffix: str) -> None:
    image = image_of((12, 14, 9))
    layers = blobs(image, 4)
    layers[3] = False
    assert (layers[0] & layers[1]).any()
    names = ["liver", "Läsion <1>", "c", "empty"]
    assert check_round_trip(layers, tmp_path / f"m{suffix}", image, names=names).names == tuple(names)
    layers[1:3] = False
    layers[1] = ~layers[0]
    again = check_round_trip(layers, tmp_path / f"n{suffix}", image, names=names)
    assert again.names == tuple(names)
    stored = nibabel.load(tmp_path / f"n{suffix}")  # one label map that any viewer opens
    assert stored.shape == (12, 14, 9)
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_allclose(stored.affine, OBLIQUE, atol=1e-5)


def test_save_mask__forms_of_a_mask(tmp_path: Path) -> None:
    image = image_of((5, 6, 7))
    labels = np.random.default_rng(1).integers(0, 3, (5, 6, 7)) * 4
    save_mask(labels, tmp_path / "a.nii", image)
    again = load_mask(tmp_path / "a.nii", image)
    assert again.names == ("label 4", "label 8")
    np.testing.assert_array_equal(again.array, [labels == 4, labels == 8])
    save_mask(labels, tmp_path / "b.nii", image, names={4: "four", 6: "six"})
    assert load_mask(tmp_path / "b.nii", image).names == ("four", "six", "label 8")
    save_mask(again, tmp_path / "c.nii", image)
    np.testing.assert_array_equal(load_mask(tmp_path / "c.nii", image).array, again.array)
    save_mask(labels == 4, tmp_path / "d.nii", image, names=["four"])
    assert load_mask(tmp_path / "d.nii", image).names == ("four",)


def test_save_mask__more_than_255_segments(tmp_path: Path) -> None:
    image = image_of((7, 7, 7))
    labels = np.arange(343).reshape(7, 7, 7)
    save_mask(labels, tmp_path / "a.nii.gz", image)
    assert load_mask(tmp_path / "a.nii.gz", image).array.shape == (342, 7, 7, 7)
    assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint16


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_save_image__round_trip(tmp_path: Path, suffix: str, dtype: Any) -> None:
    image = image_of((5, 6, 7), dtype=dtype)
    save_image(image, tmp_path / f"a{suffix}")
    save_image(image.array, tmp_path / f"b{suffix}", like=image)
    for name in "ab":
        again = load_image(tmp_path / f"{name}{suffix}")
        np.testing.assert_array_equal(again.array, image.array)
        assert again.array.dtype == dtype
        np.testing.assert_allclose(again.affine, OBLIQUE, atol=1e-4)
        assert again.oriented


def test_save_image__colour_and_time(tmp_path: Path) -> None:
    colour = image_of((5, 6, 7, 3), dtype=np.uint8, last_axis="colour", photometric="RGB")
    save_image(colour, tmp_path / "a.nii.gz")
    again = load_image(tmp_path / "a.nii.gz")
    assert again.last_axis == "colour"
    np.testing.assert_array_equal(again.array, colour.array)
    moving = image_of((5, 6, 1, 4), last_axis="time")
    save_image(moving, tmp_path / "b.nii.gz")
    assert load_image(tmp_path / "b.nii.gz").last_axis == "time"
    np.testing.assert_array_equal(load_image(tmp_path / "b.nii.gz").array, moving.array)


def test_save_image__without_orientation_stays_so(tmp_path: Path) -> None:
    film = image_of((5, 6, 1), np.diag([0.2, 0.3, 1.0, 1.0]), oriented=False)
    save_image(film, tmp_path / "a.nii.gz")
    again = load_image(tmp_path / "a.nii.gz")
    assert not again.oriented
    np.testing.assert_allclose(again.spacing, (0.2, 0.3, 1.0), atol=1e-6)
    layers = np.zeros((1, 5, 6, 1), bool)
    layers[0, 2:4, 1:5] = True
    check_round_trip(layers, tmp_path / "m.nii.gz", film)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, p: save_image(i, p / "a.png"), "written as"),
        (lambda i, p: save_image(i.array, p / "a.nii"), "like="),
        (lambda i, p: save_image(i.array[1:], p / "a.nii", like=i), "differ in size"),
        (lambda i, p: save_image(replace(i, affine=np.diag([2.0, 2, 2, 1])), p / "a.nii", like=i), "voxels apart"),
        (lambda i, p: save_image(replace(i, last_axis="time, colour"), p / "a.nii"), "series in colour"),
        (lambda i, p: save_mask(i.array > 3, p / "a.png", i), "written as"),
        (lambda i, p: save_mask(i.array > 3, p / "a.nii", i, names=["a", "b"]), "as many names"),
        (lambda i, p: save_mask(i.array > 3, p / "a.nii", i, names=[""]), "none empty"),
        (lambda i, p: save_mask(i.array[:2] > 3, p / "a.nii", i), "differ in size"),
        (lambda i, p: save_mask(i.array * 0, p / "a.nii", i), "no segments"),
        (lambda i, p: save_mask(i.array - 300, p / "a.nii", i), "down to"),
        (lambda i, p: save_mask(i.array * 0.5, p / "a.nii", i), "a mask is a Mask"),
        (lambda i, p: save_mask(i.array > 3, p / "a.dcm", i), "source_series="),
        (lambda i, p: save_mask(i.array > 3, p / "a.dcm", i, names=["x" * 65]), "64 characters"),
        (lambda i, p: save_mask(i.array > 3, p / "a.dcm", i, names=["x"], codes={"y": ()}), "is no segment"),
        (lambda i, p: save_mask(i.array > 3, p / "a.dcm", i, names=["x"], codes={"x": ("1", "2")}), "a category and a type"),
    ],
)
def test_save__what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call(image_of((5, 6, 7)), tmp_path)
    assert list(tmp_path.iterdir()) == []


# DICOM SEG

STUDY = {
    **dict.fromkeys(["PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"], ""),
    "FrameOfReferenceUID": "1.2.3.9",
    "SliceThickness": "2.5",
}


@pytest.fixture
def stack(write_series: Callable[..., Path]) -> Callable[..., Path]:
    """stack(step=2.5, **tags) -> folder of nine oblique slices, shuffled by name; `step` < 0 numbers them downwards."""

    def write(step: float = 2.5, **tags: Any) -> Path:
        axes = np.array([[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8]])
        normal = np.cross(axes[0], axes[1])
        positions = [(np.array([-30.0, 12.0, 44.0]) + step * n * normal).round(6).tolist() for n in range(9)]
        numbers = {n: {"InstanceNumber": n + 1} for n in range(9)}
        volume = np.arange(9 * 24 * 20, dtype=np.int16).reshape(9, 24, 20)
        return write_series(
            volume, positions, change=numbers, ImageOrientationPatient=[*axes[0], *axes[1]], **{**STUDY, **tags}
        )

    return write


@pytest.mark.parametrize("step", [2.5, -2.5])
def test_save_mask__seg_round_trip_in_either_slice_order(tmp_path: Path, stack: Callable[..., Path], step: float) -> None:
    image = load_image(stack(step))
    layers = blobs(image, 4)
    layers[3] = False
    assert (layers[0] & layers[1]).any()
    again = check_round_trip(layers, tmp_path / "m.dcm", image, names=["liver", "Läsion", "c", "empty"])
    assert again.names == ("liver", "Läsion", "c", "empty")
    assert again.notes == ()
    check_round_trip(layers[:1], tmp_path / "one.dcm", image)
    check_round_trip(layers[3:], tmp_path / "none.dcm", image)


def test_save_mask__seg_holds_what_a_pacs_needs(tmp_path: Path, stack: Callable[..., Path]) -> None:
    source = stack(PatientID="P7", PatientName="Doe^J", StudyInstanceUID="1.2.3.4.5", AccessionNumber="A1")
    image = load_image(source)
    liver = ("10200004", "SCT", "Liver")
    organ = ("123037004", "SCT", "Anatomical Structure")
    save_mask(blobs(image, 2), tmp_path / "m.dcm", image, ["liver", "other"], codes={"liver": (organ, liver)})
    seg = pydicom.dcmread(tmp_path / "m.dcm")
    files = {d.SOPInstanceUID: d for d in (pydicom.dcmread(f) for f in source.iterdir())}
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert (seg.Modality, seg.SegmentationType, seg.BitsAllocated) == ("SEG", "BINARY", 1)
    assert (seg.PatientID, str(seg.PatientName), seg.StudyInstanceUID) == ("P7", "Doe^J", "1.2.3.4.5")
    assert (seg.AccessionNumber, seg.FrameOfReferenceUID) == ("A1", "1.2.3.9")
    series = seg.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == "1.2.3.4"
    assert seg.SeriesInstanceUID != "1.2.3.4"
    assert {r.ReferencedSOPInstanceUID for r in series.ReferencedInstanceSequence} == set(files)
    first, second = seg.SegmentSequence
    assert (first.SegmentLabel, first.SegmentAlgorithmType) == ("liver", "AUTOMATIC")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("medfm", __version__)
    # Every frame lies exactly on the slice it names.
    assert len(seg.PerFrameFunctionalGroupsSequence) == seg.NumberOfFrames
    for frame in seg.PerFrameFunctionalGroupsSequence:
        named = frame.DerivationImageSequence[0].SourceImageSequence[0]
        slice_ = files[named.ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == slice_.ImagePositionPatient
        assert named.SpatialLocationsPreserved == "YES"
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == slice_.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == slice_.PixelSpacing
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(2.5)


def test_save_mask__highdicom_reads_the_same(tmp_path: Path, stack: Callable[..., Path]) -> None:
    import highdicom

    image = load_image(stack())
    layers = blobs(image, 2)
    save_mask(layers, tmp_path / "m.dcm", image)
    volume = highdicom.seg.segread(tmp_path / "m.dcm").get_volume()
    # Its affine maps (slice, row, column) to LPS.
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    marked = np.argwhere(layers)
    mine = (lps @ np.c_[marked[:, 1:], np.ones(len(marked))].T)[:3].T
    found = np.argwhere(volume.array)
    theirs = (volume.affine @ np.c_[found[:, :3], np.ones(len(found))].T)[:3].T
    for segment in range(2):
        a = mine[marked[:, 0] == segment]
        b = theirs[found[:, 3] == segment]
        np.testing.assert_allclose(a[np.lexsort(a.round(2).T)], b[np.lexsort(b.round(2).T)], atol=1e-4)


@pytest.mark.parametrize(("charset", "name"), [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "王^小東"), (None, "Doe^J")])
def test_save_mask__names_in_any_script(tmp_path: Path, stack: Callable[..., Path], charset: str | None, name: str) -> None:
    """The patient's name survives a change of the character set that the segments' names need."""
    image = load_image(stack(SpecificCharacterSet=charset, PatientName=name))
    again = check_round_trip(blobs(image, 2), tmp_path / "m.dcm", image, names=["肝", "Leber"])
    assert again.names == ("肝", "Leber")
    assert str(pydicom.dcmread(tmp_path / "m.dcm").PatientName) == name


def test_save_mask__a_person_drew_it(tmp_path: Path, stack: Callable[..., Path]) -> None:
    image = load_image(stack())
    save_mask(blobs(image, 1), tmp_path / "m.dcm", image, algorithm="", description="Drawn by hand")
    seg = pydicom.dcmread(tmp_path / "m.dcm")
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "MANUAL"
    assert seg.SeriesDescription == "Drawn by hand"


def test_save_mask__one_series_of_a_mixed_folder(tmp_path: Path, stack: Callable[..., Path]) -> None:
    from medfm.io.dataset import series_files
    from medfm.io.group import find_series

    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, file in enumerate(sorted(stack().iterdir())):
        dataset = pydicom.dcmread(file)
        for series in ("1.2.3.4", "1.2.3.5"):
            dataset.SeriesInstanceUID = series
            dataset.SOPInstanceUID = f"1.9.{series[-1]}.{number}"
            dataset.save_as(mixed / f"{series}-{number}.dcm")
    found = find_series(series_files(mixed))
    assert len(found) == 2
    for series in found:
        image = load_image(series.path)
        check_round_trip(blobs(image, 2), tmp_path / "m.dcm", image)
        named = pydicom.dcmread(tmp_path / "m.dcm").ReferencedSeriesSequence[0].ReferencedInstanceSequence
        uids = {pydicom.dcmread(file).SOPInstanceUID for file in series.files}
        assert {r.ReferencedSOPInstanceUID for r in named} == uids


def test_save_mask__the_nifti_that_a_series_was_converted_to(tmp_path: Path, stack: Callable[..., Path]) -> None:
    from medfm.io.geometry import reorient

    source = stack()
    image = load_image(source)
    array, affine = reorient(image.array, image.affine, "RAS")
    save_image(replace(image, array=array, affine=affine), tmp_path / "ct.nii.gz")
    converted = load_image(tmp_path / "ct.nii.gz")
    layers = blobs(converted, 2)
    save_mask(layers, tmp_path / "m.dcm", converted, source_series=source)
    np.testing.assert_array_equal(load_mask(tmp_path / "m.dcm", converted).array, layers)
    shifted = replace(converted, affine=converted.affine @ np.diag([1.1, 1, 1, 1]))
    with pytest.raises(DataError, match="not on the grid"):
        save_mask(layers, tmp_path / "n.dcm", shifted, source_series=source)


def test_save_mask__a_resampled_image_keeps_its_own_grid(tmp_path: Path, stack: Callable[..., Path]) -> None:
    image = load_image(stack())
    finer = image.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.8, 0, 0], [0, 0, 0.7, 0], [0, 0, 0, 1.0]])
    grid = replace(image, array=np.zeros((30, 20, 11), np.int16), affine=finer)
    again = check_round_trip(blobs(grid, 2), tmp_path / "m.dcm", grid)
    assert again.notes == ()


def test_save_mask__a_film_is_named_by_its_instance(
    tmp_path: Path, write_dicom: Callable[..., Path], stack: Callable[..., Path]
) -> None:
    pixels = np.arange(30 * 20, dtype=np.uint16).reshape(30, 20)
    tags = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "PixelSpacing": [0.2, 0.1]}
    film = load_image(write_dicom(pixels, "a.dcm", **tags, **{k: v for k, v in STUDY.items() if k != "SliceThickness"}))
    other = load_image(write_dicom(pixels, "b.dcm", **tags))
    layers = np.zeros((2, 20, 30, 1), bool)
    layers[0, 3:8, 4:20] = True
    layers[1, 5:12, 2:9] = True
    again = check_round_trip(layers, tmp_path / "m.dcm", film)
    assert again.notes == ()
    with pytest.raises(DataError, match="drawn on another image"):
        load_mask(tmp_path / "m.dcm", other)
    with pytest.raises(DataError, match="size is not that"):
        load_mask(tmp_path / "m.dcm", load_image(stack()))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"FrameOfReferenceUID": None}, "FrameOfReferenceUID"),
        ({"StudyInstanceUID": ""}, "StudyInstanceUID"),
        ({"SeriesInstanceUID": ""}, "SeriesInstanceUID"),
    ],
)
def test_save_mask__what_the_source_lacks_is_named(
    tmp_path: Path, stack: Callable[..., Path], tags: dict[str, Any], message: str
) -> None:
    image = load_image(stack(**tags))
    with pytest.raises(DataError, match=message) as caught:
        save_mask(blobs(image), tmp_path / "m.dcm", image)
    assert "SECRET" not in str(caught.value)
    assert not (tmp_path / "m.dcm").exists()


def test_save_mask__headers_of_the_1980s(tmp_path: Path, stack: Callable[..., Path]) -> None:
    """Times with colons, no patient: what may be empty is left empty."""
    image = load_image(stack(StudyTime=None, PatientID=None, PatientName=None, SliceThickness=None))
    for file in Path(image.source).iterdir():
        dataset = pydicom.dcmread(file)
        dataset.add_new("StudyTime", "TM", "")
        dataset._dict[0x00080030] = dataset[0x00080030].__class__(0x00080030, "TM", "11:20:00", already_converted=True)
        dataset.save_as(file)
    check_round_trip(blobs(image), tmp_path / "m.dcm", image)


def test_save_mask__an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, stack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = load_image(stack())
    for name in ("m.dcm", "m.nii.gz"):
        (tmp_path / name).write_bytes(b"old")
        with monkeypatch.context() as patch:

            def stop(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(os, "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                save_mask(blobs(image), tmp_path / name, image)
        assert (tmp_path / name).read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.dcm", "m.nii.gz", "series"]


# Real images


def with_ids(files: list[Path], folder: Path) -> Path:
    """Copies whose anonymiser's gaps (UIDs) are filled, in `folder`."""
    folder.mkdir()
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        ids = {"StudyInstanceUID": "1.2.7", "SeriesInstanceUID": "1.2.7.1", "FrameOfReferenceUID": "1.2.7.9"}
        ids |= {"SOPInstanceUID": f"1.2.7.1.{number}", "SOPClassUID": dataset.file_meta.MediaStorageSOPClassUID}
        for keyword, value in ids.items():
            if not dataset.get(keyword):
                setattr(dataset, keyword, value)
        dataset.save_as(folder / file.name)
    return folder if len(files) > 1 else folder / files[0].name


def test_save_mask__real_ct_with_its_organs(tmp_path: Path, data_dir: Path) -> None:
    folder = data_dir / "ct3d_totalsegmentator"
    image = load_image(with_ids(sorted((folder / "exampleCTdicom").iterdir()), tmp_path / "ct"))
    mask = load_mask(folder / "exampleCTdicom_seg.nii.gz", image)
    for name in ("m.dcm", "m.nii.gz"):
        save_mask(mask, tmp_path / name, image)
        again = load_mask(tmp_path / name, image)
        assert again.names == mask.names
        np.testing.assert_array_equal(again.array, mask.array)


def test_save_mask__real_sagittal_mr(tmp_path: Path, data_dir: Path) -> None:
    image = load_image(data_dir / "dicom" / "mr_sag_mprage")
    check_round_trip(blobs(image, 2), tmp_path / "m.dcm", image)
    check_round_trip(blobs(image, 2), tmp_path / "m.nii.gz", image)


@pytest.mark.parametrize(
    "name",
    [
        "philips_enhanced/anatomical/001/IM-0001-0170-0001.dcm",
        "siemens_multiframe/anatomical/001/IM-0001-0001-0001.dcm",
        "hyperfine/anatomical/001/001.dcm",
    ],
)
def test_save_mask__real_enhanced_multi_frame(tmp_path: Path, data_dir: Path, name: str) -> None:
    image = load_image(with_ids([data_dir / "dicom" / "dicom2nifti" / name], tmp_path / "mf"))
    assert image.shape[2] == 8
    check_round_trip(blobs(image, 2), tmp_path / "m.dcm", image)
    frame = pydicom.dcmread(tmp_path / "m.dcm").PerFrameFunctionalGroupsSequence[0]
    assert "ReferencedFrameNumber" in frame.DerivationImageSequence[0].SourceImageSequence[0]


@pytest.mark.parametrize("name", ["RG1_J2KI.dcm", "US1_J2KI.dcm", "JPEG-LL.dcm", "color-pl.dcm"])
def test_save_mask__real_films(tmp_path: Path, data_dir: Path, name: str) -> None:
    image = load_image(data_dir / "dicom" / "pydicom_data" / name)
    layers = blobs(replace(image, array=image.array[:, :, :, 0] if image.array.ndim == 4 else image.array), 1)
    if name == "color-pl.dcm":  # a retired class that highdicom does not know
        with pytest.raises(DataError, match=r"save the mask as \.nii\.gz"):
            save_mask(layers, tmp_path / "m.dcm", image)
    else:
        check_round_trip(layers, tmp_path / "m.dcm", image)
    check_round_trip(layers, tmp_path / "m.nii.gz", image)
