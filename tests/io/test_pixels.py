"""Stored pixels: bits, frames, colour, every codec against pydicom, and headers that contradict their pixels."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_color_lut
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless, RLELossless

from medfm.errors import DataError
from medfm.io.pixels import decode, decode_frames, reduction

Writer = Callable[..., Path]

# Files that pydicom carries: name -> how far medfm may be off (12-bit DCT, which codecs round differently).
CARRIED = {
    "CT_small.dcm": 0,
    "MR_small_RLE.dcm": 0,
    "MR_small_bigendian.dcm": 0,
    "MR_small_jp2klossless.dcm": 0,
    "MR_small_jpeg_ls_lossless.dcm": 0,
    "MR_small_padded.dcm": 0,
    "J2K_pixelrep_mismatch.dcm": 0,
    "JPEG2000.dcm": 0,
    "JPGExtended.dcm": 1,
    "SC_rgb_small_odd.dcm": 0,
    "SC_rgb_small_odd_big_endian.dcm": 0,
    "SC_rgb_small_odd_jpeg.dcm": 0,
    "SC_rgb_rle_16bit_2frame.dcm": 0,
    "SC_rgb_rle_32bit.dcm": 0,
    "SC_rgb_jpeg_dcmtk.dcm": 0,
    "SC_rgb_dcmtk_+eb+cr.dcm": 0,
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": 0,
    "SC_rgb_jpeg_app14_dcmd.dcm": 0,
    "SC_jpeg_no_color_transform.dcm": 0,
    "SC_jpeg_no_color_transform_2.dcm": 0,
    "SC_rgb_jpeg_lossy_gdcm.dcm": 0,
    "SC_rgb_jls_lossy_line.dcm": 0,
    "SC_rgb_jls_lossy_sample.dcm": 0,
    "SC_rgb_gdcm_KY.dcm": 0,
    "SC_ybr_full_422_uncompressed.dcm": 0,
    "GDCMJ2K_TextGBR.dcm": 0,
    "examples_palette.dcm": 0,
    "rtdose_rle.dcm": 0,
}


def carried(name: str) -> Any:
    return pydicom.dcmread(str(get_testdata_file(name, download=False)))


@pytest.mark.parametrize("name", CARRIED)
def test_decode_frames__equals_pydicom(name: str) -> None:
    dataset = carried(name)
    expected = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, dataset)
        expected = (expected >> 8).astype(np.uint8) if expected.max() > 255 else expected
    frames = list(decode_frames(dataset, name))
    assert len(frames) == int(dataset.get("NumberOfFrames", 1))
    found = np.stack([array for array, _ in frames]) if len(frames) > 1 else frames[0][0]
    assert found.dtype.isnative
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.int64) - expected).max() <= CARRIED[name]
    assert frames[0][1] == ("RGB" if found.shape[-1] == 3 and found.ndim > 2 else dataset.PhotometricInterpretation)
    assert decode(dataset, name)[0].flags.writeable


def test_decode__one_picture_in_lossless_colour_encodings() -> None:
    expected, _ = decode(carried("SC_rgb_rle.dcm"), "x")
    for name in ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_rle_2frame.dcm"):
        np.testing.assert_array_equal(decode(carried(name), name)[0], expected)


def test_decode__a_colour_jpeg_as_dcmtk_decoded_it() -> None:
    jpeg, decoded = (decode(carried(name), name)[0] for name in ("SC_rgb_jpeg.dcm", "SC_rgb_jpeg_dcmd.dcm"))
    np.testing.assert_array_equal(jpeg, decoded)


def test_decode__full_range_ybr_by_the_standards_formula(write_dicom: Writer) -> None:
    # PS3.3 C.7.6.3.1.2: Y = 0.2990 R + 0.5870 G + 0.1140 B, CB and CR around 128.
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.float64)
    matrix = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    ybr = np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)
    dataset = pydicom.dcmread(write_dicom(ybr, PhotometricInterpretation="YBR_FULL"))
    found, photometric = decode(dataset, "x")
    assert photometric == "RGB"
    assert np.abs(found - rgb).max() <= 2


# Bits


def test_decode__signed_values_whose_unused_bits_are_zero(write_dicom: Writer) -> None:
    values = np.array([[-2048, -1, 0, 2047]], np.int16)
    dataset = pydicom.dcmread(write_dicom(values & 0x0FFF, bits=12))
    np.testing.assert_array_equal(decode(dataset, "x")[0], values)


def test_decode__overlay_bits_are_cut_off(write_dicom: Writer) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)
    path = write_dicom(values | 0x1000, bits=12)
    dataset = pydicom.dcmread(path)
    with pytest.raises(DataError, match="outside the 12 that BitsStored names"):
        decode(dataset, "x")
    dataset.add_new((0x6000, 0x0102), "US", 12)  # the overlay lies in bit 12
    np.testing.assert_array_equal(decode(dataset, "x")[0], values)


def test_decode__padding_may_lie_outside_the_stored_bits(write_dicom: Writer) -> None:
    values = np.array([[5, 63536, 7]], np.uint16)
    dataset = pydicom.dcmread(write_dicom(values, bits=12, PixelPaddingValue=63536))
    np.testing.assert_array_equal(decode(dataset, "x")[0], values)


@pytest.mark.parametrize(
    "tags",
    [
        {"HighBit": 15},
        {"BitsStored": 17},
        {"BitsStored": None},
        {"BitsAllocated": 12},
        {"PixelRepresentation": 2},
        {"SamplesPerPixel": 3},
        {"PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": "YBR_RCT", "SamplesPerPixel": 3},
        {"PhotometricInterpretation": "CMYK"},
        {"Rows": 3},
        {"Rows": 0},
        {"Columns": 15},
        {"NumberOfFrames": 2},
    ],
    ids=str,
)
def test_decode__contradictions_are_refused(write_dicom: Writer, tags: dict[str, Any]) -> None:
    path = write_dicom(np.full((4, 16), 1000, np.uint16), bits=12, **tags)
    with pytest.raises(DataError) as caught:
        decode(pydicom.dcmread(path), str(path))
    assert str(path) in str(caught.value)


# Frames


def test_decode_frames__bits_packed_across_bytes(write_dicom: Writer) -> None:
    frames = np.random.default_rng(0).integers(0, 2, (5, 3, 7), dtype=np.uint8)
    path = write_dicom(np.zeros((3, 7), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=5)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    np.testing.assert_array_equal([array for array, _ in decode_frames(dataset, "x")], frames)
    np.testing.assert_array_equal(decode(dataset, "x", frame=3)[0], frames[3])
    with pytest.raises(DataError, match="no frame 6"):
        decode(dataset, "x", frame=5)


def test_decode_frames__deflated_and_run_length_bits(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "pydicom_data"
    for plain in ("liver", "liver_nonbyte_aligned"):
        expected = pydicom.dcmread(folder / f"{plain}.dcm").pixel_array
        for name in (f"{plain}_deflate.dcm", f"{plain}_rle.dcm", f"{plain}_j2k.dcm"):
            found = [array for array, _ in decode_frames(pydicom.dcmread(folder / name), name)]
            np.testing.assert_array_equal(found, expected)


def test_decode__a_deflated_frame_of_another_length(write_dicom: Writer) -> None:
    dataset = pydicom.dcmread(write_dicom(np.zeros((8, 8), np.uint8)))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.8.1")
    for size, good in ((64, True), (63, False), (80, False), (10_000_000, False)):
        packer = zlib.compressobj(9, wbits=-15)
        dataset.PixelData = encapsulate([packer.compress(bytes(size)) + packer.flush()])
        if good:
            assert decode(dataset, "x")[0].shape == (8, 8)
        else:
            with pytest.raises(DataError, match="deflated frame"):
                decode(dataset, "x")


def compressed(write_dicom: Writer, uid: str, shape: tuple[int, ...] = (40, 60), **options: Any) -> tuple[Any, np.ndarray]:
    ramp = np.add.outer(np.arange(shape[0]), 3 * np.arange(shape[1])) * 7
    pixels = (ramp + np.random.default_rng(0).integers(0, 30, shape)).astype(np.uint16)
    dataset = pydicom.dcmread(write_dicom(pixels, bits=12))
    dataset.compress(uid, **options)
    return dataset, pixels


@pytest.mark.parametrize("uid", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("change", [{"Rows": 39}, {"Rows": 41}, {"Columns": 61}, {"Columns": 30, "Rows": 80}], ids=str)
def test_decode__the_codestream_knows_its_size(write_dicom: Writer, uid: str, change: dict[str, int]) -> None:
    dataset, pixels = compressed(write_dicom, uid)
    np.testing.assert_array_equal(decode(dataset, "x")[0], pixels)
    for keyword, value in change.items():
        setattr(dataset, keyword, value)
    if uid == RLELossless and change.get("Rows") == 80:
        return  # as many pixels: run lengths do not know rows
    with pytest.raises(DataError, match=r"codestream has 40 rows, 60 columns|cannot be decoded: transfer syntax RLE"):
        decode(dataset, "x")


@pytest.mark.parametrize("uid", [JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, RLELossless])
def test_decode__truncated_codestreams(write_dicom: Writer, uid: str) -> None:
    dataset, _ = compressed(write_dicom, uid, **({"jls_error": 2} if uid == JPEGLSNearLossless else {}))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    for keep in (len(frame) // 2, len(frame) - 6, 100, 3):
        dataset.PixelData = encapsulate([frame[:keep]])
        with pytest.raises(DataError, match=r"cannot be decoded|from 24 compressed bytes"):
            decode(dataset, "x")


def test_decode_frames__as_many_as_the_header_says(write_dicom: Writer) -> None:
    dataset, pixels = compressed(write_dicom, JPEGLSLossless)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData, dataset.NumberOfFrames = encapsulate([frame] * 3), 3
    assert [np.array_equal(array, pixels) for array, _ in decode_frames(dataset, "x")] == [True] * 3
    for wrong in (2, 4):
        dataset.NumberOfFrames = wrong
        with pytest.raises(DataError, match="frames"):
            list(decode_frames(dataset, "x"))


def test_decode__a_syntax_without_decoder_is_named(write_dicom: Writer) -> None:
    dataset = pydicom.dcmread(write_dicom(np.zeros((4, 4), np.uint8)))
    dataset.PixelData = encapsulate([bytes(8)])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    with pytest.raises(DataError, match=r"MPEG2 Main Profile .*1\.2\.840\.10008\.1\.2\.4\.100"):
        decode(dataset, "x")


# Reduced resolution


def test_decode__reduced_jpeg2000(write_dicom: Writer) -> None:
    smooth = np.rint(1500 + 1000 * np.sin(np.arange(256) / 40)[:, None] * np.cos(np.arange(200) / 30)).astype(np.uint16)
    dataset = pydicom.dcmread(write_dicom(smooth, bits=12))
    dataset.compress(JPEG2000Lossless)
    np.testing.assert_array_equal(decode(dataset, "x", reduce=0)[0], smooth)
    for times in (1, 2, 3):
        small, _ = decode(dataset, "x", reduce=times)
        step = 2**times
        # Sample (i, j) of the low-pass band lies at (2^n i, 2^n j).
        assert small.shape == smooth[::step, ::step].shape
        assert np.abs(small.astype(int) - smooth[::step, ::step]).mean() < 20


@pytest.mark.parametrize(
    ("shape", "smallest", "times"),
    [
        ((256, 200), (64, 50), 2),
        ((256, 200), (65, 50), 1),
        ((256, 200), (300, 300), 0),
        ((257, 201), (33, 26), 1),
        ((256, 200), (1, 1), 3),
    ],
)
def test_reduction__stops_above_the_wanted_size(
    write_dicom: Writer, shape: tuple[int, int], smallest: tuple[int, int], times: int
) -> None:
    dataset, _ = compressed(write_dicom, JPEG2000Lossless, shape)
    assert reduction(dataset, "x", smallest) == times or (smallest == (1, 1) and reduction(dataset, "x", smallest) >= times)
    side = decode(dataset, "x", reduce=reduction(dataset, "x", smallest))[0].shape
    assert all(n >= min(wanted, whole) for n, wanted, whole in zip(side, smallest, shape, strict=True))


def test_reduction__only_jpeg2000(write_dicom: Writer) -> None:
    dataset, _ = compressed(write_dicom, JPEGLSLossless)
    assert reduction(dataset, "x", (1, 1)) == 0
    assert reduction(pydicom.dcmread(write_dicom(np.zeros((9, 9), np.uint8))), "x", (1, 1)) == 0
