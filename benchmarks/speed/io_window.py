"""Apply a VOI window to a film of 3000 x 2500: medfm against pydicom's apply_voi_lut.

    python -m benchmarks.speed.io_window

Writes benchmarks/results/io_window.md. Both give the same picture, pydicom on its output scale in float64 (an explicit table in
integers), medfm as float32 in [0, 1].
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.common import bar, table, write
from benchmarks.speed.timing import in_turns, one_thread, ratio, versions
from medfm.types import Window

BITS = 12


def film(shape: tuple[int, int], bits: int = BITS, seed: int = 0) -> np.ndarray:
    """(rows, columns) unsigned: smooth shadows with quantum noise, as a radiograph has them."""
    from scipy.ndimage import zoom

    random = np.random.default_rng(seed)
    coarse = random.random(tuple(max(2, n // 64) for n in shape))
    smooth = zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1, grid_mode=True, mode="nearest")
    top = 2**bits - 1
    values = (0.1 + 0.75 * smooth[: shape[0], : shape[1]]) * top + random.normal(scale=top / 600, size=shape)
    return np.clip(np.rint(values), 0, top).astype(np.uint8 if bits <= 8 else np.uint16)


def header(function: str) -> tuple[Any, Window, float]:
    """(a dataset with the VOI, the same for medfm, pydicom's largest output)."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.PixelRepresentation, dataset.BitsStored = "MONOCHROME2", 0, BITS
    if function == "LUT":
        lut = np.rint(65535 / (1 + np.exp(-(np.arange(2**BITS) - 2048) / 500))).astype(np.uint16)
        item = Dataset()
        item.LUTDescriptor = [len(lut), 0, 16]
        item.LUTData = lut.tobytes()
        item["LUTData"].VR = "OW"
        dataset.VOILUTSequence = [item]
        dataset.set_original_encoding(False, True)
        return dataset, Window(function="LUT", lut=lut.astype(np.float32), first=0, lut_max=65535), 65535.0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 2000, 3000, function
    return dataset, Window(2000, 3000, function), 2.0**BITS - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=[3000, 2500])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--name", default="io_window", help="file in benchmarks/results")
    arguments = parser.parse_args()
    one_thread()
    from pydicom.pixels import apply_voi_lut

    from medfm.transforms.window import apply_window

    stored = film(tuple(arguments.shape))
    lines, ratios = [], {}
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID", "LUT"):
        dataset, window, top = header(function)
        np.testing.assert_allclose(apply_window(stored, window), apply_voi_lut(stored, dataset) / top, atol=1e-6)
        seconds = in_turns(
            {
                "medfm": lambda window=window: apply_window(stored, window),
                "pydicom": lambda dataset=dataset: apply_voi_lut(stored, dataset),
            },
            arguments.runs,
        )
        ratios[function] = ratio(seconds, "pydicom", "medfm")
        best = {name: 1000 * min(s) for name, s in seconds.items()}
        lines.append((function, f"{best['medfm']:.1f}", f"{best['pydicom']:.1f}", f"{ratios[function]:.1f}"))
    windowed = min(ratios[function] for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"))
    write(
        arguments.name,
        "VOI windows",
        f"A film of {' x '.join(map(str, arguments.shape))} pixels of {BITS} bits; one thread, {arguments.runs} interleaved "
        f"runs; {versions('pydicom', 'numpy')}. Pictures are equal within 1e-6 of their range. LUT is an explicit VOI LUT "
        "Sequence, which pydicom looks up in integers, without making them displayable.",
        table(("function", "medfm best ms", "pydicom best ms", "ratio of medians"), lines),
        bar(f"at least 8 times pydicom's apply_voi_lut on each of the window functions: {windowed:.1f}", windowed >= 8),
        bar(f"at least 8 times on an explicit VOI LUT Sequence: {ratios['LUT']:.1f}", ratios["LUT"] >= 8),
    )


if __name__ == "__main__":
    main()
