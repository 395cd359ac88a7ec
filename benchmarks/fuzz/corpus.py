"""The corpus: at least `n` inputs, the same on every machine with the same encoders."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, count
from pathlib import Path

import numpy as np

from benchmarks.conformance.pool import each
from benchmarks.conformance.space import Truth
from benchmarks.conformance.truth import frames_truth, image_truths, nifti_truth, stack_truth
from benchmarks.fuzz import dicom, niftis, streams
from benchmarks.fuzz.mutant import Mutant
from benchmarks.fuzz.seeds import Seed, dicom_seeds, nifti_seeds, series_seed


def sound(seeds: dict[str, Seed], niftis_: dict[str, Seed], stack: Seed) -> Iterator[Mutant]:
    """The seeds themselves: they must be read."""
    for seed in (*seeds.values(), *niftis_.values(), stack):
        label = f"NIfTI {seed.name}" if next(iter(seed.files)).endswith((".nii", ".gz")) else seed.name
        yield Mutant(f"{label}: undamaged", "harmless", seed.files, seed.truth, good=True)


def fixed(seeds: dict[str, Seed], volumes: dict[str, Seed], stack: Seed) -> Iterator[Mutant]:
    """Every damage that is made on purpose."""
    for name in ("grey", "rgb"):
        seed = seeds[name]
        yield from dicom.size_mutants(seed)
        yield from dicom.bits_mutants(seed)
        yield from dicom.syntax_mutants(seed)
        yield from dicom.spacing_mutants(seed)
    for name in ("grey", "film"):
        yield from dicom.structure_mutants(seeds[name])
    for name in ("grey", "jpeg 2000"):
        yield from dicom.harmless_mutants(seeds[name])
    yield from dicom.rescale_mutants(seeds["grey"])
    yield from dicom.palette_mutants(seeds["palette"])
    yield from dicom.no_dicom(seeds["grey"])
    for name in ("rle", "jpeg", "jpeg lossless", "jpeg-ls", "jpeg 2000"):
        yield from streams.encapsulated(seeds[name])
        yield from dicom.syntax_mutants(seeds[name])
    yield from streams.series(stack)
    yield from streams.enhanced(seeds["enhanced"])
    yield from niftis.header_mutants(volumes["int16"])
    yield from niftis.whole_mutants(volumes["int16"])
    for name, which in (("int16", "sq"), ("sform alone", "s"), ("qform alone", "q")):
        yield from niftis.place_mutants(volumes[name], which)
    yield from streams.packed(volumes["packed"])
    for seed in seeds.values():
        yield from streams.truncated(seed, 8)
    for seed in volumes.values():
        yield from streams.truncated(seed, 6)


def random(seeds: dict[str, Seed], volumes: dict[str, Seed]) -> Iterator[Mutant]:
    """Flipped bits and overwritten bytes, without an end."""
    for number in count():
        for seed in chain(seeds.values(), volumes.values()):
            yield streams.flipped(seed, "header", number)
            yield streams.flipped(seed, "pixels", number)
            yield streams.noise(seed, number)


def corpus(n: int = 1000) -> list[Mutant]:
    """The undamaged seeds, every damage on purpose, then random damage up to `n` inputs, and a hundred at the least."""
    with tempfile.TemporaryDirectory() as folder:
        seeds, volumes = dicom_seeds(Path(folder)), nifti_seeds(Path(folder))
    stack = series_seed()
    found = [*sound(seeds, volumes, stack), *fixed(seeds, volumes, stack)]
    spare = max(n - len(found), 100)
    endless = random(seeds, volumes)
    return found + [next(endless) for _ in range(spare)]


@dataclass(frozen=True)
class Input:
    """A mutant on disk, and the truths of which a result must equal one."""

    mutant: Mutant
    path: Path
    truths: tuple[str, ...]


def write(mutants: list[Mutant], folder: Path) -> list[Input]:
    """Write the inputs and their truths. A truth is saved once, however many share it."""
    saved: dict[int, str] = {}
    kept: list[Truth] = []  # so that an id stays one truth's for good

    def keep(truth: Truth) -> str:
        if id(truth) not in saved:
            kept.append(truth)
            saved[id(truth)] = str(truth.save(folder / "truths" / f"{len(saved)}.npz"))
        return saved[id(truth)]

    paths = [mutant.write(folder / f"{number:05d}") for number, mutant in enumerate(mutants)]
    asked = [n for n, mutant in enumerate(mutants) if mutant.stated and not mutant.refuse]
    # In a child: decoders die of damaged streams.
    said: dict[int, list[str]] = {n: [] for n in asked}
    for gdcm in (False, True):
        some = [n for n in asked if not gdcm or (_kind(mutants[n]) == "image" and _compressed(mutants[n]))]
        tasks = [(paths[n], _kind(mutants[n]), folder / f"stated-{gdcm}" / str(n), gdcm) for n in some]
        for n, saved_there in zip(some, each(_save_stated, _nothing, tasks, 20.0), strict=True):
            said[n] += saved_there if isinstance(saved_there, list) else []
    inputs = []
    for number, mutant in enumerate(mutants):
        truths: list[str] = []
        if not mutant.refuse:
            truths = [keep(t) for t in ([mutant.original] if mutant.original is not None else []) + list(mutant.others)]
            truths += said.get(number, [])
        inputs.append(Input(mutant, paths[number], tuple(truths)))
    return inputs


def _nothing() -> None:
    """No modules to import beforehand."""


def _kind(mutant: Mutant) -> str:
    if mutant.kind == "nifti" or len(mutant.files) > 1:
        return "nifti" if mutant.kind == "nifti" else "series"
    deep = mutant.original is not None and mutant.original.array.shape[2] > 1
    return "frames" if deep else "image"


def _compressed(mutant: Mutant) -> bool:
    return b"\xfe\xff\x00\xe0" in next(iter(mutant.files.values()))


def _save_stated(task: tuple[Path, str, Path, bool]) -> list[str]:
    path, kind, folder, gdcm = task
    return [str(t.save(folder / f"{n}.npz")) for n, t in enumerate(stated(path, kind, gdcm))]


def stated(path: Path, kind: str, gdcm: bool = False) -> list[Truth]:
    """What the damaged file says, decoded without medfm; [] where that is nothing."""
    try:
        if kind == "nifti":
            return _stated_volume(path)
        if kind == "series":
            return [stack_truth(sorted(path.iterdir()))]
        if kind == "frames":
            return [frames_truth(path)]
        found = _of_itk(path) if gdcm else []
    except Exception:  # parsers and decoders raise whatever they do
        return []
    try:
        return [*found, *image_truths(path, gdcm)]
    except Exception:
        return found


def _of_itk(path: Path) -> list[Truth]:
    """A damaged lossy JPEG by ITK's decoder: where the stream breaks off, decoders fill in as they like."""
    from benchmarks.conformance.readers import simpleitk
    from benchmarks.conformance.truth import plane_affine, read

    dataset = read(path)
    if str(dataset.file_meta.TransferSyntaxUID) not in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"):
        return []
    try:
        array, _ = simpleitk(str(path))
    except RuntimeError:
        return []
    affine, placed = plane_affine(dataset)
    return [Truth(array, affine, placed, 2.0, None, "SimpleITK")]


def _stated_volume(path: Path) -> list[Truth]:
    """By nibabel; where it refuses the header, by the fields that place and number the voxels alone."""
    import nibabel

    try:
        return [nifti_truth(path, "nibabel")]
    except Exception:  # nibabel's and numpy's
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        kind = nibabel.Nifti2Header if raw[4:7] == b"n+2" else nibabel.Nifti1Header
        header = kind.from_fileobj(BytesIO(raw[: kind.sizeof_hdr]), check=False)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        voxels = np.frombuffer(raw, dtype, int(np.prod(shape)), header.get_data_offset()).reshape(shape, order="F")
        slope, inter = header.get_slope_inter()
        if dtype.names:
            voxels = np.stack([voxels[name] for name in dtype.names[:3]], axis=-1)
        elif slope is not None:
            voxels = voxels * float(slope) + float(inter or 0)
        return [Truth(voxels, header.get_best_affine())]
