"""Damaged DICOM and NIfTI files, made deterministically, and what each reader does with them; `python -m benchmarks.fuzz`."""
