"""Cards of questions and answers: images, questions, and no image in two splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from medfm.data.index import index
from medfm.data.index_config import IndexConfig
from medfm.data.index_report import IndexReport
from medfm.data.questions import COLUMNS, questions_path, read_questions
from medfm.errors import DataError

Write = Callable[..., Path]


def run(card: str, root: Path) -> IndexReport:
    return index(IndexConfig(card=card, root=root, out=root.parent / "out" / "m.parquet"))


def asked(report: IndexReport) -> pd.DataFrame:
    frame = read_questions(report.out)
    assert list(frame.columns) == list(COLUMNS)
    # A question has the split of its image.
    of = dict(zip(report.manifest.frame["image"], report.manifest.frame["split"], strict=True))
    assert [of[i] for i in frame["image"]] == list(frame["split"])
    return frame


def rad(qid: int, image: str, question: str, answer: object, phrase: str, kind: str = "CLOSED") -> dict[str, object]:
    return {
        "qid": str(qid),
        "phrase_type": phrase,
        "image_name": image,
        "image_organ": "HEAD",
        "question": question,
        "question_type": "PRES",
        "answer": answer,
        "answer_type": kind,
    }


def test_vqa_rad(tmp_path: Path, jpg: Write) -> None:
    root = tmp_path / "vqa_rad"
    for i in range(12):
        jpg(root / f"VQA_RAD Image Folder/synpic{i}.jpg")
    entries = [rad(i, f"synpic{i}.jpg", f"Is there a mass in {i}?", "Yes", "freeform") for i in range(12)]
    entries += [
        rad(20, "synpic0.jpg", "Is a mass seen?", "yes", "para"),
        rad(21, "synpic0.jpg", "How many masses?", 2, "test_freeform", "OPEN"),
        rad(22, "synpic99.jpg", "Is there air?", "no", "test_para"),
        rad(23, "synpic1.jpg", "", "no", "freeform"),
    ]
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(entries))
    report = run("vqa_rad", root)
    assert len(report.manifest) == 12
    frame = asked(report)
    assert len(frame) == 14
    first = frame[frame["image"] == "VQA_RAD Image Folder/synpic0.jpg"]
    assert list(first["official_split"]) == ["train", "train", "test"]
    assert list(first["phrase_type"]) == ["freeform", "para", "freeform"]
    assert list(first["answer_type"]) == ["closed", "closed", "open"]
    assert list(first["answer"]) == ["Yes", "yes", "2"]
    assert first["split"].nunique() == 1
    notes = "\n".join(report.notes)
    assert "14 questions about 12 images in m.questions.parquet" in notes
    assert "1 images have questions in two official splits" in notes
    assert "1 questions are about no image here: left out" in notes
    assert "1 questions are without question or answer: left out" in notes


def test_vqa_rad__real_images_and_questions(tmp_path: Path, data_dir: Path) -> None:
    real = data_dir / "vqa_rad"
    root = tmp_path / "vqa_rad"
    root.mkdir()
    (root / "VQA_RAD Image Folder").symlink_to(real / "images")
    rows = [json.loads(line) for line in (real / "qa.jsonl").read_text(encoding="utf-8").splitlines()]
    for split in ("train", "test"):
        entries = [
            rad(r["qid"], Path(r["image"]).name, r["question"], r["answer"], r["phrase_type"], r["answer_type"])
            for r in rows
            if r["split_official"] == split
        ]
        (root / f"{split}set.json").write_text(json.dumps(entries))
    report = run("vqa_rad", root)
    assert len(report.manifest) == 244
    assert not report.rejected
    frame = asked(report)
    assert len(frame) == len(rows) == 2712
    assert dict(frame["answer_type"].value_counts()) == {"closed": 1617, "open": 1095}
    assert "161 images have questions in two official splits" in "\n".join(report.notes)


def test_slake(tmp_path: Path, jpg: Write) -> None:
    root = tmp_path / "slake"
    for i in range(4):
        jpg(root / f"imgs/xmlab{i}/source.jpg")
        jpg(root / f"imgs/xmlab{i}/mask.png")

    def entry(qid: int, i: int, question: str, answer: str, language: str, modality: str = "CT") -> dict[str, object]:
        return {
            "img_id": i,
            "img_name": f"xmlab{i}/source.jpg",
            "question": question,
            "answer": answer,
            "q_lang": language,
            "location": "Lung",
            "modality": modality,
            "answer_type": "OPEN",
            "base_type": "vqa",
            "content_type": "Modality",
            "triple": ["vhead", "_", "_"],
            "qid": qid,
        }

    files = {
        "train.json": [
            entry(1, 0, "What modality?", "CT", "en"),
            entry(2, 0, "什么模态？", "CT", "zh"),
            entry(3, 1, "Q", "A", "en", "MRI"),
        ],
        "validation.json": [entry(4, 2, "Q", "A", "en", "X-Ray")],
        "test.json": [entry(5, 3, "Q", "A", "zh")],
    }
    for name, entries in files.items():
        (root / name).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    report = run("slake", root)
    frame = report.manifest.frame.set_index("patient_id")
    assert [frame.at[f"xmlab{i}", "modality"] for i in range(4)] == ["CT", "MR", "CR", "CT"]
    assert frame.at["xmlab2", "mask"] == "imgs/xmlab2/mask.png"
    questions = asked(report).set_index("question_id")
    assert questions.at["2", "language"] == "zh"
    assert questions.at["2", "question"] == "什么模态？"
    assert list(questions["official_split"]) == ["train", "train", "train", "val", "test"]
    assert questions.at["1", "question_type"] == "Modality"


def test_path_vqa(tmp_path: Path, jpg: Write) -> None:
    root = tmp_path / "path_vqa"
    names = ["train_0000aaaa", "val_0000bbbb", "test_0000cccc", "test_0000dddd"]
    for name in names:
        jpg(root / f"images/{name}.jpg")
    (root / "questions.csv").write_text(
        f'image,question,answer\n{names[0]},"what, if any, is shown?",liver\n'
        f"{names[0]},is it normal?,no\n{names[2]},where?,kidney\n"
    )
    report = run("path_vqa", root)
    frame = report.manifest.frame
    assert dict(zip(frame["patient_id"], frame["split"], strict=True)) == dict(
        zip(names, ("train", "val", "test", "test"), strict=True)
    )
    questions = asked(report)
    assert list(questions["question"]) == ["what, if any, is shown?", "is it normal?", "where?"]
    assert list(questions["split"]) == ["train", "train", "test"]


def test_path_vqa__the_lines_of_the_card_write_its_layout(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import textwrap

    from PIL import Image

    prose = (root / "data_cards" / "path_vqa.md").read_text(encoding="utf-8")
    block = prose[prose.index("    import csv") : prose.index("\n\nSeen:")]
    folder = tmp_path / "path_vqa" / "data"
    folder.mkdir(parents=True)

    def picture(value: int) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "JPEG")
        return {"bytes": buffer.getvalue(), "path": None}

    train = [{"image": picture(0), "question": q, "answer": "yes"} for q in ("a?", "b?")]
    pd.DataFrame(train).to_parquet(folder / "train-00000-of-00001-ab.parquet")
    pd.DataFrame([{"image": picture(200), "question": "c?", "answer": "no"}]).to_parquet(folder / "validation-0.parquet")
    monkeypatch.chdir(tmp_path)
    exec(compile(textwrap.dedent(block), "card", "exec"), {})
    report = run("path_vqa", tmp_path / "path_vqa")
    assert sorted(report.manifest.frame["split"]) == ["train", "val"]
    assert list(asked(report)["split"]) == ["train", "train", "val"]


def test_read_questions__says_where_none_are(tmp_path: Path) -> None:
    assert questions_path(tmp_path / "m.parquet") == tmp_path / "m.questions.parquet"
    with pytest.raises(DataError, match="has no questions"):
        read_questions(tmp_path / "m.parquet")


def test_questions__missing_table_is_an_error(tmp_path: Path, jpg: Write) -> None:
    jpg(tmp_path / "path_vqa/images/train_1.jpg")
    with pytest.raises(DataError, match=r"the card's table questions\.csv or .* is not in"):
        run("path_vqa", tmp_path / "path_vqa")
