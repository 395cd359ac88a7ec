"""Markers left by medfm and by the tools that it is compared with, on the same planted files.

python -m benchmarks.deidentify
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common import bar, table, write
from benchmarks.deidentify.planted import Planted, everything, plant, plant_dicom


def _medfm(source: Path, out: Path) -> None:
    from medfm.data.deidentify.config import DeidentifyConfig
    from medfm.data.deidentify.run import run_deidentify

    values = {"in": source, "out": out, "workers": 0}
    if source.with_name(f"{source.name}.csv").exists():
        values |= {"reports": source.with_name(f"{source.name}.csv"), "keep": "label"}
    run_deidentify(DeidentifyConfig(**values))


def _dicom_anonymizer(source: Path, out: Path) -> None:
    from dicomanonymizer.simpledicomanonymizer import anonymize_dicom_file

    out.mkdir()
    anonymize_dicom_file(str(source / "a.dcm"), str(out / "a.dcm"))


def _dicognito(source: Path, out: Path) -> None:
    import pydicom
    from dicognito.anonymizer import Anonymizer

    out.mkdir()
    dataset = pydicom.dcmread(source / "a.dcm")
    Anonymizer().anonymize(dataset)
    dataset.save_as(out / "a.dcm")


def _flags(folder: Path, planted: Planted) -> tuple[str, str]:
    """Whether the tool itself said that and how it de-identified: what was there before does not count."""
    import pydicom

    dataset = pydicom.dcmread(next(folder.rglob("*.dcm")))
    values = [str(dataset.get(k) or "") for k in ("PatientIdentityRemoved", "DeidentificationMethod")]
    said = ["yes" if v and v not in planted.places else "no" for v in values]
    return said[0], said[1]


def main() -> None:
    warnings.simplefilter("ignore")
    tools: list[tuple[str, Callable[[Path, Path], None]]] = [
        ("medfm", _medfm),
        (f"dicom-anonymizer {version('dicom-anonymizer')} alone", _dicom_anonymizer),
    ]
    if find_spec("dicognito"):
        tools.append((f"dicognito {version('dicognito')}", _dicognito))
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        core = Planted()
        dataset = plant_dicom(core)
        (folder / "one").mkdir()
        dataset.save_as(folder / "one" / "a.dcm", enforce_file_format=True)
        present = core.left(everything(folder / "one"))
        for number, (tool, run) in enumerate(tools):
            out = folder / f"out{number}"
            run(folder / "one", out)
            left = core.left(everything(out))
            found[tool] = left
            removed, method = _flags(out, core)
            rows.append([tool, f"{len(left)} of {len(present)}", removed, method, "; ".join(sorted(left.values())) or "none"])
        whole = plant(folder / "whole")
        seen = whole.left([*everything(folder / "whole"), (folder / "whole.csv").read_bytes()])
        _medfm(folder / "whole", folder / "clean")
        produced = [folder / "clean", folder / "clean.quarantine"]
        journal = (folder / "clean.private" / "journal.jsonl").read_bytes()
        left = whole.left([*everything(*produced), journal])
        assert len(present) == len(core.places), set(core.places) - set(present)
        assert len(seen) == len(whole.places), set(whole.places) - set(seen)
        assert len(list((folder / "clean").rglob("*.dcm"))) >= 9
    head = ["tool", "markers left", "PatientIdentityRemoved", "DeidentificationMethod", "where they were planted"]
    write(
        "deidentify",
        "De-identification: markers left",
        "One CT slice with a distinct marker in every kind of place a DICOM file has: attributes of each kind, nested "
        "items, private and unknown attributes, overlays, curves, bytes behind the pixels, file meta information, preamble. "
        "The places were chosen by medfm's authors; several are outside of the basic profile that the other tools set out to "
        "fulfil. Files are searched as bytes, in any case and the common encodings. Each tool has its defaults.",
        table(head, rows),
        f"A whole planted folder ({len(seen)} markers: the above; character sets, transfer syntaxes, JPEG comments, "
        "documents, damaged files, NIfTI, PNG, JPEG, names of files and folders, a table of reports) through "
        "`medfm deidentify`; images, quarantine, table, report, page and journal searched, decompressed where compressed: "
        f"{len(left)} left. A test searches log, terminal and the manifest of `medfm index` as well.",
        "\n".join(
            [
                bar(
                    f"0 of >= 45 planted markers left in one DICOM file: {len(found['medfm'])} of {len(present)}",
                    not found["medfm"],
                ),
                bar(f"0 left of a whole folder with reports: {len(left)} of {len(seen)}", not left),
            ]
        ),
    )


if __name__ == "__main__":
    main()
