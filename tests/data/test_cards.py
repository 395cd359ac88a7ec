"""Every card's real layout in small, indexed by the card."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from medfm.data.cards import card_names, load_card, parse_card
from medfm.data.index import index
from medfm.data.index_config import IndexConfig
from medfm.data.index_report import IndexReport
from medfm.errors import ConfigError, DataError

Write = Callable[..., Path]
CHEXPERT_LABELS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def run(card: str, root: Path, **options: object) -> IndexReport:
    return index(IndexConfig(card=card, root=root, out=root.parent / "out" / "m.parquet", **options))  # type: ignore[arg-type]


def rows(report: IndexReport) -> dict[str, dict[str, object]]:
    return {r["image"]: r for r in report.manifest.frame.to_dict("records")}


def test_card_names__each_loads_and_names_its_own_file() -> None:
    names = card_names()
    assert {"chexpert", "covid_chestxray", "kermany", "mimic_cxr", "nih_chestxray14", "padchest"} <= set(names)
    for name in names:
        card = load_card(name)
        assert card.name == name
        assert card.citation
        assert card.licence
        assert card.where.startswith("https://") or card.access == "generated"


def test_chexpert(tmp_path: Path, jpg: Write) -> None:
    root = tmp_path / "CheXpert-v1.0-small"
    head = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT_LABELS}\n"
    a, b = "train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1/view2_lateral.jpg"
    c, d = "valid/patient64541/study1/view1_frontal.jpg", "test/patient64741/study1/view1_frontal.jpg"
    extra = "train/patient00009/study1/view1_frontal.jpg"
    for name in (a, b, c, d, extra):
        jpg(root / name)
    prefix = "CheXpert-v1.0-small/"
    (root / "train.csv").write_text(
        head + f"{prefix}{a},Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0\n{prefix}{b},Female,68,Lateral,,,,-1.0,,,,,,,,,,,\n"
    )
    (root / "valid.csv").write_text(head + f"{prefix}{c},Male,91,Frontal,PA," + ",".join(["0.0"] * 14) + "\n")
    (root / "test_labels.csv").write_text(f"Path,{CHEXPERT_LABELS}\n{d}," + ",".join(["1.0"] * 14) + "\n")
    report = run("chexpert", root)
    found = rows(report)
    assert set(found) == {a, b, c, d}
    assert [found[k]["split"] for k in (a, b, c, d)] == ["train", "train", "val", "test"]
    assert [found[k]["view"] for k in (a, b, c, d)] == ["AP", "LATERAL", "PA", "FRONTAL"]
    assert (found[a]["patient_id"], found[a]["study_id"], found[a]["sex"], found[a]["age"]) == (
        "patient00001",
        "study1",
        "F",
        68.0,
    )
    assert found[c]["age"] == 90.0
    assert found[b]["label:Cardiomegaly"] == -1
    assert found[a]["label:Support Devices"] == 1
    assert report.labels["Pneumothorax"] == {"1": 1, "0": 2, "-1": 0, "": 1}
    assert report.reasons["no row in test_labels.csv or train.csv or valid.csv"] == (1, [extra])
    assert report.manifest.meta["text_kind"] == "none"
    # From the parent folder the same rows come, with longer paths.
    assert set(rows(run("chexpert", tmp_path))) == {f"CheXpert-v1.0-small/{k}" for k in found}


def mimic_tree(root: Path, write: Write, suffix: str) -> tuple[str, str, str]:
    studies = {
        "files/p10/p10000032/s50414267": [
            "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014",
            "174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962",
        ],
        "files/p11/p11000011/s51000001": ["2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab"],
    }
    images = [(folder, dicom) for folder, dicoms in studies.items() for dicom in dicoms]
    for folder, dicom in images:
        write(root / f"{folder}/{dicom}{suffix}")
    keys = [(d, f.split("/s")[1], f.split("/p")[2].split("/")[0]) for f, d in images]
    split = "dicom_id,study_id,subject_id,split\n" + "".join(
        f"{d},{s},{p},{'train' if p == '10000032' else 'validate'}\n" for d, s, p in keys
    )
    (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(split.encode()))
    metadata = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n" + "".join(
        f"{d},{p},{s},CHEST (PA AND LAT),{v},12,10\n" for (d, s, p), v in zip(keys, ("PA", "LL", "AP"), strict=True)
    )
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(gzip.compress(metadata.encode()))
    chexpert = "subject_id,study_id,Edema,No Finding\n10000032,50414267,-1.0,\n"
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").write_bytes(gzip.compress(chexpert.encode()))
    return tuple(f"{f}/{d}{suffix}" for f, d in images)  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [".jpg", ".dcm"])
def test_mimic_cxr(tmp_path: Path, jpg: Write, film: Write, suffix: str) -> None:
    root = tmp_path / "mimic"
    frontal, lateral, other = mimic_tree(root, jpg if suffix == ".jpg" else film, suffix)
    reports = tmp_path / "reports"
    path = reports / "files/p10/p10000032/s50414267.txt"
    path.parent.mkdir(parents=True)
    path.write_text(" FINAL REPORT\n INDICATION: ___F.\n\n FINDINGS:\n No effusion.\n")
    report = run("mimic_cxr", root, reports=reports)
    found = rows(report)
    assert set(found) == {frontal, lateral, other}
    assert found[frontal]["report"] == found[lateral]["report"]
    assert "No effusion." in str(found[frontal]["report"])
    assert found[other]["report"] == ""
    assert [found[k]["view"] for k in (frontal, lateral, other)] == ["PA", "LATERAL", "AP"]
    assert [found[k]["split"] for k in (frontal, lateral, other)] == ["train", "train", "val"]
    assert (found[frontal]["patient_id"], found[frontal]["study_id"]) == ("10000032", "50414267")
    assert found[lateral]["label:Edema"] == -1
    assert report.labels["Edema"] == {"1": 0, "0": 0, "-1": 2, "": 1}
    assert "SECRET" not in report.manifest.frame.to_csv()


def test_mimic_cxr__report_that_is_not_utf8_is_rejected(tmp_path: Path, jpg: Write) -> None:
    root = tmp_path / "mimic"
    frontal, lateral, _ = mimic_tree(root, jpg, ".jpg")
    (root / "files/p10/p10000032/s50414267.txt").write_bytes(b"FINDINGS: caf\xe9")
    report = run("mimic_cxr", root)
    assert len(rows(report)) == 1
    reason = "report file 'files/p10/p10000032/s50414267.txt' is not UTF-8"
    assert report.reasons[reason] == (2, [frontal, lateral])


def test_nih_chestxray14(tmp_path: Path, png: Write) -> None:
    root = tmp_path / "nih"
    patients = [f"{i:08d}" for i in range(1, 41)]
    names = [f"{p}_{k:03d}.png" for p in patients for k in range(2)]
    for i, name in enumerate(names):
        png(root / f"images_{1 + i % 2:03d}/images/{name}")
    findings = {names[0]: "Cardiomegaly|Pleural_Thickening"}
    table = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    for name in names:
        age = "413" if name == names[0] else "058"
        table += f"{name},{findings.get(name, 'No Finding')},0,{int(name[:8])},{age},M,PA\n"
    (root / "Data_Entry_2017_v2020.csv").write_text(table)
    (root / "train_val_list.txt").write_text("\n".join(names[:60]))
    (root / "test_list.txt").write_text("\n".join(names[60:]) + "\n")
    report = run("nih_chestxray14", root)
    found = rows(report)
    assert len(found) == 80
    first = found[f"images_001/images/{names[0]}"]
    assert (first["patient_id"], first["view"], first["sex"]) == ("1", "PA", "M")
    assert first["age"] != first["age"]  # 413 years are unknown
    assert first["label:Pleural Thickening"] == 1
    assert first["label:Hernia"] == 0
    assert report.labels["Cardiomegaly"] == {"1": 1, "0": 79, "-1": 0, "": 0}
    by_split = report.manifest.frame.groupby("split")["patient_id"].agg(set)
    assert by_split["test"] == {str(int(p)) for p in patients[30:]}
    assert by_split["val"]
    assert len(by_split["train"] | by_split["val"]) == 30
    assert not by_split["train"] & by_split["val"]


def test_padchest(tmp_path: Path, png: Write) -> None:
    root = tmp_path / "padchest"
    image = "216840111366964012989926673512011074122523403_00-163-058.png"
    other = "216840111366964012989926673512011074122523403_00-163-059.png"
    excluded = "216840111366964012989926673512011074122523403_00-163-060.png"
    for i, name in enumerate((image, other, excluded)):
        png(root / f"{i}/{name}")
    table = (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Report,Labels\n"
        f"0,{image},0,20140915,111,839860,1930.0,F,PA,sin hallazg patolog edad pacient,['normal']\n"
        f"1,{other},1,20140915,111,839860,1930.0,F,L,derram pleural,\"['pleural effusion', ' costophrenic angle blunting']\"\n"
        f"2,{excluded},2,20140915,112,839861,1931.0,M,AP_horizontal,,['exclude']\n"
    )
    (root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text(table)
    report = run("padchest", root)
    found = rows(report)
    assert [found[k]["view"] for k in (f"0/{image}", f"1/{other}", f"2/{excluded}")] == ["PA", "LATERAL", "AP"]
    assert report.labels == {
        "costophrenic angle blunting": {"1": 1, "0": 1, "-1": 0, "": 1},
        "pleural effusion": {"1": 1, "0": 1, "-1": 0, "": 1},
    }
    assert found[f"0/{image}"]["report"] == "sin hallazg patolog edad pacient"
    assert report.manifest.meta["language"] == "es"


def test_covid_chestxray(tmp_path: Path, jpg: Write) -> None:
    root = tmp_path / "covid-chestxray-dataset"
    for name in ("a.jpg", "b.jpg", "ct.jpg", "twice.jpg", "unlisted.jpg"):
        jpg(root / "images" / name)
    table = (
        "patientid,offset,sex,age,finding,view,modality,folder,filename,license,clinical_notes\n"
        '2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.jpg,CC BY,"Dry cough. Bilateral opacities."\n'
        "3,0,F,,No Finding,AP Supine,X-ray,images,b.jpg,CC BY,\n"
        "4,0,F,40,todo,Axial,CT,images,ct.jpg,CC BY,\n"
        "5,0,F,40,Pneumonia,PA,X-ray,images,twice.jpg,CC BY,one\n"
        "6,0,F,40,Pneumonia,PA,X-ray,images,twice.jpg,CC BY,two\n"
    )
    (root / "metadata.csv").write_text(table)
    report = run("covid_chestxray", root)
    found = rows(report)
    assert set(found) == {"images/a.jpg", "images/b.jpg"}
    first = found["images/a.jpg"]
    assert (first["patient_id"], first["modality"], first["view"], first["age"]) == ("2", "CR", "PA", 65.0)
    assert [first[f"label:{n}"] for n in ("Pneumonia", "Viral", "COVID-19")] == [1, 1, 1]
    assert [found["images/b.jpg"][f"label:{n}"] for n in ("Pneumonia", "Viral", "COVID-19")] == [0, 0, 0]
    assert found["images/b.jpg"]["view"] == "AP"
    assert {reason: n for reason, (n, _) in report.reasons.items()} == {
        "modality is 'CT', the card keeps X-ray": 1,
        "several different rows in metadata.csv": 1,
        "no row in metadata.csv": 1,
    }


def test_kermany(tmp_path: Path, jpg: Write) -> None:
    root = tmp_path / "chest_xray"
    for name in (
        "train/NORMAL/IM-0115-0001.jpeg",
        "test/NORMAL/NORMAL2-IM-0115-0001-0002.jpeg",
        "train/PNEUMONIA/person1_bacteria_1.jpeg",
        "test/PNEUMONIA/person1_virus_6.jpeg",
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
        "train/NORMAL/thumbs_copy.jpeg",
    ):
        jpg(root / name)
    report = run("kermany", root)
    found = rows(report)
    assert len(found) == 5
    virus = found["test/PNEUMONIA/person1_virus_6.jpeg"]
    assert virus["report"] == "AP chest radiograph of a child with viral pneumonia."
    assert [virus[f"label:{n}"] for n in ("normal", "pneumonia", "bacterial pneumonia", "viral pneumonia")] == [0, 1, 0, 1]
    # The folders' own split would put these patients into two splits.
    assert virus["patient_id"] == found["train/PNEUMONIA/person1_bacteria_1.jpeg"]["patient_id"] == "person1"
    assert virus["split"] == found["train/PNEUMONIA/person1_bacteria_1.jpeg"]["split"]
    assert found["test/NORMAL/NORMAL2-IM-0115-0001-0002.jpeg"]["patient_id"] == "IM-0115"
    assert report.manifest.meta["text_kind"] == "label sentences"
    assert report.reasons["the path does not fit the card's layout"] == (1, ["train/NORMAL/thumbs_copy.jpeg"])


def test_labels__pattern_takes_every_column_so_named(tmp_path: Path, png: Write) -> None:
    for i in range(2):
        png(tmp_path / f"set/{i}.png")
    (tmp_path / "set" / "t.csv").write_text("image,label:A,label:B,note\n0.png,1,,x\n1.png,0,-1,y\n")
    (tmp_path / "mine.md").write_text(
        "---\nname: mine\ntitle: Mine\nmodality: DX\nbody_part: chest\nkind: 2d\nwhere: https://example.org\naccess: open\n"
        "licence: CC0\ncitation: none\nintensity_units: display\ntext_kind: none\nlayout:\n  images: '*.png'\n"
        "  tables: [{file: t.csv, join: {image: path}}]\n  labels: [{encoding: columns, columns: ['label:*']}]\n---\n"
    )
    report = run(str(tmp_path / "mine.md"), tmp_path / "set")
    assert report.labels == {"A": {"1": 1, "0": 1, "-1": 0, "": 0}, "B": {"1": 0, "0": 0, "-1": 1, "": 1}}


def test_index__card_on_the_wrong_folder_says_what_it_looked_for(tmp_path: Path, jpg: Write) -> None:
    with pytest.raises(DataError, match=r"no image in .* fits the card's layout: looked for files/p\*"):
        run("mimic_cxr", tmp_path)
    jpg(tmp_path / "files/p10/p10000032/s50414267/02aa804e.jpg")
    with pytest.raises(DataError, match=r"the card's table mimic-cxr-2\.0\.0-split\.csv\.gz or .* is not in"):
        run("mimic_cxr", tmp_path)


def test_load_card__messages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data card 'mimic_cxt'; did you mean 'mimic_cxr'"):
        load_card("mimic_cxt")
    with pytest.raises(ConfigError, match="does not exist"):
        load_card(tmp_path / "mine.md")
    with pytest.raises(ConfigError, match="does not start with YAML front matter"):
        parse_card("# Mine\n", tmp_path / "mine.md")
    with pytest.raises(ConfigError, match="line 3: not readable as YAML"):
        parse_card("---\na: b\nc: [\n---\n", tmp_path / "mine.md")
    good = (Path(__file__).parents[2] / "data_cards" / "kermany.md").read_text()
    bad = good.replace("access: open", "acces: open").replace("kind: 2d", "kind: 4d").replace("(?P<person>", "(?P<person")
    with pytest.raises(ConfigError) as error:
        parse_card(bad, tmp_path / "kermany.md")
    text = str(error.value)
    assert text.startswith("4 problems in data card")
    assert "acces  unknown key; did you mean 'access'?" in text
    assert "kind  Input should be '2d' or '3d'" in text
    assert "layout.path  Value error, no regular expression" in text
    with pytest.raises(ConfigError, match="the two must agree"):
        parse_card(good, tmp_path / "other.md")


def test_load_card__own_file_drives_the_index(tmp_path: Path, png: Write) -> None:
    png(tmp_path / "set" / "a.png")
    (tmp_path / "mine.md").write_text(
        "---\nname: mine\ntitle: Mine\nmodality: DX\nbody_part: chest\nkind: 2d\nwhere: https://example.org\naccess: open\n"
        "licence: CC0\ncitation: none\nintensity_units: display\ntext_kind: none\nlayout:\n  images: '*.png'\n---\n"
    )
    report = run(str(tmp_path / "mine.md"), tmp_path / "set")
    assert report.manifest.meta["card"] == "mine"
    assert report.manifest.frame["patient_id"].tolist() == ["p000001"]


def test_readme__names_every_card(root: Path) -> None:
    text = (root / "data_cards" / "README.md").read_text(encoding="utf-8")
    for name in card_names(variants=False):
        assert f"| `{name}` |" in text, name
    for name in card_names():
        stem, _, variant = name.partition(":")
        line = next(row for row in text.splitlines() if row.startswith(f"| `{stem}` |"))
        assert not variant or stem == "msd" or variant in line, name


def test_variants__lists_are_replaced_and_mappings_merged(tmp_path: Path) -> None:
    head = (
        "---\nname: mine\ntitle: Mine\nmodality: DX\nbody_part: chest\nkind: 2d\nwhere: https://example.org\naccess: open\n"
        "licence: CC0\ncitation: none\nintensity_units: display\ntext_kind: none\n"
    )
    text = (
        head + "layout: {images: ['a', 'b'], columns: {view: v}}\n"
        "variants: {x: {layout: {images: c, columns: {sex: s}}}, y: {kind: 3d}}\ndefault_variant: y\n---\n"
    )
    path = tmp_path / "mine.md"
    path.write_text(text)
    x, y = load_card(f"{path}:x"), load_card(path)
    assert (x.name, x.layout.images, set(x.layout.columns)) == ("mine:x", ("c",), {"view", "sex"})
    assert (y.name, y.kind, y.layout.images) == ("mine:y", "3d", ("a", "b"))
    with pytest.raises(ConfigError, match="default_variant 'z' is none of x, y"):
        parse_card(text.replace("default_variant: y", "default_variant: z"), path)
    with pytest.raises(ConfigError, match="variant 'x' is no mapping"):
        parse_card(head + "layout: {images: a}\nvariants: {x: 3}\n---\n", path, "x")
    with pytest.raises(ConfigError, match="front matter is no mapping"):
        parse_card("---\n- a\n---\n", path)


def test_parse_card__problems_of_layout_and_download(tmp_path: Path) -> None:
    good = (Path(__file__).parents[2] / "data_cards" / "vqa_rad.md").read_text(encoding="utf-8")
    bad = good.replace("        answer: answer\n", "").replace('url: "https://files', 'url: "http://files')
    with pytest.raises(ConfigError) as error:
        parse_card(bad, tmp_path / "vqa_rad.md")
    assert "questions need a column for answer" in str(error.value)
    assert "not an https address" in str(error.value)
