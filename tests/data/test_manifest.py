from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from medfm.data.manifest import COLUMNS, Manifest, counts, manifest_hash, read_manifest, write_manifest
from medfm.errors import DataError


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_write_read__round_trip(tmp_path: Path, make_manifest: Callable[..., Manifest], suffix: str) -> None:
    manifest = make_manifest(
        3, reports=["A b.", "", 'say "x",\nthen é'], write=False, age=[41.5, math.nan, 90], **{"label:Edema": [1, -1, math.nan]}
    )
    path = write_manifest(manifest, tmp_path / f"m{suffix}")
    back = read_manifest(path)
    pd.testing.assert_frame_equal(back.frame, manifest.frame)
    assert list(back.frame.columns) == [*COLUMNS, "label:Edema"]
    assert back.findings == ["Edema"]
    assert back.root.resolve() == tmp_path.resolve()
    assert back.meta["text_kind"] == "report"
    assert not list(tmp_path.glob(".tmp*"))


def test_write_manifest__root_moves_with_the_file_when_it_lies_below(
    tmp_path: Path, make_manifest: Callable[..., Manifest]
) -> None:
    manifest = make_manifest(2)
    write_manifest(manifest, tmp_path / "m.parquet")
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    back = read_manifest(moved / "m.parquet")
    assert back.image_path(1).is_file()
    other = write_manifest(Manifest(manifest.frame, moved / "images"), moved / "sub" / "m.parquet")
    assert read_manifest(other).root == (moved / "images").resolve()
    assert read_manifest(other, root=moved).root == moved
    moved.rename(tmp_path)


def test_manifest_hash__same_for_both_formats_and_sensitive_to_content(
    tmp_path: Path, make_manifest: Callable[..., Manifest]
) -> None:
    manifest = make_manifest(4, write=False, age=[1.0, math.nan, 3, 4], **{"label:A": [1, 0, -1, math.nan]})
    digest = manifest_hash(manifest)
    assert len(digest) == 12
    for name in ("m.csv", "m.parquet"):
        assert manifest_hash(read_manifest(write_manifest(manifest, tmp_path / name), root="/elsewhere")) == digest
    changed = Manifest(manifest.frame.copy(), manifest.root)
    changed.frame.loc[0, "label:A"] = 0
    assert manifest_hash(changed) != digest


def test_read_manifest__own_csv_and_messages(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("image,patient_id,split,label:Edema,centre\na.png,1,train,1,X\nb.png,2,val,yes,X\n")
    manifest = read_manifest(path)
    assert manifest.frame["report"].tolist() == ["", ""]
    assert manifest.frame["label:Edema"].tolist() == ["1", "yes"]  # kept as text for the check to report
    assert manifest.frame["centre"].tolist() == ["X", "X"]
    assert manifest.row_name(0) == "row 2"
    assert manifest.root == tmp_path
    path.write_text("image,patientid,split\na.png,1,train\n")
    with pytest.raises(DataError, match="no column 'patient_id'; did you mean 'patientid'"):
        read_manifest(path)
    with pytest.raises(DataError, match="does not exist; make it with `medfm index"):
        read_manifest(tmp_path / "absent.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="no readable parquet"):
        read_manifest(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"\.parquet or \.csv"):
        write_manifest(manifest, tmp_path / "m.xlsx")


def test_counts__by_split_view_study(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(
        4, write=False, split=["train", "train", "test", "test"], view=["PA", "LATERAL", "PA", ""], study_id=["s", "s", "t", ""]
    )
    result = counts(manifest.frame)
    assert result["images"] == 4
    assert result["patients"] == 2
    assert result["studies"] == 2
    assert result["splits"]["train"] == {"images": 2, "patients": 1}
    assert result["splits"]["val"] == {"images": 0, "patients": 0}
    assert result["views"] == {"PA": 2, "LATERAL": 1}
