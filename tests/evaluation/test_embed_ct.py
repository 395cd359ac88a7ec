"""Real CT volumes through `medfm embed` under a chest CT contract: DICOM and NIfTI agree, wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfm.data.phantom.generate import generate
from medfm.encoders.image import ImageModel
from medfm.errors import ConfigError, DataError
from medfm.evaluation.embed import embed
from medfm.io.load import load_image
from medfm.io.nifti import save_nifti
from medfm.registry import ENCODERS
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess
from medfm.weights.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    """A random ViT under the contract of a chest CT: HU, 3 x 3 x 6 mm, int16."""
    size = (24, 48, 48)
    encoder = ENCODERS.parse(
        {"name": "vit", "img_size": size, "patch_size": (8, 8, 8), "embed_dim": 32, "depth": 2, "num_heads": 2, "pool": "mean"}
    )
    torch.manual_seed(0)
    preprocess = Preprocess(
        PreprocessConfig(size=size, spacing=(9.0, 8.0, 8.0), window="hu", dtype="int16", modalities=("CT",), tilt="resample")
    )
    return Model(ImageModel(ENCODERS.build(encoder)), preprocess, None, {}, encoder, None)


def vectors(model: Model, source: Path, out: Path, modality: str = "CT") -> np.ndarray:
    return np.load(embed(model, source, out, modality=modality))["embedding"]


def test_embed__every_real_ct(model: Model, data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "ct3d_totalsegmentator"
    sources = [folder / "exampleCT.nii.gz", folder / "exampleCT_crop.nii.gz", folder / "exampleCTdicom"]
    sources += [data_dir / "mixed3d_pyradiomics" / "lung1.nii.gz"]
    made = np.concatenate([vectors(model, source, tmp_path / f"{n}.npz") for n, source in enumerate(sources)])
    assert made.shape == (4, 32)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    assert np.abs(made @ made.T - np.eye(4)).max() < 0.999999  # four volumes, four vectors


def test_embed__dicom_and_nifti_of_a_real_ct(model: Model, data_dir: Path, tmp_path: Path) -> None:
    """The series, and a NIfTI of it stored in another order of axes, as converters write them (LAS, i to the left)."""
    series = data_dir / "ct3d_totalsegmentator" / "exampleCTdicom"
    image = load_image(series)
    flipped = np.ascontiguousarray(image.array[::-1].transpose(1, 0, 2)[:, :, ::-1])
    turn = np.array([[0, -1, 0, image.shape[0] - 1], [1, 0, 0, 0], [0, 0, -1, image.shape[2] - 1], [0, 0, 0, 1]], float)
    save_nifti(flipped, image.affine @ turn, tmp_path / "ct.nii.gz")
    first, second = vectors(model, series, tmp_path / "a.npz"), vectors(model, tmp_path / "ct.nii.gz", tmp_path / "b.npz")
    assert float((first * second).sum()) >= 0.999


def test_embed__phantom_written_as_dicom_and_as_nifti(model: Model, tmp_path: Path) -> None:
    """Two writers that share nothing but the voxels; and a mirrored file gives another vector, but no header tells it."""
    folder = generate("chest_ct", 2, 0, tmp_path / "ph", size=64, workers=1, progress=False)
    nifti = sorted((folder / "volumes").glob("*.nii.gz"))[1]
    series = sorted((folder / "images").iterdir())[1]
    first, second = vectors(model, series, tmp_path / "a.npz", ""), vectors(model, nifti, tmp_path / "b.npz")
    assert float((first * second).sum()) >= 0.999
    image = load_image(nifti, "CT")
    save_nifti(image.array[::-1], image.affine, tmp_path / "mirrored.nii.gz")
    assert float((first * vectors(model, tmp_path / "mirrored.nii.gz", tmp_path / "c.npz")).sum()) < 0.99999


def body() -> np.ndarray:
    """A CT: air, a body with fat and tissue, lungs, bone."""
    rng = np.random.default_rng(0)
    array = rng.normal(-1000, 10, (40, 40, 20))
    array[6:34, 8:32] = rng.normal(40, 30, (28, 24, 20))
    array[10:18, 12:28] = rng.normal(-850, 40, (8, 16, 20))
    array[19:22, 26:30] = 700
    return array.astype(np.int16)


def test_embed__refuses_a_volume_that_was_rescaled_twice(model: Model, tmp_path: Path) -> None:
    affine = np.diag([-8.0, -8.0, 9.0, 1.0])
    good = body()
    wrong = {
        "twice": (good.astype(int) - 1024).astype(np.int16),
        "padded": np.where(np.hypot(*np.indices((40, 40))[..., None] - 19.5) > 19, -3024, good.astype(int) - 1024).astype(
            np.int16
        ),
        "clipped": (good.clip(-1000).astype(int) - 1024).astype(np.int16),
        "never": (good.astype(int) + 1024).astype(np.int16),
        "unit": ((good + 1000.0) / 2000).clip(0, 1).astype(np.float32),
        "signed": (good / 1000.0).astype(np.float32),
        "by_slope": (good.astype(int) * 10).astype(np.int16),
    }
    save_nifti(good, affine, tmp_path / "good.nii.gz")
    assert vectors(model, tmp_path / "good.nii.gz", tmp_path / "good.npz").shape == (1, 32)
    for name, array in wrong.items():
        save_nifti(array, affine, tmp_path / f"{name}.nii.gz")
        with pytest.raises(DataError, match=r"rescaled? twice|applied twice|already scaled|without their rescale"):
            vectors(model, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.npz")


def test_embed__accepts_what_only_looks_odd(model: Model, tmp_path: Path) -> None:
    affine = np.diag([-8.0, -8.0, 9.0, 1.0])
    good = body().astype(int)
    outside = np.hypot(*np.indices((40, 40))[..., None] - 19.5) > 19
    odd = {
        "padded": np.where(outside, -2000, good),  # a round field of view, as GE pads it
        "deep": np.where(outside, -3024, good),
        "lungs": np.where(np.indices(good.shape)[0] < 20, -860, -995) + np.random.default_rng(0).integers(-30, 30, good.shape),
    }
    for name, array in odd.items():
        save_nifti(array.astype(np.int16), affine, tmp_path / f"{name}.nii.gz")
        if name != "lungs":
            assert vectors(model, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.npz").shape == (1, 32)
    with pytest.raises(DataError, match="hold no tissue"):  # nothing but air is refused as before
        vectors(model, tmp_path / "lungs.nii.gz", tmp_path / "lungs.npz")


def test_embed__refuses_a_ct_whose_header_leaves_its_side_open(model: Model, tmp_path: Path) -> None:
    """What can be told of a flip: no orientation at all, or two that contradict each other."""
    import nibabel

    affine = np.diag([-8.0, -8.0, 9.0, 1.0])
    save_nifti(body(), affine, tmp_path / "bare.nii.gz", oriented=False)
    with pytest.raises(DataError, match="does not say how it lies"):
        vectors(model, tmp_path / "bare.nii.gz", tmp_path / "x.npz")
    image = nibabel.Nifti1Image(body(), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine @ np.diag([-1.0, 1, 1, 1]), code=1)
    image.to_filename(tmp_path / "flipped.nii.gz")
    with pytest.raises(DataError, match="sform and qform name the same space but differ"):
        vectors(model, tmp_path / "flipped.nii.gz", tmp_path / "x.npz")


def test_embed__modality_is_for_files_without_a_manifest(model: Model, tmp_path: Path) -> None:
    save_nifti(body(), np.diag([-8.0, -8.0, 9.0, 1.0]), tmp_path / "ct.nii.gz")
    with pytest.raises(DataError, match="modality=CT, if it is CT"):
        vectors(model, tmp_path / "ct.nii.gz", tmp_path / "x.npz", "")
    (tmp_path / "m.csv").write_text("image,patient_id,split,modality\nct.nii.gz,p,test,CT\n")
    with pytest.raises((ConfigError, DataError)):
        vectors(model, tmp_path / "m.csv", tmp_path / "x.npz")
