"""Grouping: what makes one image, keys, and what a folder stands for."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.dataset import read_header
from medfm.io.group import find_series, scan_file
from medfm.io.load import load_image, load_series, peek

Writer = Callable[..., Path]
AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
SCOUT = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def ramp(count: int, start: int = 0) -> np.ndarray:
    return (start + np.arange(count)[:, None, None] * 100 + np.arange(6).reshape(2, 3)).astype(np.uint16)


def line(*heights: float) -> list[list[float]]:
    return [[1.0, 2.0, z] for z in heights]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def three_planes(write_series: Writer) -> Path:
    """One scout series of three slices in each of three planes."""
    turn = {n: {"ImageOrientationPatient": [AXIAL, CORONAL, SAGITTAL][n // 3]} for n in range(9)}
    steps = [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    places = [[s * (n % 3) * 5.0 for s in steps[n // 3]] for n in range(9)]
    return write_series(ramp(9), places, change=turn, ImageType=SCOUT)


def test_find_series__three_planes_are_three_stacks(three_planes: Path) -> None:
    found = find_series(files_of(three_planes))
    assert [(s.kind, len(s.files), s.header.shape, s.problem, s.scout) for s in found] == [
        ("stack", 3, (3, 2, 3), "", True)
    ] * 3
    assert len({s.key for s in found}) == 3
    for series in found:
        image = load_image(series.path)
        assert series.path == image.source == f"{three_planes}#series={series.key}"
        np.testing.assert_array_equal(image.array, load_series(series).array)
        assert peek(series.path) == series.header
        assert load_image(f"{series.path}").spacing[2] == pytest.approx(5)


def test_load_image__a_mixed_folder_lists_its_references(three_planes: Path) -> None:
    with pytest.raises(DataError, match="differ in orientation by up to 90 degrees; load one by its reference") as caught:
        load_image(three_planes)
    assert all(s.path in str(caught.value) for s in find_series(files_of(three_planes)))
    assert "differ in orientation" in peek(three_planes).problem
    with pytest.raises(DataError, match="holds no series 000000000000; it holds 3"):
        load_image(f"{three_planes}#series=000000000000")


def test_find_series__scouts_are_set_apart(write_series: Writer, tmp_path: Path) -> None:
    folder = write_series(ramp(4), line(0, 1, 2, 3))
    alone = find_series(files_of(folder))[0]
    assert (alone.path, alone.repairs) == (str(folder), ())
    scout = write_series(ramp(1, 7), [[0, 0, 50]], folder="scout", ImageType=SCOUT, ImageOrientationPatient=CORONAL)
    shutil.copy(files_of(scout)[0], folder / "zz.dcm")
    main, other = sorted(find_series(files_of(folder)), key=lambda s: -len(s.files))
    assert (main.path, main.kind, main.key) == (str(folder), "stack", alone.key)
    assert main.repairs == ("1 scout (ImageType LOCALIZER) set apart",)
    assert (other.path, other.kind, other.scout) == (str(folder / "zz.dcm"), "image", True)
    image = load_image(folder)
    assert image.shape == (3, 2, 4)
    assert main.repairs[0] in image.notes


def test_find_series__keys_depend_on_the_series_alone(write_series: Writer, tmp_path: Path) -> None:
    folder = write_series(ramp(4), line(0, 1, 2, 3))
    key = find_series(files_of(folder))[0].key
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for n, path in enumerate(reversed(files_of(folder))):
        shutil.copy(path, moved / f"{n}.dcm")
    stranger = write_series(ramp(2), line(0, 9), folder="b", SeriesInstanceUID="5.5")
    for path in files_of(stranger):
        shutil.copy(path, moved)
    keys = {s.key: s for s in find_series(files_of(moved))}
    assert key in keys
    assert keys[key].path == f"{moved}#series={key}"
    np.testing.assert_array_equal(load_image(keys[key].path).array, load_image(folder).array)
    # A part of a folder is grouped as if the rest were not there, but never called by the folder's name.
    part = find_series([p for p in files_of(moved) if len(p.stem) == 1])
    assert [s.path for s in part] == [f"{moved}#series={key}"]


def test_find_series__never_across_folders(write_series: Writer) -> None:
    first, second = write_series(ramp(2), line(0, 1)), write_series(ramp(2), line(2, 3), folder="two")
    assert [s.path for s in find_series([*files_of(first), *files_of(second)])] == [str(first), str(second)]


def test_find_series__scanned_elsewhere(write_series: Writer) -> None:
    folder = write_series(ramp(3), line(0, 1, 2))
    files = files_of(folder)
    scanned = pickle.loads(pickle.dumps([scan_file(path) for path in files]))
    by_files, by_scan = find_series(files), find_series(files, scanned=scanned)
    by_datasets = find_series(files, datasets=[read_header(path).dataset for path in files])
    assert [(s.key, s.path, s.header) for s in by_scan] == [(s.key, s.path, s.header) for s in by_files]
    assert [s.key for s in by_datasets] == [s.key for s in by_files]
    assert "SECRET" not in repr(by_files) + repr(scanned)


@pytest.mark.parametrize(
    ("change", "kind", "problem"),
    [
        ({"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "no image", "holds a structured report (SR)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "segmentation", "holds a segmentation (SEG)"),
        ({"Modality": "RTSTRUCT"}, "contours", "holds radiotherapy contours"),
        ({"Rows": None, "Columns": None}, "no image", "holds no pixels (MR Image Storage)"),
    ],
)
def test_find_series__objects_that_are_no_images(write_series: Writer, change: dict[str, Any], kind: str, problem: str) -> None:
    folder = write_series(ramp(4), line(0, 1, 2, 9), change={3: {"SeriesInstanceUID": "7.7", **change}})
    found = {s.kind: s for s in find_series(files_of(folder))}
    assert set(found) == {"stack", kind}
    assert found[kind].problem.startswith(problem)
    if "pixels" in problem:
        # An image class without pixels is a broken slice of no one knows what.
        with pytest.raises(DataError, match="holds no pixels"):
            load_image(folder)
    else:
        image = load_image(folder)
        assert image.shape == (3, 2, 3)
        assert any("other object in the folder left alone" in note for note in image.notes)


def test_find_series__unreadable_file(write_series: Writer) -> None:
    folder = write_series(ramp(3), line(0, 1, 2))
    key = find_series(files_of(folder))[0].key
    (folder / "bad.dcm").write_bytes(b"rubbish" * 99)
    stack, bad = find_series(files_of(folder))
    assert (stack.path, bad.kind, bad.path) == (f"{folder}#series={key}", "no image", str(folder / "bad.dcm"))
    assert bad.problem.startswith("is not a DICOM file")
    with pytest.raises(DataError, match=r"bad\.dcm': is not a DICOM file; 1 of 4 files are not readable"):
        load_image(folder)
    assert load_image(stack.path).notes == ("1 files of the folder are not readable",)


def test_find_series__magnitude_and_phase_are_two_stacks(write_series: Writer) -> None:
    change = {n: {"ImageType": ["ORIGINAL", "PRIMARY", "P" if n % 2 else "M"], "InstanceNumber": n + 1} for n in range(6)}
    folder = write_series(ramp(6), line(0, 0, 1, 1, 2, 2), change=change)
    found = find_series(files_of(folder))
    assert [(s.kind, s.header.shape, s.problem) for s in found] == [("stack", (3, 2, 3), "")] * 2
    values = sorted(load_image(s.path).array[0, 0].tolist() for s in found)
    assert values == [[0, 200, 400], [100, 300, 500]]


def test_find_series__image_type_that_merely_varies_splits_nothing(write_series: Writer) -> None:
    change = {n: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", *["ADD"] * (n % 2)]} for n in range(4)}
    found = find_series(files_of(write_series(ramp(4), line(0, 1, 2, 3), change=change)))
    assert [(s.kind, s.problem) for s in found] == [("stack", "")]


def test_find_series__films_are_images_of_their_own(write_dicom: Writer) -> None:
    paths = [write_dicom(np.zeros((4, 3), np.uint16), name=f"f/{n}.dcm", ViewPosition=v) for n, v in enumerate(("PA", "LL"))]
    found = find_series(paths)
    assert [(s.kind, s.path, s.header.view) for s in found] == [
        ("image", str(paths[0]), "PA"),
        ("image", str(paths[1]), "LATERAL"),
    ]
    assert found[0].key != found[1].key


def test_find_series__real_files(data_dir: Path) -> None:
    root = data_dir / "dicom" / "dicom2nifti"
    kinds = {
        "failing/gantrytilting/001": ("stack", "gantry tilt"),
        "failing/sliceincrement/001": ("stack", "missing slices: 1"),
        "failing/notavolume/001": ("stack", "all 4 images lie at one position"),
        "ge/fmri/001": ("4d", ""),
        "hyperfine/anatomical/001": ("multiframe", ""),
        "ge/anatomical/001": ("stack", ""),
    }
    for name, (kind, problem) in kinds.items():
        (series,) = find_series(files_of(root / name))
        assert (series.kind, series.problem[: len(problem)]) == (kind, problem), name
        assert bool(series.problem) == bool(problem)
    mosaics = find_series([data_dir / "dicom" / "dcm_qa_ts" / "In" / "1.dcm"])
    assert [(s.kind, s.header.shape) for s in mosaics] == [("mosaic", (64, 64, 35))]


def test_find_series__keys_do_not_move_when_films_arrive(write_dicom: Writer) -> None:
    place = {"SeriesInstanceUID": "1.2.9"}
    for number in (5, 7):
        write_dicom(ramp(1, number)[0], name=f"f/{number}.dcm", SOPInstanceUID=f"1.2.9.{number}", **place)
    folder = write_dicom(ramp(1, 6)[0], name="g/6.dcm", SOPInstanceUID="1.2.9.6", **place).parent.parent / "f"
    before = {s.header.image_id: s.key for s in find_series(files_of(folder))}
    for number in (3, 6):
        write_dicom(ramp(1, number)[0], name=f"f/{number}.dcm", SOPInstanceUID=f"1.2.9.{number}", **place)
    after = {s.header.image_id: s.key for s in find_series(files_of(folder))}
    assert len(set(after.values())) == 4
    assert before.items() <= after.items()
    assert after["1.2.9.6"] == find_series(files_of(folder.parent / "g"))[0].key


def test_find_series__keys_of_echoes_do_not_move(write_series: Writer) -> None:
    # Echoes beside each other, told apart within each place by the instance number.
    def keys(echoes: tuple[int, ...]) -> dict[int, str]:
        change, places = {}, []
        for number, echo in enumerate(echoes * 4):
            place, time = divmod(number, 2 * len(echoes))
            places.append([0.0, 0.0, float(place)])
            change[number] = {
                "EchoTime": echo,
                "AcquisitionTime": f"10000{time}",
                "SOPInstanceUID": f"1.2.{100 - echo}.{number}",
            }
        folder = write_series(ramp(len(places)), places, folder=str(echoes), change=change)
        return {int(dict(s.slices[0].order)["EchoTime"]): s.key for s in find_series(files_of(folder))}

    two, three = keys((10, 20)), keys((10, 20, 30))
    assert len(set(three.values())) == 3
    assert two.items() <= three.items()


def test_find_series__orientation_within_half_a_pixel(write_series: Writer) -> None:
    turned = [0.999976, 0.006981, 0, -0.006981, 0.999976, 0]  # 0.4 degrees: 3.6 pixels of 512
    for size, count in ((512, 2), (16, 1)):
        pixels = np.broadcast_to(np.arange(4, dtype=np.uint16)[:, None, None] * 10, (4, size, size)).copy()
        folder = write_series(pixels, line(0, 1, 2, 3), folder=str(size), change={3: {"ImageOrientationPatient": turned}})
        assert len(find_series(files_of(folder))) == count


def test_find_series__lost_part_of_a_concatenation(write_enhanced: Writer) -> None:
    def part(number: int) -> Path:
        frames = [
            {"PlanePositionSequence": {"ImagePositionPatient": [0.0, 0.0, 3.0 * (2 * number + n)]}, "FrameContentSequence": {}}
            for n in range(2)
        ]
        extra = {"ConcatenationUID": "1.2.7", "InConcatenationNumber": number + 1, "InConcatenationTotalNumber": 3}
        return write_enhanced(ramp(2, 10 * number), frames, name=f"c/{number}.dcm", **extra)

    part(0)
    folder = part(2).parent
    with pytest.raises(DataError, match="2 of the 3 files of a concatenation"):
        load_image(folder)
    part(1)
    assert load_image(folder).shape == (3, 2, 6)
