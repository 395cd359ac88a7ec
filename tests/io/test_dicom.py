"""Real DICOM files in every encoding, refusals, and what errors may say."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medfm.errors import DataError
from medfm.io.dicom import age_in_years, read_dataset
from medfm.io.load import load_image, peek
from medfm.io.pixels import decode, quiet

Writer = Callable[..., Path]
LOSSLESS = [
    "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2",
    "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99",
    "JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90",
    "JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80",
    "JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70",
    "JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57",
    "LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1",
    "LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2",
    "RLELosslessTransferSyntax_1.2.840.10008.1.2.5",
]
LOSSY = {  # largest mean error in HU, measured once: the encoder's, not ours
    "JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91": 3.0,
    "JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81": 1.5,
    "JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50": 20.0,
    "JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51": 5.0,
}


@pytest.fixture
def encodings(data_dir: Path) -> Path:
    return data_dir / "dicom" / "transfer_syntaxes"


@pytest.mark.parametrize("name", LOSSLESS)
def test_load__lossless_encodings_decode_to_equal_pixels(encodings: Path, name: str) -> None:
    expected = load_image(encodings / "CTImage.dcm")
    image = load_image(encodings / f"CTImage.dcm_{name}.dcm")
    np.testing.assert_array_equal(image.array, expected.array)
    np.testing.assert_array_equal(image.affine, expected.affine)
    assert (image.array.dtype, image.intensity_units, int(image.array.min()), int(image.array.max())) == (
        np.dtype(np.int16),
        "HU",
        -3024,
        1378,
    )


@pytest.mark.parametrize(("name", "bound"), LOSSY.items())
def test_load__lossy_encodings_are_near(encodings: Path, name: str, bound: float) -> None:
    # Inside the body: outside it the encoders cut the padding differently.
    expected = load_image(encodings / "CTImage.dcm").array.astype(np.float32)
    image = load_image(encodings / f"CTImage.dcm_{name}.dcm").array.astype(np.float32)
    body = (expected > -200) & (expected < 1000)
    error = np.abs(image - expected)[body].mean()
    assert 0 < error < bound


@pytest.mark.parametrize(
    ("name", "uid"), [("JPEGProcess6_8", "1.2.840.10008.1.2.4.53"), ("JPEGProcess10_12", "1.2.840.10008.1.2.4.55")]
)
def test_load__retired_encodings_are_named(encodings: Path, name: str, uid: str) -> None:
    with pytest.raises(DataError) as caught:
        load_image(encodings / f"CTImage.dcm_{name}TransferSyntax_{uid}.dcm")
    assert uid in str(caught.value)
    assert "Non-Hierarchical" in str(caught.value)
    assert "convert it" in str(caught.value)


@pytest.mark.parametrize("number", range(1, 10))
def test_decode__equals_dcm2niix_in_nine_encodings(data_dir: Path, number: int) -> None:
    folder = data_dir / "dicom" / "dcm_qa_ts"
    stored, _ = decode(read_dataset(folder / "In" / f"{number}.dcm"), "x")
    volume = np.asarray(nibabel.load(folder / "Ref" / f"{number}.nii").dataobj)
    # The file is a mosaic of 6 x 6 tiles of 64 x 64; dcm2niix stores rows from the bottom.
    tiles = stored.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)[: volume.shape[2]]
    np.testing.assert_array_equal(volume[:, ::-1].transpose(2, 1, 0), tiles)


def test_load__monochrome1_film(data_dir: Path) -> None:
    image = load_image(data_dir / "dicom" / "pydicom_data" / "RG3_J2KR.dcm")
    assert (image.modality, image.photometric, image.view, image.shape) == ("CR", "MONOCHROME1", "AP", (1760, 1760, 1))
    assert (image.windows[0].center, image.windows[0].width) == (550, 1024)
    assert (int(image.array.min()), int(image.array.max()), image.bits_stored) == (0, 1023, 10)
    assert not image.spaced


def test_load__colour_in_every_encoding_agrees(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "pydicom_data"
    by_plane, by_pixel = load_image(folder / "color-pl.dcm"), load_image(folder / "color-px.dcm")
    assert by_plane.photometric == by_pixel.photometric == "RGB"
    np.testing.assert_array_equal(by_plane.array, by_pixel.array)
    reversible, lossy = load_image(folder / "US1_J2KR.dcm"), load_image(folder / "US1_J2KI.dcm")
    assert np.abs(reversible.array.astype(int) - lossy.array).mean() < 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pydicom_data/liver.dcm", r"segmentation \(SEG\)"),
        ("pydicom_data/emri_small.dcm", r"multi-frame \(10 frames\)"),
        ("transfer_syntaxes/no-pixel-data.dcm", r"structured report \(SR\)"),
    ],
)
def test_load__objects_that_are_no_single_image(data_dir: Path, name: str, reason: str) -> None:
    path = data_dir / "dicom" / name
    with pytest.raises(DataError, match=reason):
        load_image(path)
    assert peek(path).problem


def test_load__single_ct_slices(data_dir: Path) -> None:
    paths = sorted((data_dir / "dicom" / "ct_slices_ny_sbu").rglob("*.dcm"))[::5]
    for path in paths:
        image = load_image(path)
        assert image.intensity_units == "HU"
        assert image.array.dtype == np.int16
        dataset = pydicom.dcmread(path)
        stored = dataset.pixel_array
        expected = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        inside = stored != dataset.get("PixelPaddingValue", 1 << 20)
        assert inside.mean() > 0.7
        np.testing.assert_array_equal(image.array[:, :, 0].T[inside], expected[inside])
        np.testing.assert_array_equal(image.array[:, :, 0].T[~inside], expected[inside].min())


def test_peek__film_header(data_dir: Path) -> None:
    header = peek(data_dir / "dicom" / "pydicom_data" / "RG3_J2KR.dcm")
    assert (header.kind, header.modality, header.shape, header.view) == ("dicom", "CR", (1760, 1760, 1), "AP")
    assert (header.photometric, header.transfer_syntax) == ("MONOCHROME1", "1.2.840.10008.1.2.4.90")
    assert header.image_id
    assert header.study_id
    assert header.problem == ""


def test_peek__identifiers_stay_out_of_the_repr(write_dicom: Writer) -> None:
    tags = {"PatientSex": "F", "PatientAge": "018M", "BodyPartExamined": "CHEST"}
    header = peek(write_dicom(np.zeros((2, 2), np.uint8), **tags))
    assert (header.patient_id, header.study_id, header.series_id) == ("SECRET-ID", "1.2.3", "1.2.3.4")
    assert (header.sex, header.age, header.body_part) == ("F", 1.5, "CHEST")
    assert "SECRET" not in repr(header)
    assert "1.2.3" not in repr(header)


@pytest.mark.parametrize(
    ("text", "years"), [("045Y", 45), ("018M", 1.5), ("052W", 0.9966), ("000D", 0), ("63", 63), ("", None), ("old", None)]
)
def test_age_in_years(text: str, years: float | None) -> None:
    assert age_in_years(text) == (None if years is None else pytest.approx(years, abs=1e-3))


def test_load__truncated_pixels_are_refused_before_decoding(write_dicom: Writer) -> None:
    path = write_dicom(np.zeros((64, 64), np.uint16))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError) as caught:
        load_image(path)
    assert "SECRET" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_load__a_claim_beyond_the_file_allocates_nothing(write_dicom: Writer) -> None:
    path = write_dicom(np.zeros((2, 2), np.uint16), Rows=65535, Columns=65535)
    with pytest.raises(DataError, match=r"claims 8,589,672,450 bytes of pixels, the file holds 8"):
        load_image(path)


def test_load__a_compressed_claim_beyond_reason(encodings: Path, tmp_path: Path) -> None:
    dataset = read_dataset(encodings / f"CTImage.dcm_{LOSSLESS[3]}.dcm")
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(tmp_path / "bomb.dcm")
    with pytest.raises(DataError, match="claims 8,589,672,450 bytes"):
        load_image(tmp_path / "bomb.dcm")


@pytest.mark.parametrize("name", [LOSSLESS[2], LOSSLESS[3], LOSSLESS[4], LOSSLESS[8]])
def test_load__damaged_compressed_pixels(encodings: Path, tmp_path: Path, name: str) -> None:
    dataset = read_dataset(encodings / f"CTImage.dcm_{name}.dcm")
    data = bytearray(dataset.PixelData)
    data[20:60] = bytes(40)
    dataset.PixelData = bytes(data)
    dataset.save_as(tmp_path / "bad.dcm")
    with pytest.raises(DataError, match=r"cannot be decoded: transfer syntax .*1\.2\.840"):
        load_image(tmp_path / "bad.dcm")


def test_load__errors_and_warnings_hold_no_patient_data(
    write_dicom: Writer, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_dicom(np.zeros((2, 2), np.uint8), PatientAge="010Y")
    # An invalid age makes pydicom warn with the value.
    path.write_bytes(path.read_bytes().replace(b"010Y", b"S3CR"))
    load_image(path)
    peek(path)
    assert not [w for w in recwarn if "S3CR" in str(w.message)]
    assert "S3CR" not in caplog.text


def test_quiet__threads_that_leave_in_another_order_restore_everything() -> None:
    logger = logging.getLogger("pydicom")
    before = (list(warnings.filters), logger.level)
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    assert logger.level > logging.CRITICAL
    first.__exit__(None, None, None)
    assert logger.level > logging.CRITICAL
    second.__exit__(None, None, None)
    assert (list(warnings.filters), logger.level) == before


def test_load__file_without_preamble(write_dicom: Writer, tmp_path: Path) -> None:
    path = write_dicom(np.array([[1, 2], [3, 4]], np.uint8))
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(load_image(bare).array, load_image(path).array)


def test_load__not_dicom_and_vanished(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"hello world, this is text" * 30)
    with pytest.raises(DataError, match="DICOM"):
        load_image(tmp_path / "a.dcm")
    shutil.copy(data_dir / "dicom" / "transfer_syntaxes" / "CTImage.dcm", tmp_path / "b.dcm")
    (tmp_path / "b.dcm").write_bytes((tmp_path / "b.dcm").read_bytes()[:900])
    with pytest.raises(DataError, match=r"b\.dcm"):
        load_image(tmp_path / "b.dcm")


def test_load__unreadable_photometric(write_dicom: Writer) -> None:
    with pytest.raises(DataError, match="photometric interpretation 'CMYK'"):
        load_image(write_dicom(np.zeros((2, 2), np.uint8), PhotometricInterpretation="CMYK"))


def test_load__for_processing_is_noted(write_dicom: Writer) -> None:
    image = load_image(write_dicom(np.zeros((2, 2), np.uint16), Modality="DX", PresentationIntentType="FOR PROCESSING"))
    assert any("FOR PROCESSING" in note for note in image.notes)


def test_load__jpeg2000_film_at_a_part_of_its_resolution(data_dir: Path) -> None:
    path = data_dir / "dicom" / "pydicom_data" / "RG3_J2KR.dcm"
    whole, small = load_image(path), load_image(path, min_size=(400, 500))
    assert small.shape == (880, 880, 1)  # half: a quarter would have 440 columns
    np.testing.assert_allclose(small.spacing[:2], [2, 2])
    assert any("1/2 of its resolution" in note for note in small.notes)
    # Low-pass samples lie on every second pixel.
    assert np.corrcoef(whole.array[::2, ::2].ravel(), small.array.ravel())[0, 1] > 0.999
    assert load_image(path, min_size=(1000, 1000)).shape == whole.shape


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PixelSpacing": ["nan", "nan"]}, "PixelSpacing is not two numbers"),
        ({"PixelSpacing": ["1e6", "1e6"]}, "PixelSpacing is not two numbers"),
        ({"PixelSpacing": ["0.5", "-0.5"]}, "PixelSpacing is not two numbers"),
        ({"PixelSpacing": [1, 0]}, "PixelSpacing is not two numbers"),
        ({"PixelSpacing": None}, "a position and no pixel spacing"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing, so the image has no known place"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "ImageOrientationPatient is damaged"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"ImagePositionPatient": ["inf", 0, 0]}, "ImagePositionPatient is damaged"),
        ({"RescaleSlope": "nan"}, "RescaleSlope is not one finite number"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"RescaleIntercept": "inf"}, "RescaleIntercept is not one finite number"),
        ({"RescaleSlope": "1e300"}, "not finite"),
    ],
)
def test_load__damaged_numbers_are_refused(write_dicom: Writer, tags: dict, reason: str) -> None:
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0], "PixelSpacing": [1, 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_dicom(np.arange(4, dtype=np.uint16).reshape(2, 2), **{**place, **tags})
    with pytest.raises(DataError, match=reason) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    if "Rescale" not in reason and "finite" not in reason:
        assert peek(path).problem


def test_load__zero_spacing_and_thickness_are_placeholders(write_dicom: Writer) -> None:
    pixels = np.zeros((2, 2), np.uint16)
    film = load_image(write_dicom(pixels, PixelSpacing=[0, 0], ImagerPixelSpacing=[0.2, 0.1]))
    assert (film.spaced, film.spacing[:2]) == (True, pytest.approx((0.1, 0.2)))
    assert any("PixelSpacing is zero" in note and "ImagerPixelSpacing" in note for note in film.notes)
    assert not load_image(write_dicom(pixels, PixelSpacing=[0, 0])).spaced
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0], "PixelSpacing": [1, 1]}
    assert any("1 mm is a placeholder" in note for note in load_image(write_dicom(pixels, **place, SliceThickness=0)).notes)


def test_load__a_number_labelled_as_another_is_refused(write_dicom: Writer) -> None:
    path = write_dicom(np.zeros((2, 2), np.uint16), RescaleSlope="1.0 ", RescaleIntercept="0")
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x53\x10DS", b"\x28\x00\x53\x10US"))
    with pytest.raises(DataError, match="RescaleSlope is not one finite number"):
        load_image(path)


def test_load__bytes_behind_the_pixels(write_dicom: Writer) -> None:
    path = write_dicom(np.arange(4, dtype=np.uint16).reshape(2, 2))
    sound = path.read_bytes()
    path.write_bytes(sound + bytes(512))  # a block filled with zeros
    assert load_image(path).shape == (2, 2, 1)
    path.write_bytes(sound + b"\x13\x07garbage")
    with pytest.raises(DataError, match="after its pixel data follow bytes that are no DICOM"):
        load_image(path)


@pytest.mark.parametrize(
    ("tags", "units"),
    [
        ({"Units": "BQML"}, "BQML"),
        ({"Units": "GML"}, "SUV"),
        ({"Units": "GML", "SUVType": "LBM"}, "arbitrary"),
        ({"Units": "CNTS"}, "arbitrary"),
    ],
)
def test_load__units_of_pet(write_dicom: Writer, tags: dict, units: str) -> None:
    image = load_image(write_dicom(np.ones((2, 2), np.uint16), Modality="PT", RescaleSlope="0.25", **tags))
    assert (image.intensity_units, image.array[0, 0, 0]) == (units, 0.25)


@pytest.mark.parametrize("kind", ["HU", "US", "Houndsfield Unit", "HOUNSFIELD UNITS", None])
def test_load__hounsfield_by_any_name(write_dicom: Writer, kind: str | None) -> None:
    pixels = np.array([[0, 1024], [1000, 1100]], np.uint16)
    tags = {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "-1024", "RescaleType": kind}
    assert load_image(write_dicom(pixels, **tags)).intensity_units == "HU"
    maps = {**tags, "ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]}
    assert load_image(write_dicom(pixels, **maps)).intensity_units == "arbitrary"
    assert load_image(write_dicom(pixels, **{**tags, "RescaleType": "MGML"})).intensity_units == "arbitrary"


def test_read_file__explicit_elements_under_an_implicit_syntax(write_dicom: Writer) -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    path = write_dicom(pixels)
    data = path.read_bytes()
    claim = b"1.2.840.10008.1.2.1\0"
    assert data.count(claim) == 1
    path.write_bytes(data.replace(claim, claim[:17] + bytes(3)))
    np.testing.assert_array_equal(load_image(path).array[:, :, 0].T, pixels)


def test_read_file__pixels_that_are_not_square(write_dicom: Writer) -> None:
    image = load_image(write_dicom(np.zeros((2, 2), np.uint16), PixelAspectRatio=["2", "1"]))
    assert not image.spaced
    assert "PixelAspectRatio 2:1" in image.notes[0]
    assert load_image(write_dicom(np.zeros((2, 2), np.uint16), PixelAspectRatio=["1", "1"])).notes == ()


def test_read_file__frames_that_follow_nothing_stated(write_dicom: Writer) -> None:
    tags = {"NumberOfFrames": 3, "Rows": 2, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", "Modality": "OT"}
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 4)
    image = load_image(write_dicom(pixels, **tags))
    assert image.last_axis == "time"
    assert "does not say what its frames follow" in image.notes[0]
    assert load_image(write_dicom(pixels, **tags, FrameTime="40", FrameIncrementPointer=0x00181063)).notes == ()
