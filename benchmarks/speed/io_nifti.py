"""Load a .nii.gz volume: medfm against SimpleITK, nibabel, torchio and MONAI.

    python -m benchmarks.speed.io_nifti

Writes benchmarks/results/io_nifti.md. The volume stands alone in its folder: SimpleITK would read a sibling ct.nii when asked
for ct.nii.gz. Every reader's values and affine are compared with what was written before anything is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import bar, table, write
from benchmarks.speed.timing import in_turns, one_thread, ratio, rows, versions

AFFINE = np.array([[-0.8, 0, 0, 200.0], [0, 0.8, 0, -180.0], [0, 0, 1.5, 40.0], [0, 0, 0, 1]])


def volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """(i, j, k) int16: smooth tissue with the noise of a CT inside a round field of view, air outside."""
    from scipy.ndimage import zoom

    random = np.random.default_rng(seed)
    coarse = random.normal(size=tuple(max(2, n // 32) for n in shape))
    smooth = zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1, grid_mode=True, mode="nearest")
    values = 150 * smooth[: shape[0], : shape[1], : shape[2]] + random.normal(scale=12, size=shape)
    i, j = np.ogrid[: shape[0], : shape[1]]
    outside = ((i - shape[0] / 2) / shape[0]) ** 2 + ((j - shape[1] / 2) / shape[1]) ** 2 > 0.45**2
    values[outside] = -1024
    return np.clip(np.rint(values), -1024, 3071).astype(np.int16)


def readers(path: Path) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """name -> a call that gives ((i, j, k) array-like, (4, 4) affine in RAS)."""
    import nibabel
    import SimpleITK
    import torchio
    from monai.transforms import LoadImage

    from medfm.io.load import load_image

    load = LoadImage(image_only=True, ensure_channel_first=False)

    def medfm() -> tuple[Any, Any]:
        image = load_image(path)
        return image.array, image.affine

    def sitk() -> tuple[Any, Any]:
        image = SimpleITK.ReadImage(str(path))
        return SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0), image

    def nib() -> tuple[Any, Any]:
        image = nibabel.load(path)
        return np.asarray(image.dataobj), image.affine  # type: ignore[attr-defined]

    def tio() -> tuple[Any, Any]:
        image = torchio.ScalarImage(path)
        image.load()
        return image.data[0], image.affine

    def monai() -> tuple[Any, Any]:
        image = load(path)
        return image, image.affine

    return {"medfm": medfm, "SimpleITK": sitk, "nibabel": nib, "torchio": tio, "MONAI LoadImage": monai}


def check(name: str, found: tuple[Any, Any], array: np.ndarray) -> None:
    """Raise where a reader's values or affine are not what was written."""
    values, affine = found
    if name == "SimpleITK":
        image, lps = affine, np.diag([-1.0, -1, 1, 1])
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        affine = lps @ affine
    np.testing.assert_array_equal(np.asarray(values), array, err_msg=name)
    np.testing.assert_allclose(np.asarray(affine), AFFINE, atol=1e-4, err_msg=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 200])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--name", default="io_nifti", help="file in benchmarks/results")
    arguments = parser.parse_args()
    one_thread()
    import nibabel

    array = volume(tuple(arguments.shape))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "volume.nii.gz")
        # By nibabel and zlib, so that medfm does not read what it packed itself.
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
        size = path.stat().st_size
        candidates = readers(path)
        for name, read in candidates.items():
            check(name, read(), array)
        seconds = in_turns(candidates, arguments.runs)
    sitk, monai = ratio(seconds, "SimpleITK", "medfm"), ratio(seconds, "MONAI LoadImage", "medfm")
    write(
        arguments.name,
        "Loading .nii.gz",
        f"{' x '.join(map(str, arguments.shape))} int16, {array.nbytes / 1e6:.0f} MB in {size / 1e6:.0f} MB; one thread, "
        f"{arguments.runs} interleaved runs; {versions('isal', 'SimpleITK', 'nibabel', 'torchio', 'monai')}. All give equal "
        "voxels and affines. medfm tests the gzip checksum; nibabel does not.",
        table(("reader", "best ms", "median ms", "times medfm"), rows(seconds, "medfm")),
        "\n".join(
            (
                bar(f"at least 1.25 times as fast as SimpleITK: {sitk:.2f}", sitk >= 1.25),
                bar(f"at least 4 times as fast as MONAI LoadImage: {monai:.2f}", monai >= 4),
            )
        ),
    )


if __name__ == "__main__":
    main()
