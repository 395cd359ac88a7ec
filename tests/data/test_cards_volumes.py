"""Cards of volumes and their masks, each on a tiny tree of the set's own layout, and on real files where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfm.data.cards import card_names, load_card
from medfm.data.index import index
from medfm.data.index_config import IndexConfig
from medfm.data.index_report import IndexReport
from medfm.errors import ConfigError, DataError

Write = Callable[..., Path]


def run(card: str, root: Path, **options: object) -> IndexReport:
    return index(IndexConfig(card=card, root=root, out=root.parent / "out" / "m.parquet", **options))  # type: ignore[arg-type]


def rows(report: IndexReport) -> dict[str, dict[str, object]]:
    return {r["image"]: r for r in report.manifest.frame.to_dict("records")}


def volume(path: Path, channels: int = 0) -> Path:
    """A tiny NIfTI of 6 x 5 x 4 voxels."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    if channels:
        array = np.stack([array + i for i in range(channels)], axis=-1)
    nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])).to_filename(path)
    return path


@pytest.mark.parametrize("above", ["", "Task09_Spleen/"])
def test_msd(tmp_path: Path, above: str) -> None:
    root = tmp_path / "msd"
    for case in ("spleen_2", "spleen_3"):
        volume(root / f"{above}imagesTr/{case}.nii.gz")
        volume(root / f"{above}labelsTr/{case}.nii.gz")
        (root / f"{above}imagesTr/._{case}.nii.gz").write_bytes(b"\x00\x05\x16\x07 of macOS")
    volume(root / f"{above}imagesTr/spleen_9.nii.gz")
    volume(root / f"{above}imagesTs/spleen_1.nii.gz")
    if above:
        volume(root / "Task02_Heart/imagesTr/la_003.nii.gz")
    report = run("msd:spleen", root)
    found = rows(report)
    assert {k: v["mask"] for k, v in found.items()} == {
        f"{above}imagesTr/spleen_2.nii.gz": f"{above}labelsTr/spleen_2.nii.gz",
        f"{above}imagesTr/spleen_3.nii.gz": f"{above}labelsTr/spleen_3.nii.gz",
        f"{above}imagesTr/spleen_9.nii.gz": "",
    }
    assert {v["patient_id"] for v in found.values()} == {"spleen_2", "spleen_3", "spleen_9"}
    meta = report.manifest.meta
    assert (meta["card"], meta["intensity_units"]) == ("msd:spleen", "HU")
    assert meta["mask_labels"] == {"1": "spleen"}
    assert not report.rejected


def test_msd__channels_of_one_file_stay_one_patient(tmp_path: Path) -> None:
    volume(tmp_path / "msd/imagesTr/BRATS_001.nii.gz", channels=4)
    volume(tmp_path / "msd/labelsTr/BRATS_001.nii.gz")
    frame = run("msd:brain_tumour", tmp_path / "msd").manifest.frame
    assert set(frame["patient_id"]) == {"BRATS_001"}
    assert set(frame["mask"]) == {"labelsTr/BRATS_001.nii.gz"}
    assert frame["split"].nunique() == 1


def test_msd__each_task_is_a_variant_and_none_is_the_default() -> None:
    tasks = [n for n in card_names() if n.startswith("msd:")]
    assert len(tasks) == 10
    for name in tasks:
        card = load_card(name)
        assert card.download is not None
        (file,) = card.download.files
        assert file.md5
        assert file.url.endswith(f"/{card.download.folder}.tar")
        assert (card.intensity_units == "HU") == (card.modality == ("CT",))
        assert card.mask_labels["1"]
    with pytest.raises(
        ConfigError, match=r"data card 'msd' has variants; choose one: card=msd:brain_tumour \(of brain_tumour, heart"
    ):
        load_card("msd")
    with pytest.raises(ConfigError, match="has no variant 'spleeen'; did you mean 'spleen'"):
        load_card("msd:spleeen")
    with pytest.raises(ConfigError, match="'kermany' has no variants: use card=kermany"):
        load_card("kermany:small")


def test_msd__real_hippocampus(tmp_path: Path, data_dir: Path) -> None:
    from medfm.io.load import load_image

    real = data_dir / "mr3d_hippocampus"
    root = tmp_path / "Task04_Hippocampus"
    root.mkdir()
    (root / "imagesTr").symlink_to(real / "images")
    (root / "labelsTr").symlink_to(real / "labels")
    report = run("msd:hippocampus", root)
    frame = report.manifest.frame
    assert len(frame) == len(list((real / "images").glob("*.nii.gz"))) > 100
    assert (frame["mask"] != "").all()
    assert set(frame["modality"]) == {"MR"}
    assert not report.rejected
    # The values of real masks are those that the card names.
    names = report.manifest.meta["mask_labels"]
    for image, mask in list(zip(frame["image"], frame["mask"], strict=True))[:5]:
        array = load_image(root / mask).array
        assert {str(int(v)) for v in np.unique(array)} - {"0"} == set(names) == {"1", "2"}
        assert array.shape == load_image(root / image).array.shape


@pytest.mark.parametrize("above", ["", "amos22/"])
def test_amos__ct_and_mr_apart(tmp_path: Path, above: str) -> None:
    root = tmp_path / "amos"
    for part, numbers in {"Tr": ("0001", "0500", "0507"), "Va": ("0008", "0600")}.items():
        for number in numbers:
            volume(root / f"{above}images{part}/amos_{number}.nii.gz")
            volume(root / f"{above}labels{part}/amos_{number}.nii.gz")
    volume(root / f"{above}imagesTs/amos_0003.nii.gz")
    report = run("amos:ct", root)
    found = {Path(str(k)).name[:9]: v for k, v in rows(report).items()}
    assert set(found) == {"amos_0001", "amos_0500", "amos_0008"}
    assert found["amos_0008"]["split"] == "test"
    assert found["amos_0001"]["split"] in ("train", "val")
    assert found["amos_0001"]["mask"] == f"{above}labelsTr/amos_0001.nii.gz"
    assert found["amos_0008"]["mask"] == f"{above}labelsVa/amos_0008.nii.gz"
    assert {v["modality"] for v in found.values()} == {"CT"}
    mr = {Path(str(k)).name[:9]: v for k, v in rows(run("amos:mr", root)).items()}
    assert set(mr) == {"amos_0507", "amos_0600"}
    assert {v["modality"] for v in mr.values()} == {"MR"}
    assert load_card("amos:mr").intensity_units == "arbitrary"


@pytest.mark.parametrize(
    ("card", "studies", "sequences", "join"),
    [
        ("brats", ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"], ["t1c", "t1n", "t2f", "t2w"], "-"),
        ("brats:brats2021", ["BraTS2021_00000", "BraTS2021_00002"], ["flair", "t1", "t1ce", "t2"], "_"),
        ("brats:brats2020", ["BraTS20_Training_001", "BraTS20_Training_002"], ["flair", "t1", "t1ce", "t2"], "_"),
    ],
)
@pytest.mark.parametrize("above", ["", "TrainingData/"])
def test_brats(tmp_path: Path, card: str, studies: list[str], sequences: list[str], join: str, above: str) -> None:
    root = tmp_path / "brats"
    suffix = ".nii" if card.endswith("2020") else ".nii.gz"
    for study in studies:
        for what in [*sequences, "seg"]:
            volume(root / f"{above}{study}/{study}{join}{what}{suffix}")
    report = run(card, root)
    frame = report.manifest.frame
    assert len(frame) == 4 * len(studies)
    assert not report.rejected
    assert not frame["image"].str.contains("seg").any()
    for study, group in frame.groupby("study_id"):
        assert sorted(group["view"]) == sorted(s.upper() for s in sequences)
        assert set(group["mask"]) == {f"{above}{study}/{study}{join}seg{suffix}"}
        assert group["split"].nunique() == 1
    if card == "brats":
        assert set(frame["patient_id"]) == {"00000", "00002"}  # two visits of one patient
        assert load_card(card).mask_labels["3"] == "enhancing tumour"
    else:
        assert "3" not in load_card(card).mask_labels
        assert load_card(card).mask_labels["4"] == "enhancing tumour"


@pytest.mark.parametrize(
    ("card", "name"), [("totalsegmentator", "ct"), ("totalsegmentator:small", "ct"), ("totalsegmentator:mr", "mri")]
)
def test_totalsegmentator(tmp_path: Path, card: str, name: str) -> None:
    root = tmp_path / "totalseg"
    for case in ("s0000", "s0001", "s0287"):
        volume(root / f"{case}/{name}.nii.gz")
        volume(root / f"{case}/segmentations/liver.nii.gz")
    (root / "meta.csv").write_bytes(
        b"\xef\xbb\xbfimage_id;age;gender;institute;study_type;split;manufacturer\n"
        b"s0000;72;m;A;ct thorax;train;Siemens\ns0001;75;f;A;ct, abdomen;val;Siemens\ns0287;;;A;ct neck;test;Siemens\n"
    )
    report = run(card, root)
    found = rows(report)
    assert set(found) == {f"{c}/{name}.nii.gz" for c in ("s0000", "s0001", "s0287")}
    assert [v["split"] for v in found.values()] == ["train", "val", "test"]
    first = found[f"s0000/{name}.nii.gz"]
    assert (first["mask"], first["sex"], first["age"]) == ("s0000/segmentations", "M", 72)
    assert first["modality"] == ("MR" if name == "mri" else "CT")


def test_totalsegmentator__real_files(tmp_path: Path, data_dir: Path) -> None:
    real = data_dir / "ct3d_totalsegmentator"
    root = tmp_path / "totalseg"
    for i, name in enumerate(("exampleCT", "exampleCT_crop")):
        (root / f"s{i:04d}" / "segmentations").mkdir(parents=True)
        (root / f"s{i:04d}" / "ct.nii.gz").symlink_to(real / f"{name}.nii.gz")
    report = run("totalsegmentator", root, check_files="decode")
    assert len(report.manifest) == 2
    assert not report.rejected


def ct_rate_tree(root: Path, folders: tuple[str, str]) -> list[str]:
    names = []
    for folder, split, volumes in zip(
        folders, ("train", "valid"), (("1_a_1", "1_a_2", "1_b_1", "2_a_1"), ("1_a_1",)), strict=True
    ):
        for v in volumes:
            patient, scan, _ = v.split("_")
            name = f"dataset/{folder}/{split}_{patient}/{split}_{patient}_{scan}/{split}_{v}.nii.gz"
            volume(root / name)
            names.append(name)
    tables = {
        "radiology_text_reports/{}_reports.csv": "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n",
        "metadata/{}_metadata.csv": "VolumeName,Manufacturer,PatientSex,PatientAge,RescaleSlope\n",
        "multi_abnormality_labels/{}_predicted_labels.csv": "VolumeName,Medical material,Emphysema\n",
    }
    for split in ("train", "valid"):
        mine = [Path(n).name for n in names if Path(n).name.startswith(split)]
        for (path, head), cells in zip(tables.items(), ("C,T,Lungs clear.,Normal.", "Siemens,M,045Y,1", "0,1"), strict=True):
            file = root / "dataset" / path.format(split)
            file.parent.mkdir(parents=True, exist_ok=True)
            extra = cells if split == "train" or "reports" not in path else "C,T,,Effusion."
            file.write_text(head + "".join(f"{m},{extra}\n" for m in mine))
    return names


def test_ct_rate(tmp_path: Path) -> None:
    root = tmp_path / "ct_rate"
    names = ct_rate_tree(root, ("train_fixed", "valid_fixed"))
    volume(root / "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz")  # the first release beside it
    report = run("ct_rate", root)
    found = rows(report)
    assert set(found) == set(names)
    first, last = found[names[0]], found[names[-1]]
    assert first["report"] == "FINDINGS: Lungs clear.\n\nIMPRESSION: Normal."
    assert last["report"] == "IMPRESSION: Effusion."
    assert (first["patient_id"], first["study_id"]) == ("train_1", "train_1_a")
    assert {found[n]["split"] for n in names[:3]} <= {"train", "val"}
    assert len({found[n]["split"] for n in names[:3]}) == 1
    assert last["split"] == "test"
    assert (first["sex"], first["age"], first["label:Emphysema"], first["label:Medical material"]) == ("M", 45, 1, 0)
    assert report.manifest.meta["intensity_units"] == "HU"


def test_ct_rate__first_release_has_no_units(tmp_path: Path) -> None:
    root = tmp_path / "ct_rate"
    names = ct_rate_tree(root, ("train", "valid"))
    with pytest.raises(DataError, match=r"no image in .* fits the card's layout"):
        run("ct_rate", root)
    report = run("ct_rate:v1", root)
    assert set(rows(report)) == set(names)
    assert report.manifest.meta["intensity_units"] == "arbitrary"


def test_lidc_idri(tmp_path: Path, film: Write) -> None:
    root = tmp_path / "LIDC-IDRI"
    study, series = "01-01-2000-NA-NA-30178", "3000566.000000-NA-03192"
    for case in ("0001", "0002"):
        for k in range(4):
            film(
                root / f"LIDC-IDRI-{case}/{study}/{series}/1-{k:03d}.dcm",
                SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
                Modality="CT",
                PatientID=f"LIDC-IDRI-{case}",
                StudyInstanceUID=f"1.2.{case[-1]}",
                SeriesInstanceUID=f"1.2.{case[-1]}.1",
                ImagePositionPatient=[0, 0, 2.5 * k],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[0.7, 0.7],
                RescaleSlope=1,
                RescaleIntercept=-1024,
                RescaleType="HU",
            )
    film(root / "LIDC-IDRI-0001/01-01-2000-X/2.000000-NA-1/1-1.dcm", PatientID="LIDC-IDRI-0001")
    report = run("lidc_idri", root)
    frame = report.manifest.frame
    assert len(frame) == 2
    assert set(frame["patient_id"]) == {"LIDC-IDRI-0001", "LIDC-IDRI-0002"}
    assert set(frame["modality"]) == {"CT"}
    assert all(image.split("#")[0].endswith(series) for image in frame["image"])
    assert {reason: n for reason, (n, _) in report.reasons.items()} == {"modality is 'DX', the card keeps CT": 1}
