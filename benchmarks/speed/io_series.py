"""Load a CT series of 200 slices: medfm against SimpleITK, MONAI's PydicomReader and dicom2nifti.

    python -m benchmarks.speed.io_series

Writes benchmarks/results/io_series.md. Files are named in random order, so that every reader has to sort them by position, and
every reader's volume is compared with what was written before anything is timed.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import bar, table, write
from benchmarks.speed.io_nifti import volume
from benchmarks.speed.timing import in_turns, one_thread, ratio, rows, versions

SPACING = (0.8, 0.7, 1.25)  # mm along i, j, k


def write_series(array: np.ndarray, folder: Path, seed: int = 0) -> None:
    """(i, j, k) Hounsfield units as one uncompressed axial CT series, a file a slice, names shuffled."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    names = np.random.default_rng(seed).permutation(array.shape[2])
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(array.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Modality, dataset.Manufacturer, dataset.PatientName, dataset.PatientID = "CT", "none", "Phantom", "phantom"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 1, k + 1, 1
        dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20200101"
        dataset.PatientPosition, dataset.SliceThickness, dataset.KVP = "HFS", str(SPACING[2]), "120"
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-200, -180, round(40 + SPACING[2] * k, 4)]
        dataset.PixelSpacing = [SPACING[1], SPACING[0]]
        dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
        dataset.WindowCenter, dataset.WindowWidth = "40", "400"
        dataset.PixelData = (array[:, :, k].T + np.int16(1024)).tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(folder / f"{names[k]:04d}.dcm", enforce_file_format=True)


def readers(folder: Path) -> dict[str, Callable[[], Any]]:
    """name -> a call that gives something of which `as_ijk` makes the volume."""
    import SimpleITK
    from dicom2nifti.convert_dicom import dicom_series_to_nifti
    from monai.transforms import LoadImage

    from medfm.io.folder import forget
    from medfm.io.load import load_image

    load = LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=False)
    logging.getLogger("dicom2nifti").setLevel(logging.ERROR)

    def sitk() -> Any:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return reader.Execute()

    def first() -> Any:
        forget()
        return load_image(folder).array

    return {
        "medfm": first,
        "medfm, the folder loaded before": lambda: load_image(folder).array,
        "SimpleITK": sitk,
        "MONAI PydicomReader": lambda: load(folder),
        "dicom2nifti": lambda: dicom_series_to_nifti(str(folder), None, reorient_nifti=False)["NII"],
    }


def as_ijk(name: str, found: Any) -> np.ndarray:
    """A reader's volume along the file's own i, j, and k from feet to head."""
    if name == "SimpleITK":
        import SimpleITK

        return SimpleITK.GetArrayFromImage(found).transpose(2, 1, 0)
    if name == "dicom2nifti":
        import nibabel

        return np.asarray(nibabel.as_closest_canonical(found).dataobj)[::-1, ::-1]  # RAS, and the file runs to left and back
    return np.asarray(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 200])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--name", default="io_series", help="file in benchmarks/results")
    arguments = parser.parse_args()
    one_thread()
    array = volume(tuple(arguments.shape))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_series(array, folder)
        candidates = readers(folder)
        for name, read in candidates.items():
            np.testing.assert_array_equal(as_ijk(name, read()), array, err_msg=name)
        seconds = in_turns(candidates, arguments.runs)
    sitk, monai = ratio(seconds, "medfm", "SimpleITK"), ratio(seconds, "MONAI PydicomReader", "medfm")
    write(
        arguments.name,
        "Loading a CT series",
        f"{arguments.shape[2]} uncompressed slices of {arguments.shape[0]} x {arguments.shape[1]}, names shuffled; one thread, "
        f"{arguments.runs} interleaved runs from the page cache; {versions('pydicom', 'SimpleITK', 'monai', 'dicom2nifti')}. "
        "All give equal voxels. medfm also checks that the slices are of one series, evenly spaced, untilted and complete; it "
        "remembers the headers of a folder that it loaded before, which the bars do not count on.",
        table(("reader", "best ms", "median ms", "times medfm"), rows(seconds, "medfm")),
        "\n".join(
            (
                bar(f"at most 1.1 times SimpleITK's time: {sitk:.2f}", sitk <= 1.1),
                bar(f"at least 5 times as fast as MONAI PydicomReader: {monai:.2f}", monai >= 5),
            )
        ),
    )


if __name__ == "__main__":
    main()
