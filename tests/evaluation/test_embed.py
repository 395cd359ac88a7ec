"""Features on disk: order, formats, and files that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medfm.errors import ConfigError, DataError
from medfm.evaluation.config import EmbedConfig
from medfm.evaluation.embed import _find, embed, run_embed


def read(path: Path) -> tuple[list[str], np.ndarray, list[int] | None]:
    """Names, vectors and rows of a feature file."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["image"].tolist(), file["embedding"], file["row"].tolist() if "row" in file else None
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    rows = frame["row"].tolist() if "row" in frame else None
    if path.suffix == ".parquet":
        return frame["image"].tolist(), np.stack(frame["embedding"].to_numpy()), rows
    return frame["image"].tolist(), frame.filter(regex=r"^f\d+$").to_numpy(dtype=np.float32), rows


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_embed__a_folder_in_sorted_order(brightness: Any, pictures: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    root = Path(pictures.attrs["root"])
    out = embed(brightness, root, tmp_path / f"features{suffix}", batch_size=7)
    names, vectors, rows = read(out)
    assert names == pictures["image"].tolist()
    assert rows is None
    expected = brightness.encode_images([root / name for name in names]).numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_embed__a_manifest_keeps_its_rows_and_split(brightness: Any, manifest: Any, tmp_path: Path) -> None:
    from medfm.data.manifest import write_manifest

    manifest.frame = manifest.frame.sample(frac=1, random_state=0).reset_index(drop=True)
    write_manifest(manifest, tmp_path / "manifest.parquet")
    out = embed(
        brightness, tmp_path / "manifest.parquet", tmp_path / "f.parquet", split="val", root=manifest.root, batch_size=5
    )
    names, _, rows = read(out)
    val = manifest.frame[manifest.frame["split"] == "val"]
    assert names == val["image"].tolist()
    assert rows == val.index.tolist()
    assert not pd.read_parquet(out).astype(str).apply(lambda c: c.str.contains("SECRET|CONFIDENTIAL")).any().any()
    with pytest.raises(DataError, match="no rows of split 'tset'; it has: test, val"):
        embed(brightness, tmp_path / "manifest.parquet", tmp_path / "g.parquet", split="tset", root=manifest.root)


def test_embed__one_file(brightness: Any, pictures: pd.DataFrame, tmp_path: Path) -> None:
    path = Path(pictures.attrs["root"]) / pictures["image"][3]
    names, vectors, _ = read(embed(brightness, path, tmp_path / "one.npz"))
    assert names == ["03.png"]
    np.testing.assert_array_equal(vectors, brightness.encode_images([path]).numpy())


def test_embed__a_file_that_cannot_be_written_is_told_before_any_work(brightness: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"out '.*file' cannot be written: Not a directory; choose another place with out="):
        embed(brightness, tmp_path / "nothing.png", tmp_path / "file" / "f.parquet")
    (tmp_path / "f.parquet").mkdir()
    config = EmbedConfig(model=tmp_path / "no weights", input=tmp_path / "nothing.png", out=tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match=r"f\.parquet' is a folder; name a file"):
        run_embed(config, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.parquet", "file"]


def test_embed__several_sequences_are_one_image_with_channels(tmp_path: Path) -> None:
    import nibabel

    import medfm
    from medfm.encoders.image import ImageModel
    from medfm.registry import ENCODERS
    from medfm.weights.load import load_model
    from medfm.weights.save import save_model

    size = [4, 8, 8]
    encoder = {
        "name": "vit",
        "img_size": size,
        "patch_size": [4, 4, 4],
        "in_channels": 2,
        "embed_dim": 8,
        "depth": 1,
        "num_heads": 2,
    }
    preprocess = {"size": size, "window": "minmax", "resize": "none", "channels": 2, "sequences": ["T1", "T2"]}
    recipe = {"encoder": encoder, "objective": {"name": "mae"}, "preprocess": preprocess}
    save_model(tmp_path / "run", ImageModel(ENCODERS.build(ENCODERS.parse(encoder))), recipe, None, {})
    rng = np.random.default_rng(0)
    for name in ("p1/t1.nii", "p1/t2.nii", "p1/late/flair.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(rng.integers(0, 99, (8, 8, 4)).astype(np.int16), np.eye(4)), tmp_path / name)
    model, out = load_model(tmp_path / "run"), tmp_path / "f.parquet"
    for name in ("t1.nii|t2.nii", "t1.nii|late/flair.nii"):
        medfm.embed({"model": tmp_path / "run", "input": f"{tmp_path}/p1/{name}", "out": out, "workers": 0})
        names, vectors, _ = read(out)
        assert names == [name]
        np.testing.assert_allclose(vectors, model.encode_images([f"{tmp_path}/p1/{name}"]).numpy(), atol=1e-6)
    with pytest.raises(
        ConfigError, match=r"input +'.*p1/p1/t2\.nii' does not exist; of parts with '\|' between, all but the first"
    ):
        medfm.embed({"model": tmp_path / "run", "input": f"{tmp_path}/p1/t1.nii|p1/t2.nii", "out": out})
    with pytest.raises(ConfigError, match=r"input +'.*p1/t9\.nii' does not exist"):
        medfm.embed({"model": tmp_path / "run", "input": f"{tmp_path}/p1/t9.nii", "out": out})


def test_embed__an_unreadable_file_stops_or_is_listed(
    brightness: Any, pictures: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes((Path(pictures.attrs["root"]) / pictures["image"][number]).read_bytes())
    (folder / "4.png").write_bytes(b"broken")
    out = tmp_path / "out" / "f.parquet"
    with pytest.raises(DataError, match=r"4\.png"):
        embed(brightness, folder, out, batch_size=2)
    assert list(out.parent.iterdir()) == []
    with caplog.at_level(logging.WARNING):
        embed(brightness, folder, out, batch_size=2, on_error="skip")
    assert read(out)[0] == [f"{n}.png" for n in (0, 1, 2, 3, 5)]
    assert pd.read_csv(out.with_name("f.parquet.unreadable.csv"))["image"].tolist() == ["4.png"]
    assert "1 of 6 images could not be read" in caplog.text


def test_embed__nothing_readable_leaves_no_file(brightness: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="no image found"):
        embed(brightness, tmp_path / "in", tmp_path / "f.npz")
    (tmp_path / "in" / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        embed(brightness, tmp_path / "in", tmp_path / "f.npz", on_error="skip")
    assert not (tmp_path / "f.npz").exists()


def test_embed__refuses_other_formats_and_meaningless_options(brightness: Any, pictures: pd.DataFrame, tmp_path: Path) -> None:
    root = Path(pictures.attrs["root"])
    with pytest.raises(ConfigError, match=r"'f\.pkl' does not end in"):
        embed(brightness, root, tmp_path / "f.pkl")
    with pytest.raises(ConfigError, match="split and root have no meaning"):
        embed(brightness, root, tmp_path / "f.csv", split="test")
    with pytest.raises(ValueError, match=r"does not end in \.parquet"):
        EmbedConfig(model="m", input="i", out="features.pkl")


def test_find__dicom_files_of_a_folder_are_one_volume(tmp_path: Path) -> None:
    for name in ("a/1.dcm", "a/2.dcm", "b/1.dcm", "c.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert _find(tmp_path, volumes=True) == [tmp_path / "a", tmp_path / "b", tmp_path / "c.nii.gz"]
    assert len(_find(tmp_path, volumes=False)) == 4


def test_embed__says_whose_space_it_is(tiny_run: Path, pictures: pd.DataFrame, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from medfm.encoders.image import ImageModel
    from medfm.weights.load import load_model

    model, path = load_model(tiny_run), Path(pictures.attrs["root"]) / pictures["image"][3]
    for space in ("joint", "image"):
        out = embed(model, path, tmp_path / f"{space}.parquet")
        assert pq.read_schema(out).metadata[b"medfm.space"] == f"{space}, unit norm".encode()
        model.network = ImageModel(model.network.image_encoder)
