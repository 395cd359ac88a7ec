"""Spellings of paths, views, modalities, sexes, ages and labels -> the manifest's own."""

from __future__ import annotations

_VIEWS = {
    **dict.fromkeys(("PA", "POSTEROANTERIOR", "POSTERO ANTERIOR", "POSTERO-ANTERIOR", "PA ERECT", "ERECT PA"), "PA"),
    **dict.fromkeys(("AP", "ANTEROPOSTERIOR", "ANTERO POSTERIOR", "ANTERO-POSTERIOR"), "AP"),
    **dict.fromkeys(("AP SUPINE", "AP ERECT", "AP HORIZONTAL", "AP PORTABLE", "AP AXIAL", "SUPINE AP", "PORTABLE AP"), "AP"),
    **dict.fromkeys(("L", "LL", "RL", "LAT", "LATERAL", "LEFT LATERAL", "RIGHT LATERAL", "LATERAL ERECT"), "LATERAL"),
}
_SEX = {"m": "M", "male": "M", "f": "F", "female": "F", "w": "F", "o": "O", "other": "O"}
_MODALITIES = {
    **{
        code: code for code in ("CR", "DX", "CT", "MR", "US", "MG", "PT", "NM", "XA", "RF", "OP", "OCT", "SM", "IO", "PX", "OT")
    },
    # A plain film whose digitisation is unknown.
    **dict.fromkeys(("X-RAY", "XRAY", "XR", "RADIOGRAPH", "RX", "RG"), "CR"),
    "MRI": "MR",
    "PET": "PT",
    "ULTRASOUND": "US",
    "MAMMOGRAPHY": "MG",
}
_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null"})


def normalise_path(path: str) -> str:
    """'./scans/a.dcm' and 'scans\\\\a.dcm ' -> 'scans/a.dcm'."""
    path = path.strip().replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    return path.rstrip("/")


def normalise_view(view: str) -> str:
    """'AP_horizontal' -> 'AP', 'LL' -> 'LATERAL'; unknown words stay, in upper case."""
    word = " ".join(view.upper().replace("_", " ").split())
    return _VIEWS.get(word, "" if word.lower() in _MISSING or word == "UNKNOWN" else word)


def normalise_modality(modality: str) -> str:
    """A DICOM code where the word is or begins with a known one: 'X-ray' -> 'CR', 'MR T1' -> 'MR'; other words stay."""
    word = " ".join(modality.split())
    first = word.upper().split(" ")[0]
    return _MODALITIES.get(word.upper(), _MODALITIES.get(first, word))


def normalise_sex(sex: str) -> str:
    """M, F, O or ''."""
    return _SEX.get(sex.strip().lower(), "")


def normalise_age(age: str) -> float:
    """Years; NaN where unclear. 90 stands for 90 and over, which identifies (HIPAA safe harbour, 45 CFR 164.514(b)(2))."""
    text = age.strip()
    scale = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}.get(text[-1:].upper())
    try:
        years = float(text[:-1]) * scale if scale is not None else float(text)
    except ValueError:
        return float("nan")
    return min(years, 90.0) if 0 <= years <= 120 else float("nan")


def parse_label(text: object) -> float | None:
    """1.0, 0.0, -1.0 (uncertain) or NaN (not stated); None for anything else."""
    word = str(text).strip().lower()
    if word in _MISSING:
        return float("nan")
    if word in ("true", "false"):
        return float(word == "true")
    try:
        value = float(word)
    except ValueError:
        return None
    return value if value in (1.0, 0.0, -1.0) else None
