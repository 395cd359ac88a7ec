"""Decode a film of 3000 x 2500 in each transfer syntax: medfm against every installed decoder.

    python -m benchmarks.speed.io_decode

Writes benchmarks/results/io_decode.md. The film is encoded here by the encoders that are installed. A peer counts where it
gives the pixels that medfm gives; peers are pydicom's plugins, SimpleITK, gdcm into a buffer, and the codec libraries called
directly on the frame's bytes, without pydicom around them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import bar, table, write
from benchmarks.speed.io_window import film
from benchmarks.speed.timing import in_turns, one_thread, versions

# name -> (transfer syntax, bits, who encodes it)
SYNTAXES = {
    "uncompressed": ("1.2.840.10008.1.2.1", 12, "pydicom"),
    "uncompressed, big endian": ("1.2.840.10008.1.2.2", 12, "pydicom"),
    "RLE": ("1.2.840.10008.1.2.5", 12, "pydicom"),
    "RLE, 8 bits": ("1.2.840.10008.1.2.5", 8, "pydicom"),
    "JPEG Baseline, 8 bits": ("1.2.840.10008.1.2.4.50", 8, "gdcm"),
    "JPEG Lossless SV1": ("1.2.840.10008.1.2.4.70", 12, "gdcm"),
    "JPEG Lossless SV1, 8 bits": ("1.2.840.10008.1.2.4.70", 8, "gdcm"),
    "JPEG Lossless": ("1.2.840.10008.1.2.4.57", 12, "gdcm"),
    "JPEG-LS lossless": ("1.2.840.10008.1.2.4.80", 12, "pydicom"),
    "JPEG-LS near-lossless": ("1.2.840.10008.1.2.4.81", 12, "pydicom"),
    "JPEG 2000 lossless": ("1.2.840.10008.1.2.4.90", 12, "pydicom"),
    "JPEG 2000 lossless, 8 bits": ("1.2.840.10008.1.2.4.90", 8, "pydicom"),
    "JPEG 2000, 10 to 1": ("1.2.840.10008.1.2.4.91", 12, "pydicom"),
}
_OPTIONS: dict[str, dict[str, Any]] = {"1.2.840.10008.1.2.4.81": {"jls_error": 2}, "1.2.840.10008.1.2.4.91": {"j2k_cr": [10]}}
# gdcm's encoder takes its own numbers for transfer syntaxes.
_GDCM = {
    "1.2.840.10008.1.2.4.50": "JPEGBaselineProcess1",
    "1.2.840.10008.1.2.4.57": "JPEGLosslessProcess14",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessProcess14_1",
}


def write_film(array: np.ndarray, bits: int, path: Path, big_endian: bool = False) -> None:
    """An uncompressed secondary capture."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big_endian else ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = generate_uid(), generate_uid(), "OT"
    dataset.Rows, dataset.Columns = array.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * array.itemsize, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = array.astype(array.dtype.newbyteorder(">")).tobytes() if big_endian else array.tobytes()
    dataset["PixelData"].VR = "OW" if array.itemsize > 1 else "OB"
    dataset.save_as(path, enforce_file_format=True)


def encode(array: np.ndarray, name: str, folder: Path) -> Path:
    """The film in the syntax of that name."""
    import pydicom

    uid, bits, encoder = SYNTAXES[name]
    plain, path = folder / "plain.dcm", folder / "encoded.dcm"
    write_film(array, bits, plain, big_endian=uid == "1.2.840.10008.1.2.2")
    if uid in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"):
        return plain.replace(path)
    if encoder == "pydicom":
        dataset = pydicom.dcmread(plain)
        dataset.compress(uid, **_OPTIONS.get(uid, {}))
        dataset.save_as(path)
        return path
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    if not reader.Read():
        raise RuntimeError(f"gdcm cannot read '{plain}'")
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, _GDCM[uid])))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"gdcm cannot encode {name}")
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"gdcm cannot write '{path}'")
    return path


def decoders(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """name -> a call that gives (rows, columns)."""
    import gdcm
    import pydicom
    import SimpleITK
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    from medfm.io.pixels import decode

    dataset = pydicom.dcmread(path)
    shape, dtype = (dataset.Rows, dataset.Columns), np.dtype(f"u{dataset.BitsAllocated // 8}")
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    found: dict[str, Callable[[], np.ndarray]] = {"medfm": lambda: decode(dataset, str(path))[0]}
    for plugin in decoder.available_plugins if decoder.is_encapsulated else ("",):
        name = f"pydicom, {plugin}" if plugin else "pydicom"
        found[name] = lambda plugin=plugin: decoder.as_array(dataset, index=0, decoding_plugin=plugin)[0]
    found["SimpleITK"] = lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0]

    def region() -> np.ndarray:
        reader, box = gdcm.ImageRegionReader(), gdcm.BoxRegion()
        reader.SetFileName(str(path))
        reader.ReadInformation()
        box.SetDomain(0, shape[1] - 1, 0, shape[0] - 1, 0, 0)
        reader.SetRegion(box)
        buffer = bytearray(shape[0] * shape[1] * dtype.itemsize)
        if not reader.ReadIntoBuffer(buffer):
            raise RuntimeError("gdcm cannot read it")
        return np.frombuffer(buffer, dtype).reshape(shape)

    found["gdcm, buffer"] = region
    if decoder.is_encapsulated:
        found |= _libraries(lambda: get_frame(dataset.PixelData, 0, number_of_frames=1), shape, dtype)
    return found


def _libraries(frame: Callable[[], bytes], shape: tuple[int, int], dtype: np.dtype[Any]) -> dict[str, Callable[[], np.ndarray]]:
    """Codec libraries on the frame's own bytes, taken out of the pixel data within the time, as all others have to."""
    import jpeg_ls
    import libjpeg
    import openjpeg
    import rle
    from PIL import Image as Pictures

    def rle_frame() -> np.ndarray:
        options = {"rows": shape[0], "columns": shape[1], "bits_allocated": 8 * dtype.itemsize}
        return np.frombuffer(rle.decode_pixel_data(frame(), version=2, **options), dtype).reshape(shape)

    return {
        "Pillow alone": lambda: np.asarray(Pictures.open(BytesIO(frame()))),
        "pyjpegls alone": lambda: np.frombuffer(jpeg_ls.decode_pixel_data(frame())[0], dtype).reshape(shape),
        "libjpeg alone": lambda: libjpeg.decode(frame()),
        "openjpeg alone": lambda: openjpeg.decode(frame()),
        "rle alone": rle_frame,
    }


def able(candidates: dict[str, Callable[[], np.ndarray]]) -> dict[str, Callable[[], np.ndarray]]:
    """medfm, and those that give what it gives; a decoder may round a lossy frame otherwise by 1."""
    from PIL import UnidentifiedImageError

    expected = candidates["medfm"]().astype(np.int32)
    kept = {"medfm": candidates["medfm"]}
    for name, decode in candidates.items():
        try:
            found = decode()
        except (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError, OSError, UnidentifiedImageError):
            continue
        if found.shape == expected.shape and np.abs(found.astype(np.int32) - expected).max() <= 1:
            kept[name] = decode
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=[3000, 2500])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--only", default="", help="syntaxes with this word in their name")
    parser.add_argument("--name", default="io_decode", help="file in benchmarks/results")
    arguments = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    lines, worst = [], ("", 0.0)
    with tempfile.TemporaryDirectory() as place:
        for name in (n for n in SYNTAXES if arguments.only.lower() in n.lower()):
            bits = SYNTAXES[name][1]
            stored = film(tuple(arguments.shape), bits)
            candidates = able(decoders(encode(stored, name, Path(place))))
            if SYNTAXES[name][0] not in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"):
                np.testing.assert_array_equal(candidates["medfm"](), stored, err_msg=name)
            seconds = in_turns(candidates, arguments.runs)
            own = median(seconds.pop("medfm"))
            peers = sorted((median(s), peer) for peer, s in seconds.items())
            ratio = own / peers[0][0]
            worst = max(worst, (name, ratio), key=lambda item: item[1])
            others = "; ".join(f"{peer} {1000 * s:.3g}" for s, peer in peers)
            lines.append((name, f"{1000 * own:.3g}", f"{ratio:.2f}", others))
            print(*lines[-1], sep=" | ", flush=True)
    write(
        arguments.name,
        "Decoding a film",
        f"{' x '.join(map(str, arguments.shape))} pixels, 12 bits where not said otherwise; one thread, medians of "
        f"{arguments.runs} interleaved runs, in ms. SimpleITK and 'gdcm, buffer' also read the file. "
        + versions("pydicom", "pillow", "python-gdcm", "SimpleITK", "pyjpegls")
        + ", "
        + versions("pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
        table(("transfer syntax", "medfm", "over the best peer", "peers"), lines),
        bar(f"within 5 % of the best installed decoder for each: at worst {worst[1]:.2f} ({worst[0]})", worst[1] <= 1.05),
    )


if __name__ == "__main__":
    main()
