"""A damaged (or oddly but rightly written) input, and what may come of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.conformance.space import Truth


@dataclass(frozen=True)
class Mutant:
    """One input, not yet on disk.

    Attributes:
        name: seed and damage, unique.
        family: the kind of damage, for the table.
        files: name -> bytes: one file, or the slices of a folder.
        original: what the undamaged input holds; a reader that returns it is never wrong, unless `refuse`.
        good: a harmless peculiarity: it must be read, as the original.
        refuse: nothing but a refusal is right: the damage can be known.
        stated: damage that nobody can know (a flipped bit of a voxel): what the damaged file states, worked out by the
            benchmark from its bytes, is right as well.
        others: further results that are right, for example the values without a place whose header is broken.
    """

    name: str
    family: str
    files: dict[str, bytes] = field(repr=False)
    original: Truth | None = field(repr=False, default=None)
    good: bool = False
    refuse: bool = False
    stated: bool = False
    others: tuple[Truth, ...] = field(repr=False, default=())

    @property
    def kind(self) -> str:
        return "nifti" if next(iter(self.files)).endswith((".nii", ".nii.gz")) else "dicom"

    def write(self, folder: Path) -> Path:
        """The path that a reader gets: the file, or the folder of slices."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in self.files.items():
            (folder / name).write_bytes(raw)
        return folder if len(self.files) > 1 else folder / next(iter(self.files))
