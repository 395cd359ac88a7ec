"""What is written: the same bytes for the same seed, valid DICOM, tables that agree with the files."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medfm.data.phantom.config import PhantomConfig
from medfm.data.phantom.findings import LABELS
from medfm.data.phantom.generate import generate
from medfm.data.phantom.projection import BITS
from medfm.data.phantom.study import schedule, simulate
from medfm.errors import ConfigError, DataError

SIZE = 64


def digest(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def table(folder: Path, name: str = "reports") -> list[dict[str, str]]:
    with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("films") / "phantom"
    return generate("chest_xray", 40, 3, out, size=SIZE, workers=2, progress=False)


def test_generate__same_bytes_for_any_n_and_workers(films: Path, tmp_path: Path) -> None:
    again = digest(generate("chest_xray", 6, 3, tmp_path / "few", size=SIZE, workers=1, progress=False))
    many = digest(films)
    studies = [name for name in again if name.startswith(("images/", "masks/", ".studies/"))]
    assert len(studies) >= 18
    assert {name: again[name] for name in studies} == {name: many[name] for name in studies}
    assert table(films)[:6] == table(tmp_path / "few")[:6]
    other = digest(generate("chest_xray", 6, 4, tmp_path / "other", size=SIZE, workers=1, progress=False))
    assert not set(other.values()) & {again[name] for name in studies}


def test_generate__goes_on_where_it_stopped(films: Path, tmp_path: Path) -> None:
    out = generate("chest_xray", 4, 3, tmp_path / "p", size=SIZE, workers=1, progress=False)
    whole = digest(out)
    rows = table(out)
    kept, cut, lost = (out / rows[i]["image"] for i in (0, 1, 2))
    before = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:100])
    lost.unlink()
    generate("chest_xray", 4, 3, out, size=SIZE, workers=1, progress=False)
    assert digest(out) == whole
    assert kept.stat().st_mtime_ns == before
    grown = table(generate("chest_xray", 7, 3, out, size=SIZE, workers=1, progress=False))
    assert kept.stat().st_mtime_ns == before
    assert len({row["study_id"] for row in grown}) == 7


def test_generate__refuses_other_folders_and_bad_arguments(films: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seed=3, asked for 5"):
        generate("chest_xray", 4, 5, films, size=SIZE, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(DataError, match="is no phantom"):
        generate("chest_xray", 4, 3, tmp_path / "mine", size=SIZE, progress=False)
    for wrong in ({"kind": "chest_mri"}, {"n": 0}, {"seed": -1}, {"size": 32}, {"size": 5000}, {"workers": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            generate(**{"out": tmp_path / "x", "progress": False, **wrong})  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="sise"):
        PhantomConfig(out=tmp_path, sise=3)  # type: ignore[call-arg]


def test_films__are_valid_dicom_and_agree_with_the_table(films: Path) -> None:
    rows = table(films)
    seen: dict[str, set[str]] = {"photometric": set(), "syntax": set(), "modality": set(), "view": set()}
    instances = set()
    for row in rows:
        ds = pydicom.dcmread(films / row["image"])
        assert ds.pixel_array.shape == (SIZE, SIZE)
        assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (16, 12, 11)
        assert ds.pixel_array.max() <= 4095
        assert (ds.PatientID, ds.Modality, ds.PatientSex) == (row["patient_id"], row["modality"], row["sex"])
        assert ds.PatientID.startswith("PHANTOM-")
        assert str(ds.PatientName).startswith("PHANTOM^")
        assert ds.PatientAge == f"{int(row['age']):03d}Y"
        assert ds.ViewPosition == {"LATERAL": "LL"}.get(row["view"], row["view"])
        assert list(ds.PatientOrientation) == (["P", "F"] if row["view"] == "LATERAL" else ["L", "F"])
        assert all(str(u).startswith("2.25.") for u in (ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID))
        assert float(ds.WindowWidth) > 300
        instances.add(ds.SOPInstanceUID)
        seen["photometric"].add(ds.PhotometricInterpretation)
        seen["syntax"].add(str(ds.file_meta.TransferSyntaxUID))
        seen["modality"].add(row["modality"])
        seen["view"].add(row["view"])
    assert len(instances) == len(rows)
    assert seen["photometric"] == {"MONOCHROME1", "MONOCHROME2"}
    assert seen["modality"] == {"CR", "DX"}
    assert seen["view"] == {"PA", "AP", "LATERAL"}
    assert "1.2.840.10008.1.2.1" in seen["syntax"]
    assert len(seen["syntax"]) >= 3


def test_films__pixels_are_the_simulated_ones_inverted_where_monochrome1(films: Path) -> None:
    kinds = set()
    for visit in schedule("chest_xray", 40, 3, SIZE):
        study = simulate(visit)
        view = study.views[0]
        if (view.inverted, view.compression) in kinds:
            continue
        kinds.add((view.inverted, view.compression))
        ds = pydicom.dcmread(films / "images" / view.name)
        expected = 4095 - view.film.values if view.inverted else view.film.values
        np.testing.assert_array_equal(ds.pixel_array, expected)
        # The same display either way: what the window's ends show as black and white is mirrored with the pixels.
        low = float(ds.WindowCenter) - 0.5 - (float(ds.WindowWidth) - 1) / 2
        center, width = view.film.window
        plain = center - 0.5 - (width - 1) / 2
        assert low == (4095 - (plain + width - 1) if view.inverted else plain)
    assert {inverted for inverted, _ in kinds} == {True, False}
    assert len({compression for _, compression in kinds}) >= 3


def test_films__load_through_medfm_with_masks_on_their_grid(films: Path) -> None:
    from medfm.io.load import load_image

    for row in table(films)[:8]:
        film, mask = load_image(films / row["image"]), load_image(films / row["mask"])
        assert film.shape == mask.shape == (SIZE, SIZE, 1)
        np.testing.assert_allclose(film.affine, mask.affine, atol=1e-4)
        assert film.view == row["view"]
        bits = mask.array.astype(np.int64)[:, :, 0]
        assert {"Heart", "Left Lung", "Right Lung"} <= {name for name, bit in BITS.items() if (bits & bit).any()}
        if row["view"] != "LATERAL":
            columns = {name: np.argwhere(bits & BITS[f"{name} Lung"])[:, 0].mean() for name in ("Left", "Right")}
            assert columns["Left"] > columns["Right"]


def test_tables__labels_boxes_questions_and_splits(films: Path) -> None:
    rows = table(films)
    by_patient: dict[str, set[str]] = {}
    for row in rows:
        assert {row[f"label:{name}"] for name in LABELS} <= {"1", "0", "-1"}
        by_patient.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert set.union(*by_patient.values()) <= {"train", "val", "test"}
    labels = {row["image"]: row for row in rows}
    boxes = table(films, "boxes")
    for box in boxes:
        assert 0 <= int(box["x0"]) < int(box["x1"]) <= SIZE
        assert 0 <= int(box["y0"]) < int(box["y1"]) <= SIZE
        assert labels[box["image"]][f"label:{box['finding']}"] != "0"
        if box["side"] and labels[box["image"]]["view"] != "LATERAL" and box["finding"] != "Support Devices":
            assert ((int(box["x0"]) + int(box["x1"])) / 2 > SIZE / 2) == (box["side"] == "left")
    assert len(boxes) > 15
    asked = table(films, "questions")
    assert {q["type"] for q in asked} == {"open", "closed"}
    assert {q["image"] for q in asked} == set(labels)
    assert "say nothing about patients" in (films / "README.md").read_text()


def test_films__index_by_the_card(films: Path, tmp_path: Path) -> None:
    from medfm.data.index import index
    from medfm.data.index_config import IndexConfig

    frame = index(IndexConfig(card="phantom", root=films, out=tmp_path / "m.parquet")).manifest.frame
    assert len(frame) == len(table(films))
    assert {f"label:{name}" for name in LABELS} <= set(frame.columns)
    assert set(frame["view"]) == {"PA", "AP", "LATERAL"}


def test_prompts__every_label_exists() -> None:
    from medfm.text.prompts import load_prompts

    sets = [load_prompts("phantom"), load_prompts("phantom_sides")]
    named = {f.label for s in sets for f in s.findings} | {label for s in sets for f in s.findings for label, _ in f.where}
    assert named <= set(LABELS)
    assert {f.label for f in sets[0].findings} == {x for x in LABELS if not x.startswith(("Left ", "Right ", "Bilateral "))}
    assert {f.label for f in sets[1].findings} == {x for x in LABELS if x.startswith("Left ")}


def test_generate__without_masks(tmp_path: Path) -> None:
    out = generate("chest_xray", 2, 0, tmp_path / "p", size=64, workers=1, masks=False, progress=False)
    assert not (out / "masks").exists()
    assert {row["mask"] for row in table(out)} == {""}
    assert json.loads((out / "phantom.json").read_text())["masks"] is False


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scans") / "phantom"
    return generate("chest_ct", 4, 0, out, size=64, workers=1, progress=False)


def test_ct__series_volume_and_labels_agree(scans: Path) -> None:
    from medfm.io.load import load_image

    for row in table(scans):
        volume, series = load_image(scans / row["image"]), load_image(scans / row["series"])
        mask = load_image(scans / row["mask"])
        assert series.modality == "CT"
        assert series.intensity_units == "HU"
        # The same voxel in space, however each array's axes run.
        for image in (series, mask):
            index = np.array([[10, 20, 15, 1], [30, 12, 53, 1]]).T
            there = np.rint(np.linalg.inv(image.affine) @ volume.affine @ index).astype(int)[:3].T
            assert ((there >= 0) & (there < 64)).all()
            if image is series:
                here = volume.array[10, 20, 15], volume.array[30, 12, 53]
                assert tuple(float(image.array[tuple(t)]) for t in there) == tuple(map(float, here))
        hu, labels = np.asarray(volume.array), np.asarray(mask.array)
        assert hu.min() >= -1024
        assert np.median(hu[:2, :2]) == pytest.approx(-1000, abs=15)
        lungs = hu[(labels == 1) | (labels == 2)]
        assert -800 < np.median(lungs) < -650
        assert 20 < np.median(hu[labels == 3]) < 60
        assert hu.max() > 300  # bone
        where = np.argwhere(labels == 2).mean(axis=0) - np.argwhere(labels == 1).mean(axis=0)
        left = volume.affine[:3, :3] @ where
        assert left[0] < -50  # RAS+: the left lung has the smaller x


def test_ct__same_bytes_again(scans: Path, tmp_path: Path) -> None:
    again = digest(generate("chest_ct", 1, 0, tmp_path / "p", size=64, workers=1, progress=False))
    mine = {k: v for k, v in again.items() if k.startswith(("images/", "volumes/", "masks/"))}
    assert len(mine) == 66
    assert mine.items() <= digest(scans).items()


def test_ct__findings_have_their_density_and_place() -> None:
    from medfm.data.phantom.volume import VALUES

    seen = set()
    for visit in schedule("chest_ct", 24, 5, 64):
        study = simulate(visit)
        volume = study.views[0].volume
        for finding in study.findings:
            value = VALUES.get(f"{finding.side.capitalize()} {finding.name}")
            if value is None or finding.hedged or finding.extent == "small":
                continue
            where = volume.labels == value
            assert where.any(), finding
            middle = np.median(volume.hu[where])
            low, high = {
                "Pleural Effusion": (-10, 40),
                "Pneumothorax": (-1024, -950),
                "Consolidation": (-320, 0),
                "Nodule": (500, 900),
            }[finding.name]
            assert low < middle < high
            # LPS: x and the first index grow to the patient's left.
            assert (np.argwhere(where)[:, 0].mean() > 31.5) == (finding.side == "left")
            seen.add(finding.name)
    assert len(seen) == 4
