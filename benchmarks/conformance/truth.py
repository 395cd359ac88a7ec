"""What the files say, worked out here by a few lines of one's own, and what dcm2niix makes of them.

Nothing of medfm is used. Stored pixels come from pydicom, with every installed decoder that reads them; the rescale is done in
float64.
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.conformance.readers import LPS_TO_RAS
from benchmarks.conformance.space import Placed, Truth

if TYPE_CHECKING:
    from pydicom import Dataset

_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91")


def read(path: Path) -> Dataset:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set: pydicom found its encoding by looking
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
    return dataset


def stored(dataset: Dataset, gdcm: bool = False) -> list[np.ndarray]:
    """(frame, row, column[, 3]) stored values, colour as RGB, one array for each outcome that installed decoders reach.

    `gdcm`: let it decode too. It ends the process on some damaged JPEG streams, so else only where nothing else decodes.

    Raises:
        Exception: no decoder reads it.
    """
    from pydicom.pixels import get_decoder

    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel"):
        value = dataset.get(keyword)
        if value is not None and not isinstance(value, int):
            del dataset[keyword]  # a number under a wrong VR
            setattr(dataset, keyword, int(value))
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    spared = set() if gdcm else {"gdcm"}
    plugins = sorted(set(decoder.available_plugins) - spared, reverse=True) or list(decoder.available_plugins)
    plugins = plugins if dataset.file_meta.TransferSyntaxUID.is_encapsulated else [""]
    found: list[np.ndarray] = []
    trouble: BaseException | None = None
    for plugin in plugins:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array, about = decoder.as_array(dataset, decoding_plugin=plugin)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a decoder in Rust panics with one that is no Exception
            trouble = error
            continue
        array = _frames_first(array, dataset, int(about["number_of_frames"]))
        if str(dataset.file_meta.TransferSyntaxUID) in _LOSSY and array.ndim == 3:
            bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
            # A lossy encoding overshoots what the stored bits can hold.
            array = np.clip(array, -(1 << (bits - 1)) if signed else 0, (1 << (bits - signed)) - 1)
        if not any(np.array_equal(array, other) for other in found):
            found.append(array)
    if not found:
        raise ValueError(f"no decoder reads it: {type(trouble).__name__}")
    return found


def _frames_first(array: np.ndarray, dataset: Dataset, frames: int) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    array = array if frames > 1 else array[None]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colour = apply_color_lut(array, dataset)[..., :3]
        array = (colour >> 8).astype(np.uint8) if colour.dtype.itemsize > 1 and colour.max(initial=0) > 255 else colour
    return array


def rescaled(array: np.ndarray, dataset: Dataset) -> np.ndarray:
    """float64 after the modality LUT or rescale (PS3.3 C.11.1); colour as it is."""
    if array.ndim == 4 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return array
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        return np.asarray(apply_modality_lut(array, dataset), np.float64)
    if dataset.get("Modality") == "RTDOSE":
        return array * float(dataset.DoseGridScaling)
    return array.astype(np.float64) * float(dataset.get("RescaleSlope", 1) or 0) + float(
        dataset.get("RescaleIntercept", 0) or 0
    )


def _padding(array: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Where a stored value is the padding value (PS3.3 C.7.5.1.1.2)."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None or array.ndim == 4:
        return np.zeros(array.shape[:3], bool)
    first, last = sorted((int(value), int(value if limit is None else limit)))
    values = array.astype(np.int64)
    wrapped = values - 2 ** (8 * array.itemsize)
    return ((values >= first) & (values <= last)) | ((wrapped >= first) & (wrapped <= last))


def _tolerance(dataset: Dataset) -> float:
    """Decoders of lossy encodings round differently: by 2 stored units in grey, by more where they change colour spaces."""
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    colour = int(dataset.get("SamplesPerPixel") or 1) == 3
    if syntax not in _LOSSY:
        # A YBR picture may be rounded once more on its way to RGB, whatever its encoding.
        return 3.0 if colour and "YBR" in str(dataset.get("PhotometricInterpretation")) else 0.0
    return 6.0 if colour else 2.0 * abs(float(dataset.get("RescaleSlope", 1) or 1))


def _number(dataset: Dataset, keyword: str) -> float:
    """Its value; 0 where it is none."""
    try:
        value = float(dataset.get(keyword) or 0)
    except (TypeError, ValueError):
        return 0.0
    return value if np.isfinite(value) else 0.0


def plane_affine(dataset: Dataset) -> tuple[np.ndarray, Placed]:
    """(4, 4) RAS+ of one slice (PS3.3 C.7.6.2.1.1), and how much of it the file says."""
    spacing = [float(v) for v in dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing") or []]
    if len(spacing) != 2 or min(spacing) <= 0:
        return np.eye(4), "nothing"
    affine = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    cosines = [float(v) for v in dataset.get("ImageOrientationPatient") or []]
    position = [float(v) for v in dataset.get("ImagePositionPatient") or []]
    if len(cosines) != 6 or len(position) != 3 or np.linalg.norm(cosines) < 1e-6:
        return affine, "spacing"
    row, column = (np.array(v) / np.linalg.norm(v) for v in (cosines[:3], cosines[3:]))
    step = _number(dataset, "SpacingBetweenSlices") or _number(dataset, "SliceThickness") or 1.0
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * spacing[1], column * spacing[0], np.cross(row, column) * step
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine, "space"


def image_truths(path: Path, gdcm: bool = False) -> list[Truth]:
    """One file of one frame, or of many without a place of their own (a cine): (i, j, 1[, t][, 3]).

    Raises:
        Exception: it holds no pixels that a decoder reads.
    """
    dataset = read(path)
    affine, placed = plane_affine(dataset)
    truths = []
    for array in stored(dataset, gdcm):
        values, padding = rescaled(array, dataset), _padding(array, dataset)
        if len(array) > 1:
            order = (2, 1, 0, 3) if values.ndim == 4 else (2, 1, 0)
            volume, outside = values.transpose(order)[:, :, None], padding.transpose(2, 1, 0)[:, :, None]
        else:
            volume = values[0].swapaxes(0, 1)[:, :, None]
            outside = padding[0].swapaxes(0, 1)[:, :, None]
        truths.append(Truth(volume, affine, placed, _tolerance(dataset), outside))
    return truths


def stack_truth(files: Sequence[Path], times: int = 1, straight: bool = True) -> Truth:
    """A folder of slices: sorted along the normal; at each place by instance number, where there are several `times`.

    `straight`: refuse a stack whose slices shift sideways; else its affine is sheared, as they are.

    Raises:
        ValueError: the slices do not lie on an even grid.
    """
    datasets = [read(path) for path in files]
    first = datasets[0]
    affine, _ = plane_affine(first)
    normal = np.cross(*(np.array(first.ImageOrientationPatient, float).reshape(2, 3)))
    place = np.array([np.array(d.ImagePositionPatient, float) for d in datasets])
    along = place @ normal
    order = sorted(range(len(files)), key=lambda n: (round(float(along[n]), 3), int(datasets[n].get("InstanceNumber") or 0)))
    planes = [rescaled(stored(datasets[n])[0], datasets[n])[0] for n in order]
    outside = [_padding(stored(datasets[n])[0], datasets[n])[0] for n in order]
    count = len(files) // times
    steps = place[order].reshape(count, times, 3)[:, 0]
    if count > 1:
        gaps = np.diff(steps, axis=0)
        affine[:3, 2] = LPS_TO_RAS[:3, :3] @ _even_step(gaps, normal, straight)
    affine[:3, 3] = LPS_TO_RAS[:3, :3] @ steps[0]
    volume = np.stack(planes)
    padding = np.stack(outside)
    if times > 1:
        volume = np.moveaxis(volume.reshape(count, times, *volume.shape[1:]), 1, 3)
        padding = np.moveaxis(padding.reshape(count, times, *padding.shape[1:]), 1, 3)
    # (k, row, column, ...) -> (i, j, k, ...)
    return Truth(np.swapaxes(volume, 0, 2), affine, "space", _tolerance(first), np.swapaxes(padding, 0, 2))


def _even_step(gaps: np.ndarray, normal: np.ndarray, straight: bool = True) -> np.ndarray:
    """The mean of (n, 3) steps from slice to slice. Raises ValueError where they are uneven, nought or not along the normal."""
    mean = gaps.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-3 or np.abs(gaps - mean).max() > 0.05 * length or (straight and abs(mean @ normal) < 0.9998 * length):
        raise ValueError("slices on no even, straight grid")
    return mean


def frames_truth(path: Path) -> Truth:
    """An enhanced object of one volume (or several in time): frames placed by their functional groups, sorted along the normal.

    Raises:
        Exception: the frames have no place, several orientations, or lie on no even grid.
    """
    from pydicom import Dataset

    dataset = read(path)
    array = stored(dataset)[0]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]

    def group(frame: int, name: str, keyword: str) -> Any:
        for item in (dataset.PerFrameFunctionalGroupsSequence[frame], shared):
            if item.get(name):
                return item[name].value[0].get(keyword)
        return None

    frames = range(len(array))
    place = np.array([group(n, "PlanePositionSequence", "ImagePositionPatient") for n in frames], float)
    cosines = np.array([group(n, "PlaneOrientationSequence", "ImageOrientationPatient") for n in frames], float)
    spacing = np.array([group(n, "PixelMeasuresSequence", "PixelSpacing") for n in frames], float)
    if np.ptp(cosines, axis=0).max() > 1e-3 or np.ptp(spacing, axis=0).max() > 1e-4:
        raise ValueError("frames of several geometries")
    row, column = cosines[0].reshape(2, 3)
    along = place @ np.cross(row, column)
    slope = [float(group(n, "PixelValueTransformationSequence", "RescaleSlope") or 1) for n in frames]
    inter = [float(group(n, "PixelValueTransformationSequence", "RescaleIntercept") or 0) for n in frames]
    values = np.stack([array[n] * slope[n] + inter[n] for n in frames])
    places = np.unique(np.round(along, 3))
    times = len(array) // len(places)
    order = sorted(frames, key=lambda n: (round(float(along[n]), 3), _moment(dataset, n), n))
    steps = place[order].reshape(len(places), times, 3)[:, 0]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[0][1], column * spacing[0][0]
    affine[:3, 2] = np.cross(row, column)
    if len(places) > 1:
        gaps = np.diff(steps, axis=0)
        affine[:3, 2] = _even_step(gaps, np.cross(row, column))
    affine[:3, 3] = steps[0]
    volume = values[order]
    if times > 1:
        volume = np.moveaxis(volume.reshape(len(places), times, *volume.shape[1:]), 1, 3)
    return Truth(np.swapaxes(volume, 0, 2), LPS_TO_RAS @ affine, "space", _tolerance(dataset))


def _moment(dataset: Dataset, frame: int) -> int:
    content = dataset.PerFrameFunctionalGroupsSequence[frame].get("FrameContentSequence")
    return int((content[0].get("TemporalPositionIndex") or 0) if content else 0)


def nifti_truth(path: Path, made_by: str, tolerance: float = 0.0) -> Truth:
    """A shipped reference, read by nibabel; values after its own scaling, in float64."""
    import nibabel

    image = nibabel.load(str(path))
    array = np.asarray(image.dataobj)
    if array.dtype.names:
        array = np.stack([array[name] for name in array.dtype.names[:3]], axis=-1)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    outside = ~np.isfinite(array) if array.dtype.kind == "f" else None
    return Truth(array, np.asarray(image.affine), "space", tolerance, outside, made_by)


def dcm2niix(files: Sequence[Path], like: Truth | None = None, made: str = ".nii") -> Truth | None:
    """What dcm2niix makes of the files; None where it makes none or several volumes (whose names end as `made`).

    `-p n`: its Philips "precise" values are not those of the DICOM rescale.
    """
    from dcm2niix import bin as binary

    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        out.mkdir()
        for n, path in enumerate(files):
            (source / f"{n:05d}.dcm").symlink_to(Path(path).resolve())
        options = ["-p", "n", "-b", "n", "-z", "n", "-x", "i", "-l", "o", "-f", "volume"]
        try:
            subprocess.run([binary, *options, "-o", str(out), str(source)], capture_output=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return None
        found = sorted(out.glob(f"*{made}"))
        if len(found) != 1:
            return None
        truth = nifti_truth(found[0], "dcm2niix")
        truth = replace(truth, array=np.array(truth.array))
    return replace(truth, tolerance=like.tolerance, padding=like.padding) if like is not None else truth
