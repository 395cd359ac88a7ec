"""Segmentation objects: real ones in every transfer syntax, and ones that highdicom writes here."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medfm.errors import DataError
from medfm.io.load import load_image
from medfm.io.masks import load_mask
from medfm.types import Image

SHAPE = (20, 24, 9)  # columns, rows, slices


def liver_affine() -> np.ndarray:
    affine = np.diag([-0.810547, -0.810547, 1.0, 1.0])
    affine[:3, 3] = 235.2, 226.8, -128.69
    return affine


@pytest.mark.parametrize("size", [512, 510])
def test_load_mask__liver_is_one_in_all_transfer_syntaxes(size: int, data_dir: Path, blank: Callable[..., Image]) -> None:
    stem = "liver" if size == 512 else "liver_nonbyte_aligned"
    folder = data_dir / "dicom" / "pydicom_data"
    found = {
        suffix: load_mask(folder / f"{stem}{suffix}.dcm", blank((size, size, 3), liver_affine()))
        for suffix in ("", "_rle", "_j2k", "_deflate", "_expb")
        if (folder / f"{stem}{suffix}.dcm").is_file()
    }
    assert {"", "_rle", "_j2k", "_deflate"} <= set(found)
    stored = pydicom.dcmread(folder / f"{stem}.dcm")
    # Frames go from z = -128.69 upwards, as the slices of the image do.
    expected = stored.pixel_array.astype(bool).transpose(2, 1, 0)
    assert expected.sum() == 107098
    for mask in found.values():
        assert mask.names == ("Liver",)
        np.testing.assert_array_equal(mask.array[0], expected)


@pytest.fixture
def source(write_series: Callable[..., Path]) -> Path:
    """A stack of nine oblique slices, shuffled by name."""
    axes = np.array([[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8]])
    normal = np.cross(axes[0], axes[1])
    positions = [(np.array([-30.0, 12.0, 44.0]) + 2.5 * n * normal).tolist() for n in range(9)]
    volume = np.arange(9 * 24 * 20, dtype=np.int16).reshape(9, 24, 20)
    return write_series(
        volume,
        positions,
        ImageOrientationPatient=[*axes[0], *axes[1]],
        FrameOfReferenceUID="1.2.3.9",
        SliceThickness="2.5",
        **dict.fromkeys(["PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"], ""),
    )


def layers_of(count: int = 3, seed: int = 0) -> np.ndarray:
    """(S, i, j, k) that overlap, with empty slices, and the last layer empty."""
    layers = np.random.default_rng(seed).random((count, *SHAPE)) < 0.3
    layers[..., [0, 4, 8]] = False
    layers[1:2, ..., 2:] = False
    layers[2:] = False
    return layers


def write_seg(path: Path, source: Path, layers: np.ndarray, kind: str, edit: Any = None, **more: Any) -> Path:
    """A SEG by highdicom, of (S, i, j, k) bool, or values in [0, 1] where `kind` is FRACTIONAL."""
    import highdicom
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    files = [pydicom.dcmread(f, stop_before_pixels=True) for f in source.iterdir()]
    normal = np.cross(*np.reshape(files[0].ImageOrientationPatient, (2, 3)).astype(float))
    files.sort(key=lambda d: float(normal @ np.array(d.ImagePositionPatient, float)))
    described = [
        SegmentDescription(n, f"part {n}", codes.SCT.Tissue, codes.SCT.Liver, "MANUAL") for n in range(1, len(layers) + 1)
    ]
    pixels = layers.transpose(3, 2, 1, 0)
    seg = highdicom.seg.Segmentation(
        files,
        pixels.astype(np.float32) if kind == "FRACTIONAL" else pixels.astype(np.uint8),
        kind,
        described,
        *(highdicom.UID(), 1, highdicom.UID(), 1, "m", "m", "1", "0"),
        **more,
    )
    if edit is not None:
        edit(seg)
    seg.save_as(path)
    return path


@pytest.mark.parametrize("omit", [True, False])
def test_load_mask__binary_keeps_overlap_and_empty_segments(source: Path, tmp_path: Path, omit: bool) -> None:
    layers = layers_of()
    path = write_seg(tmp_path / "s.dcm", source, layers, "BINARY", omit_empty_frames=omit)
    mask = load_mask(path, load_image(source))
    np.testing.assert_array_equal(mask.array, layers)
    assert mask.names == ("part 1", "part 2", "part 3")
    assert mask.notes == ()


@pytest.mark.parametrize("omit", [True, False])
def test_load_mask__agrees_with_highdicom(source: Path, tmp_path: Path, omit: bool) -> None:
    """Frame by frame through the source image each one names, an independent way to the same place."""
    import highdicom

    path = write_seg(tmp_path / "s.dcm", source, layers_of(), "BINARY", omit_empty_frames=omit)
    image = load_image(source)
    mask = load_mask(path, image)
    uids = []
    to_voxel = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)
    for file in source.iterdir():
        header = pydicom.dcmread(file, stop_before_pixels=True)
        uids.append((round((to_voxel @ [*map(float, header.ImagePositionPatient), 1.0])[2]), header.SOPInstanceUID))
    pixels = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [uid for _, uid in sorted(uids)], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(mask.array, pixels.transpose(3, 2, 1, 0).astype(bool))


def test_load_mask__label_map(source: Path, tmp_path: Path) -> None:
    layers = layers_of()
    layers[1] &= ~layers[0]
    path = write_seg(tmp_path / "s.dcm", source, layers, "LABELMAP")
    assert pydicom.dcmread(path).SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    mask = load_mask(path, load_image(source))
    np.testing.assert_array_equal(mask.array, layers)
    assert mask.names == ("part 1", "part 2", "part 3")


def test_load_mask__fractions_are_cut_at_half(source: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, *SHAPE))
    values[0, 0, 0, 0], values[0, 1, 0, 0] = 126 / 255, 128 / 255
    path = write_seg(tmp_path / "s.dcm", source, values, "FRACTIONAL")
    mask = load_mask(path, load_image(source))
    stored = np.round(values * 255)
    np.testing.assert_array_equal(mask.array, stored * 2 >= 255)
    assert mask.notes == ("a fractional segmentation was cut at half of its largest value",)


def test_load_mask__frames_in_any_order(source: Path, tmp_path: Path) -> None:
    layers = layers_of()

    def shuffle(seg: Any) -> None:
        frames, pixels = list(seg.PerFrameFunctionalGroupsSequence), seg.pixel_array
        order = np.random.default_rng(1).permutation(len(frames))
        seg.PerFrameFunctionalGroupsSequence = [frames[n] for n in order]
        seg.PixelData = np.packbits(pixels[order].ravel(), bitorder="little").tobytes()

    path = write_seg(tmp_path / "s.dcm", source, layers, "BINARY", shuffle)
    np.testing.assert_array_equal(load_mask(path, load_image(source)).array, layers)


def test_load_mask__a_turned_image_and_a_finer_one(source: Path, tmp_path: Path, blank: Callable[..., Image]) -> None:
    layers = layers_of()
    path = write_seg(tmp_path / "s.dcm", source, layers, "BINARY")
    image = load_image(source)
    turned = image.affine[:, [2, 0, 1, 3]].copy()
    mask = load_mask(path, blank((9, 20, 24), turned, source))
    np.testing.assert_array_equal(mask.array, layers.transpose(0, 3, 1, 2))
    fine = image.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    mask = load_mask(path, blank((40, 48, 9), fine, source))
    np.testing.assert_array_equal(mask.array, layers.repeat(2, 1).repeat(2, 2))
    assert mask.notes == ("the mask's grid differs from the image's: resampled by the nearest voxel",)


def test_load_mask__frames_on_every_third_slice_stay_there(source: Path, tmp_path: Path) -> None:
    """Their smallest distance is not their slice thickness."""
    layers = layers_of(1)
    layers[..., [2, 3, 5, 6]] = False
    path = write_seg(tmp_path / "s.dcm", source, layers, "BINARY")
    mask = load_mask(path, load_image(source))
    np.testing.assert_array_equal(mask.array, layers)


def test_load_mask__names_and_only(source: Path, tmp_path: Path) -> None:
    layers = layers_of()
    path = write_seg(tmp_path / "s.dcm", source, layers, "BINARY")
    mask = load_mask(path, load_image(source), names={2: "second"}, only=["second"])
    assert mask.names == ("second",)
    np.testing.assert_array_equal(mask.array, layers[1:2])
    with pytest.raises(DataError, match="no segment named 'part 2'"):
        load_mask(path, load_image(source), names={2: "second"}, only=["part 2"])


def test_load_mask__another_frame_of_reference_is_refused(source: Path, tmp_path: Path) -> None:
    path = write_seg(
        tmp_path / "s.dcm", source, layers_of(), "BINARY", lambda seg: setattr(seg, "FrameOfReferenceUID", "1.2.3.8")
    )
    with pytest.raises(DataError, match="another frame of reference") as caught:
        load_mask(path, load_image(source))
    assert "1.2.3.8" not in str(caught.value)


def frame(seg: Any, number: int) -> Any:
    return seg.PerFrameFunctionalGroupsSequence[number]


def move(seg: Any, number: int, by: float) -> None:
    place = frame(seg, number).PlanePositionSequence[0]
    frame(seg, number).PlanePositionSequence = deepcopy(frame(seg, number).PlanePositionSequence)
    position = np.array(place.ImagePositionPatient, float)
    frame(seg, number).PlanePositionSequence[0].ImagePositionPatient = (position + by * np.array([0.48, -0.64, 0.6])).tolist()


def turn(seg: Any, number: int) -> None:
    item = pydicom.Dataset()
    item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    frame(seg, number).PlaneOrientationSequence = [item]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.PerFrameFunctionalGroupsSequence.pop(), "frames are described"),
        (lambda s: s.pop("SegmentSequence"), "describes no segments"),
        (lambda s: s.SegmentSequence.append(s.SegmentSequence[0]), "described twice"),
        (lambda s: setattr(s, "SegmentationType", "SURFACE"), "SegmentationType"),
        (
            lambda s: setattr(frame(s, 0).SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 9),
            "names no segment",
        ),
        (lambda s: frame(s, 1).pop("PlanePositionSequence"), "no place in space"),
        (lambda s: turn(s, 1), "differ in orientation"),
        (lambda s: move(s, 1, 1.25), "unevenly"),
        (lambda s: setattr(frame(s, 1), "PlanePositionSequence", frame(s, 0).PlanePositionSequence), "at one position"),
        (lambda s: setattr(s, "PixelData", s.PixelData[:100]), "truncated"),
        (lambda s: (setattr(s, "Rows", 60000), setattr(s, "Columns", 60000)), "truncated"),
        (lambda s: setattr(s, "Modality", "CT") or setattr(s, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "neither"),
    ],
)
def test_load_mask__faults_are_named(edit: Any, message: str, source: Path, tmp_path: Path) -> None:
    path = write_seg(tmp_path / "s.dcm", source, layers_of(), "BINARY", edit)
    with pytest.raises(DataError, match=message) as caught:
        load_mask(path, load_image(source))
    assert "s.dcm" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_load_mask__damaged_packed_frames_are_named(data_dir: Path, tmp_path: Path, blank: Callable[..., Image]) -> None:
    for name in ("liver_rle.dcm", "liver_deflate.dcm"):
        content = (data_dir / "dicom" / "pydicom_data" / name).read_bytes()
        path = tmp_path / name
        path.write_bytes(content[:-800] + bytes(800))
        with pytest.raises(DataError, match=r"damaged|truncated"):
            load_mask(path, blank((512, 512, 3), liver_affine()))
