"""Resample a CT to another spacing with the affine kept true: medfm against SimpleITK, MONAI Spacing and torchio.

    python -m benchmarks.speed.io_resample

Writes benchmarks/results/io_resample.md. Takes the real CT of the test data. The difference is to SimpleITK's linear
ResampleImageFilter on the very grid that medfm chose, over all voxels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import bar, data_dir, table, write
from benchmarks.speed.timing import in_turns, one_thread, ratio, rows, versions


def sitk_image(array: np.ndarray, affine: np.ndarray) -> Any:
    """(i, j, k) and a RAS affine as a SimpleITK image."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def linear_filter(shape: tuple[int, ...], affine: np.ndarray) -> Any:
    """SimpleITK's linear resampling onto a grid."""
    import SimpleITK

    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    resample = SimpleITK.ResampleImageFilter()
    resample.SetSize([int(n) for n in shape])
    resample.SetOutputSpacing(spacing.tolist())
    resample.SetOutputOrigin(lps[:3, 3].tolist())
    resample.SetOutputDirection((lps[:3, :3] / spacing).ravel().tolist())
    resample.SetInterpolator(SimpleITK.sitkLinear)
    resample.SetOutputPixelType(SimpleITK.sitkFloat32)
    return resample


def candidates_for(array: np.ndarray, affine: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, Callable[[], Any]]:
    import SimpleITK
    import torch
    import torchio
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    from medfm.transforms.resample import resample_to_spacing

    new, moved = resample_to_spacing(array, affine, spacing)
    image, resample = sitk_image(array, affine), linear_filter(new.shape, moved)
    channel_first = torch.from_numpy(np.ascontiguousarray(array))[None].float()
    tensor = MetaTensor(channel_first, affine=torch.as_tensor(affine))
    subject = torchio.ScalarImage(tensor=channel_first, affine=affine)
    monai, tio = Spacing(spacing, mode="bilinear", align_corners=False), torchio.Resample(spacing)

    def sitk() -> Any:
        done = resample.Execute(image)
        return done, SimpleITK.GetArrayViewFromImage(done)

    return {
        "medfm": lambda: resample_to_spacing(array, affine, spacing),
        "medfm, antialiased": lambda: resample_to_spacing(array, affine, spacing, antialias=True),
        "SimpleITK": sitk,
        "MONAI Spacing": lambda: monai(tensor),
        "torchio Resample": lambda: tio(subject),
    }


def difference(array: np.ndarray, affine: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Root mean square over all voxels between medfm and SimpleITK on one grid."""
    import SimpleITK

    from medfm.transforms.resample import resample_to_spacing

    new, moved = resample_to_spacing(array, affine, spacing)
    done = linear_filter(new.shape, moved).Execute(sitk_image(array, affine))
    theirs = SimpleITK.GetArrayFromImage(done).transpose(2, 1, 0).astype(np.float64)
    return float(np.sqrt(np.mean((new - theirs) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacing", type=float, nargs=3, default=[2.0, 2.0, 2.0], help="mm along i, j, k")
    parser.add_argument("--crop", type=int, default=None, help="take this many voxels of each axis, for a quick look")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--name", default="io_resample", help="file in benchmarks/results")
    arguments = parser.parse_args()
    path = data_dir() / "ct3d_totalsegmentator" / "exampleCT.nii.gz"
    if not path.exists():
        sys.exit(f"{path} is not there; set MEDFM_TEST_DATA to the folder with the test data")
    one_thread()
    from medfm.io.load import load_image

    image = load_image(path, "CT")
    array = image.array[tuple(slice(arguments.crop) for _ in range(3))]
    spacing = tuple(arguments.spacing)
    rms = difference(array, image.affine, spacing)
    seconds = in_turns(candidates_for(array, image.affine, spacing), arguments.runs)
    monai = ratio(seconds, "MONAI Spacing", "medfm")
    write(
        arguments.name,
        "Resampling to a spacing",
        f"A real CT of {' x '.join(map(str, array.shape))} int16 at {' x '.join(f'{s:.3g}' for s in image.spacing)} mm to "
        f"{' x '.join(f'{s:.3g}' for s in spacing)} mm, linear, float32; one thread, {arguments.runs} interleaved runs; "
        f"{versions('numpy', 'SimpleITK', 'monai', 'torchio')}. MONAI and torchio are handed float32, the others int16.",
        table(("resampler", "best ms", "median ms", "times medfm"), rows(seconds, "medfm")),
        "\n".join(
            (
                bar(f"at least 4 times as fast as MONAI Spacing: {monai:.1f}", monai >= 4),
                bar(f"within 1 HU rms of SimpleITK's linear filter on the same grid: {rms:.1e} HU", rms <= 1),
            )
        ),
    )


if __name__ == "__main__":
    main()
