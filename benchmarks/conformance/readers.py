"""The readers under test: `load(path) -> (array (i, j, k[, t][, 3]), (4, 4) RAS+ mm)`, or an exception, its refusal.

`path` is a file, or a folder that directly holds DICOM slices. Each is called the way its documentation shows, with the
modality rescale applied and neither window nor inversion asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

Result = tuple[np.ndarray, np.ndarray]


class Unplaced(np.ndarray):
    """An affine of which its reader says itself that it holds the spacing alone, or nothing (`knows`)."""

    knows: str = "spacing"


LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _is_nifti(path: str) -> bool:
    return path.lower().endswith((".nii", ".nii.gz"))


def medfm(path: str) -> Result:
    from medfm.io.load import load_image

    image = load_image(path)
    if image.oriented and image.spaced:
        return image.array, image.affine
    affine = np.array(image.affine).view(Unplaced)
    affine.knows = "spacing" if image.spaced else "nothing"
    return image.array, affine


def simpleitk(path: str) -> Result:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if Path(path).is_dir():
        reader = sitk.ImageSeriesReader()
        names = reader.GetGDCMSeriesFileNames(path)
        if not names:
            raise ValueError("no series")
        reader.SetFileNames(names)
        image = reader.Execute()
    else:
        image = sitk.ReadImage(path)
    size = image.GetDimension()
    array = sitk.GetArrayFromImage(image)
    colour = image.GetNumberOfComponentsPerPixel() > 1
    axes = list(range(size))[::-1]
    array = array.transpose(*axes, size) if colour else array.transpose(*axes)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(size, size)
    kept = min(size, 3)
    affine[:kept, :kept] = (direction * np.array(image.GetSpacing()))[:kept, :kept]
    affine[:kept, 3] = image.GetOrigin()[:kept]
    return array, LPS_TO_RAS @ affine


def monai_pydicom(path: str) -> Result:
    from monai.data import PydicomReader

    reader = PydicomReader()
    array, meta = reader.get_data(reader.read(path))
    channel = meta.get("original_channel_dim")
    if isinstance(channel, int) and 0 <= channel < array.ndim:
        array = np.moveaxis(array, channel, -1)
    return np.asarray(array), np.asarray(meta["affine"], np.float64)


def monai_nibabel(path: str) -> Result:
    from monai.data import NibabelReader

    reader = NibabelReader()
    array, meta = reader.get_data(reader.read(path))
    return _numbers(np.asarray(array)), np.asarray(meta["affine"], np.float64)


def monai_itk(path: str) -> Result:
    from monai.data import ITKReader

    reader = ITKReader()
    array, meta = reader.get_data(reader.read(path))
    return np.asarray(array), np.asarray(meta["affine"], np.float64)


def dicom2nifti(path: str) -> Result:
    import dicom2nifti as package
    import nibabel

    with tempfile.TemporaryDirectory() as folder:
        source = Path(path)
        if source.is_file():
            alone = Path(folder, "in")
            alone.mkdir()
            (alone / f"{source.name}.dcm").symlink_to(source)
            source = alone
        package.dicom_series_to_nifti(source, str(Path(folder, "out.nii")), reorient_nifti=False)
        image = nibabel.load(str(Path(folder, "out.nii")))
        return _numbers(np.asarray(image.dataobj)), np.asarray(image.affine)


def highdicom(path: str) -> Result:
    import highdicom as package
    import pydicom

    if Path(path).is_dir():
        files = [p for p in sorted(Path(path).iterdir()) if p.is_file() and not p.name.startswith(".")]
        volume = package.get_volume_from_series([pydicom.dcmread(p) for p in files], apply_presentation_lut=False)
    else:
        image = package.imread(path)
        volume = image.get_volume(apply_presentation_lut=False)
    # Its arrays are (slice, row, column[, 3]).
    return volume.array, LPS_TO_RAS @ np.asarray(volume.affine)


def nibabel(path: str) -> Result:
    import nibabel as package

    image = package.load(path)
    return _numbers(np.asarray(image.dataobj)), np.asarray(image.affine)


def _numbers(array: np.ndarray) -> np.ndarray:
    """Structured colour as a last axis."""
    return np.stack([array[name] for name in array.dtype.names[:3]], axis=-1) if array.dtype.names else array


READERS: dict[str, Callable[[str], Result]] = {
    "medfm": medfm,
    "SimpleITK": simpleitk,
    "MONAI ITKReader": monai_itk,
    "MONAI PydicomReader": monai_pydicom,
    "MONAI NibabelReader": monai_nibabel,
    "dicom2nifti": dicom2nifti,
    "highdicom": highdicom,
    "nibabel": nibabel,
}
DICOM_READERS = ("medfm", "SimpleITK", "MONAI ITKReader", "MONAI PydicomReader", "dicom2nifti", "highdicom")
NIFTI_READERS = ("medfm", "SimpleITK", "MONAI NibabelReader", "nibabel")
_NEEDS = {
    "SimpleITK": "SimpleITK",
    "MONAI ITKReader": "itk",
    "MONAI PydicomReader": "monai",
    "MONAI NibabelReader": "monai",
    "dicom2nifti": "dicom2nifti",
    "highdicom": "highdicom",
    "nibabel": "nibabel",
}


def installed(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(readers that can run, readers whose package is not installed)."""
    absent = [n for n in names if n in _NEEDS and find_spec(_NEEDS[n]) is None]
    return [n for n in names if n not in absent], absent


def warm(name: str) -> None:
    """Import what the reader imports on its first call, so that limits of time and memory count the case alone."""
    from importlib import import_module

    modules = {
        "medfm": ("medfm.io.load", "medfm.io.dicom", "medfm.io.series", "medfm.io.nifti", "nibabel", "pydicom.pixels"),
        "MONAI ITKReader": ("monai.data", "itk"),
        "MONAI PydicomReader": ("monai.data", "pydicom.pixels"),
        "MONAI NibabelReader": ("monai.data", "nibabel"),
        "dicom2nifti": ("dicom2nifti", "nibabel", "pydicom.pixels"),
        "highdicom": ("highdicom", "pydicom.pixels"),
        "nibabel": ("nibabel",),
        "SimpleITK": ("SimpleITK",),
    }
    for module in modules.get(name, ()):
        import_module(module)
