"""Cards of chest films, each on a tiny tree of the set's own layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medfm.data.index import index
from medfm.data.index_config import IndexConfig
from medfm.data.index_report import IndexReport

Write = Callable[..., Path]


def run(card: str, root: Path) -> IndexReport:
    return index(IndexConfig(card=card, root=root, out=root.parent / "out" / "m.parquet"))


def rows(report: IndexReport) -> dict[str, dict[str, object]]:
    return {r["image"]: r for r in report.manifest.frame.to_dict("records")}


def reasons(report: IndexReport) -> dict[str, int]:
    return {reason: n for reason, (n, _) in report.reasons.items()}


def test_rsna_pneumonia(tmp_path: Path, film: Write) -> None:
    root = tmp_path / "rsna"
    for name in ("a", "b", "c", "unlisted"):
        film(root / f"stage_2_train_images/{name}.dcm", PatientID=name)
    film(root / "stage_2_test_images/t.dcm")
    (root / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\na,,,,,0\nb,264,152,213,379,1\nb,562,152,256,453,1\nc,,,,,0\n"
    )
    (root / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\na,Normal\nb,Lung Opacity\nb,Lung Opacity\nc,No Lung Opacity / Not Normal\n"
    )
    report = run("rsna_pneumonia", root)
    found = rows(report)
    assert set(found) == {f"stage_2_train_images/{n}.dcm" for n in "abc"}
    labels = [
        [found[f"stage_2_train_images/{n}.dcm"][f"label:{f}"] for f in ("Pneumonia", "No Finding", "Lung Opacity")]
        for n in "abc"
    ]
    assert labels[0][:2] == [0, 1]
    assert labels[1] == [1, 0, 1]
    assert labels[2] == [0, 0, 0]
    assert reasons(report) == {"no row in stage_2_train_labels.csv": 1}
    assert found["stage_2_train_images/a.dcm"]["modality"] == "DX"  # from the header
    assert report.manifest.meta["card"] == "rsna_pneumonia"


def test_siim_pneumothorax(tmp_path: Path, film: Write) -> None:
    root = tmp_path / "siim"
    names = {
        k: f"dicom-images-train/1.2.{i}/1.2.{i}.1/1.2.826.{i}.dcm" for i, k in enumerate(("yes", "no", "twice", "unlisted"))
    }
    for name in names.values():
        film(root / name)
    (root / "train-rle.csv").write_text(
        "ImageId, EncodedPixels\n1.2.826.0,557374 2 1015 8\n1.2.826.1, -1\n1.2.826.2,100 5\n1.2.826.2,900 7\n"
    )
    report = run("siim_pneumothorax", root)
    found = rows(report)
    assert {k: found[n]["label:Pneumothorax"] for k, n in names.items() if n in found} == {"yes": 1, "no": 0, "twice": 1}
    assert reasons(report) == {"no row in train-rle.csv": 1}


@pytest.mark.parametrize(("card", "edema"), [("vindr_cxr", 0), ("vindr_cxr:majority", 0), ("vindr_cxr:any_reader", 1)])
def test_vindr_cxr__readers_are_joined(tmp_path: Path, film: Write, card: str, edema: int) -> None:
    root = tmp_path / "vindr"
    for name in ("train/0a", "train/0b", "test/0c"):
        film(root / f"{name}.dicom", PatientID=name)
    head = "Edema,Nodule/Mass,No finding"
    (root / "annotations").mkdir()
    (root / "annotations/image_labels_train.csv").write_text(
        f"image_id,rad_id,{head},Other diseases\n"
        "0a,R1,0,1,0,0\n0a,R2,1,1,0,1\n0a,R3,0,0,0,0\n"
        "0b,R1,0,0,1,0\n0b,R8,0,0,1,0\n0b,R9,0,0,1,0\n"
    )
    (root / "annotations/image_labels_test.csv").write_text(f"image_id,{head},Other disease\n0c,1,0,0,0\n")
    report = run(card, root)
    found = rows(report)
    first = found["train/0a.dicom"]
    assert (first["label:Edema"], first["label:Nodule/Mass"], first["label:No Finding"]) == (edema, 1, 0)
    assert found["train/0b.dicom"]["label:No Finding"] == 1
    assert (found["test/0c.dicom"]["split"], found["test/0c.dicom"]["label:Edema"]) == ("test", 1)
    assert {found[f"train/0{n}.dicom"]["split"] for n in "ab"} <= {"train", "val"}
    assert not any("disease" in name for name in report.labels)


def test_brax(tmp_path: Path, png: Write) -> None:
    root = tmp_path / "brax"
    images = [f"images/id_{p}/Study_{p}.1/Series_{p}.1.{k}/image-{p}-{k}.png" for p, k in (("ab", 1), ("ab", 2), ("cd", 1))]
    for name in images:
        png(root / name)
    table = "DicomPath,PngPath,PatientID,PatientSex,PatientAge,StudyDate,No Finding,Edema,ViewPosition,Manufacturer\n"
    for name, edema, view in zip(images, ("1.0", "1.0", "-1.0"), ("PA", "L", "AP"), strict=True):
        table += f"Anonymized_DICOMs/x.dcm,{name},x,F,55,20160101,,{edema},{view},Fuji\n"
    (root / "master_spreadsheet_update.csv").write_text(table)
    report = run("brax", root)
    found = rows(report)
    assert [found[n]["view"] for n in images] == ["PA", "LATERAL", "AP"]
    assert [found[n]["label:Edema"] for n in images] == [1, 1, -1]
    assert found[images[0]]["patient_id"] == found[images[1]]["patient_id"] == "id_ab"
    assert (found[images[0]]["age"], found[images[0]]["sex"]) == (55, "F")
    assert found[images[0]]["label:No Finding"] != found[images[0]]["label:No Finding"]
    assert report.manifest.meta["language"] == "pt"


OPEN_I = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">Positive XXXX test</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH>{mesh}</MeSH>{images}</eCitation>
"""


@pytest.mark.parametrize("places", [("NLMCXR_png", "NLMCXR_reports/ecgen-radiology"), (".", "ecgen-radiology")])
def test_open_i(tmp_path: Path, png: Write, places: tuple[str, str]) -> None:
    root = tmp_path / "open_i"
    stems = {1: ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"], 2: ["CXR2_IM-0652-1001"], 3: ["CXR3_1_IM-1384-1001"]}
    texts = {
        1: ("The heart is\n  normal in size.", "No acute disease.", "<major>normal</major>"),
        2: ("", "Borderline cardiomegaly.", "<major>Cardiomegaly/borderline</major><major>Opacity/lung/upper lobe</major>"),
        3: ("", "", "<major>No Indexing</major>"),
    }
    (root / places[1]).mkdir(parents=True)
    for uid, (findings, impression, mesh) in texts.items():
        images = "".join(f'<parentImage id="{s}"><caption>x</caption></parentImage>' for s in stems[uid])
        (root / places[1] / f"{uid}.xml").write_text(
            OPEN_I.format(uid=uid, findings=findings, impression=impression, mesh=mesh, images=images)
        )
        for stem in stems[uid]:
            png(root / places[0] / f"{stem}.png")
    png(root / places[0] / "CXR9_IM-2407-1001.png")
    (root / "indiana_projections.csv").write_text(
        "uid,filename,projection\n1,1_IM-0001-3001.dcm.png,Lateral\n1,1_IM-0001-4001.dcm.png,Frontal\n"
    )
    report = run("open_i", root)
    found = {Path(str(k)).stem: v for k, v in rows(report).items()}
    assert set(found) == {s for listed in stems.values() for s in listed}
    lateral, frontal = (found[s] for s in stems[1])
    assert frontal["report"] == lateral["report"] == "FINDINGS: The heart is normal in size.\n\nIMPRESSION: No acute disease."
    assert (lateral["view"], frontal["view"]) == ("LATERAL", "FRONTAL")
    assert frontal["patient_id"] == lateral["patient_id"] == "1"
    second, third = found[stems[2][0]], found[stems[3][0]]
    assert second["report"] == "IMPRESSION: Borderline cardiomegaly."
    assert third["report"] == ""
    assert report.labels == {
        "Cardiomegaly": {"1": 1, "0": 2, "-1": 0, "": 1},
        "Opacity": {"1": 1, "0": 2, "-1": 0, "": 1},
    }
    assert sum(reasons(report).values()) == 1
    assert all("no row in" in r and "other files" in r for r in reasons(report)) or len(texts) <= 3


def test_medpix(tmp_path: Path, png: Write) -> None:
    import json

    root = tmp_path / "MedPix-2.0"
    names = ["MPX1009_synpic46283", "MPX1009_synpic46295", "MPX1024_synpic40275", "MPX2000_synpic1"]
    for name in names:
        png(root / f"MedPix-2-0/images/{name}.png")

    def lines(path: str, *entries: dict[str, object]) -> None:
        file = root / "splitted_dataset" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(json.dumps(e) for e in entries) + "\n")

    def description(image: str, uid: str, kind: str) -> dict[str, object]:
        about = {"Caption": f"Caption of {image}.", "Age": "45", "Sex": "male", "Plane": "Axial"}
        return {"Type": kind, "U_id": uid, "image": image, "location": "Head", "Description": about}

    lines("descriptions_train.jsonl", *(description(n, "MPX1009", "MR") for n in names[:2]))
    lines("descriptions_train_1.jsonl", description(names[0], "MPX1009", "MR"))
    lines("descriptions_test.jsonl", description(names[2], "MPX1024", "CT"))
    lines(
        "data_train.jsonl", {"U_id": "MPX1009", "TAC": [], "MRI": names[:2], "Case": {"Title": "Glioma", "Findings": "A mass."}}
    )
    lines("data_test.jsonl", {"U_id": "MPX1024", "TAC": names[2:3], "MRI": [], "Case": {"Title": "Bleed", "Findings": ""}})
    report = run("medpix", root)
    found = {Path(str(k)).stem: v for k, v in rows(report).items()}
    assert set(found) == set(names[:3])
    assert found[names[0]]["report"] == f"FINDINGS: A mass.\n\nCAPTION: Caption of {names[0]}."
    assert found[names[2]]["report"] == f"CAPTION: Caption of {names[2]}."
    assert [found[n]["split"] for n in names[:3]] == ["train", "train", "test"]
    assert [found[n]["modality"] for n in names[:3]] == ["MR", "MR", "CT"]
    assert "Glioma" not in report.manifest.frame.to_csv()  # the diagnosis is no text about the image
    assert list(reasons(report)) == ["Type is '', the card keeps CT, MR"]


@pytest.mark.parametrize("card", ["roco", "roco:v1"])
def test_roco(tmp_path: Path, jpg: Write, card: str) -> None:
    root = tmp_path / "roco"
    if card == "roco":
        names = {s: f"{s}_images/{s}/ROCOv2_2023_{s}_000001.jpg" for s in ("train", "valid", "test")}
        for split, name in names.items():
            jpg(root / name)
            (root / f"{split}_captions.csv").write_text(f'ID,Caption\n{Path(name).stem},"CT, axial: {split}"\n')
    else:
        names = {s: f"data/{s}/radiology/images/ROCO_0000{i}.jpg" for i, s in enumerate(("train", "validation", "test"))}
        for split, name in names.items():
            jpg(root / name)
            (root / f"data/{split}/radiology/captions.txt").write_text(f"{Path(name).stem}\t CT, axial: {split}\n")
        jpg(root / "data/train/non-radiology/images/ROCO_99999.jpg")
    report = run(card, root)
    found = rows(report)
    assert {n: (found[n]["report"], found[n]["split"]) for n in names.values()} == {
        n: (f"CT, axial: {s}", "val" if s.startswith("val") else s) for s, n in names.items()
    }
    assert len(found) == 3
