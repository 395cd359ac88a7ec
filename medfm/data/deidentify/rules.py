"""What becomes of each kind of DICOM attribute: the basic profile's table, the options chosen, and what medfm adds.

Source: DICOM PS3.15 Annex E, table E.1-1 (basic profile) and table E.3.10-1 (safe private attributes); codes of CID 7050.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from medfm.io.phi import action_of

Verdict = Literal[
    "keep",  # numbers and defined terms, checked by their form
    "text",  # short text of technique, kept where nothing in it identifies
    "clean",  # descriptions: cleaned text under descriptions=clean
    "remove",
    "empty",
    "dummy",
    "uid",
    "date",
    "time",
    "patient",  # the patient's code
    "number",  # an accession number's code
    "age",
    "items",  # go down into the items of a sequence
]


@dataclass(frozen=True)
class Rules:
    """The options of a run; see `DeidentifyConfig`."""

    dates: Literal["shift", "remove", "keep"] = "shift"
    retain_uids: bool = False
    keep_patient_characteristics: bool = True
    descriptions: Literal["remove", "clean"] = "remove"
    private: Literal["remove", "safe"] = "remove"

    def codes(self) -> list[tuple[str, str]]:
        """(code value, meaning) of what was done, for DeidentificationMethodCodeSequence (CID 7050)."""
        done = [("113100", "Basic Application Confidentiality Profile")]
        if self.descriptions == "clean":
            done.append(("113105", "Clean Descriptors Option"))
        if self.dates == "keep":
            done.append(("113106", "Retain Longitudinal Temporal Information Full Dates Option"))
        if self.dates == "shift":
            done.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
        if self.keep_patient_characteristics:
            done.append(("113108", "Retain Patient Characteristics Option"))
        if self.retain_uids:
            done.append(("113110", "Retain UIDs Option"))
        if self.private == "safe":
            done.append(("113111", "Retain Safe Private Option"))
        return done


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


TEXT_VRS = _set("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT")
NUMBER_VRS = _set("AT FD FL SL SS SV UL US UV")
BULK_VRS = _set("OB OD OF OL OV OW UN")

# Dates of the person rather than of the visit: no shift makes them harmless enough.
_PERSONAL_DATES = _set("PatientBirthDate PatientBirthTime")
_CHARACTERISTICS = _set("PatientSex PatientSize PatientWeight PatientSexNeutered PregnancyStatus SmokingStatus")
# Descriptions that the Clean Descriptors Option may keep and that a learner has use for.
_DESCRIPTIONS = _set("""
    StudyDescription SeriesDescription ProtocolName AcquisitionProtocolDescription PerformedProcedureStepDescription
    RequestedProcedureDescription DerivationDescription ContrastBolusAgent ROIName ROIObservationLabel StructureSetLabel
    SegmentDescription AcquisitionDeviceProcessingDescription ImageComments AdmittingDiagnosesDescription
""")
# Text that the table does not name and that says how the image was made. Any other text goes.
_TECHNICAL = _set("""
    CodeValue LongCodeValue CodeMeaning CodingSchemeDesignator CodingSchemeVersion Manufacturer ManufacturerModelName
    SoftwareVersions SequenceName PulseSequenceName ImagedNucleus ConvolutionKernel ReceiveCoilName TransmitCoilName
    ReceiveCoilManufacturerName TransmitCoilManufacturerName MultiCoilConfiguration MultiCoilElementName FilterType
    CollimatorGridName PlateType PhosphorType StackID RescaleType ModalityLUTType WindowCenterWidthExplanation LUTExplanation
    ViewName StageName EnergyWindowName DetectorManufacturerName DetectorManufacturerModelName Radiopharmaceutical Radionuclide
    RadiopharmaceuticalRoute ContrastBolusRoute InterventionDrugName AttenuationCorrectionMethod ReconstructionMethod
    DetectorLinesOfResponseUsed ScatterCorrectionMethod TypeOfFilters PVCRejection CardiacFramingType TriggerSourceOrType
    AcquisitionMode DoseModeName ProcessingFunction AcquisitionDeviceProcessingCode DigitalImageFormatAcquired ImageFilter
    SegmentLabel SegmentAlgorithmName AlgorithmName AlgorithmVersion AlgorithmSource DimensionDescriptionLabel OutputPower
    PixelSpacingCalibrationDescription PositionReferenceIndicator PatientSpeciesDescription TransducerData PaddleDescription
    SecondaryCaptureDeviceManufacturer SecondaryCaptureDeviceManufacturerModelName SecondaryCaptureDeviceSoftwareVersions
    ApplicationName ApplicationVersion ApplicationManufacturer ImageGeometryType PixelValueMappingExplanation
    HistogramExplanation OpticalPathIdentifier ReferencedOpticalPathIdentifier ApplicableSafetyStandardDescription
    SourceIsotopeName OphthalmicImageTypeDescription ManufacturerRelatedModelGroup
""")
# Codes and makers' words: looked through for the file's own names, not for the forms of names and dates ("VB17A 2019-03").
VERBATIM = _set("""
    CodeValue LongCodeValue CodeMeaning CodingSchemeDesignator CodingSchemeVersion ManufacturerModelName SoftwareVersions
    AlgorithmVersion ApplicationVersion SecondaryCaptureDeviceSoftwareVersions StackID SequenceName PulseSequenceName
    ConvolutionKernel
""")
# What readers depend on: "CHEST" stays although a patient may be called Chest, "Philips" although a hospital may be.
STRUCTURAL = _set("""
    Manufacturer SpecificCharacterSet ImageType Modality PhotometricInterpretation PatientPosition PatientOrientation
    Laterality
    ViewPosition ImageLaterality PresentationIntentType PresentationLUTShape PixelIntensityRelationship VOILUTFunction
    Units DecayCorrection
    CorrectedImage SeriesType BodyPartExamined ConversionType BurnedInAnnotation RecognizableVisualFeatures PatientSex
    FrameType VolumetricProperties SegmentationType SegmentAlgorithmType DoseUnits DoseType DoseSummationType
    QualityControlImage LossyImageCompression LossyImageCompressionMethod CodingSchemeDesignator ScanningSequence
    SequenceVariant ScanOptions
""")
# Values without a text form that pixels, their colours and geometry need. Other bytes can hold anything.
_BULK = _set("""
    PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable ExtendedOffsetTableLengths LUTData VectorGridData
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData SegmentedAlphaPaletteColorLookupTableData PixelPaddingValue
    PointCoordinatesData DoublePointCoordinatesData SurfacePointsNormalsSequence VectorCoordinateData
    LongPrimitivePointIndexList PrimitivePointIndexList TrianglePointIndexList SpectroscopyData
""")
# UIDs that name vocabularies, not instances.
_VOCABULARIES = _set("CodingSchemeUID ContextUID MappingResourceUID")
# Beyond the table: sealed originals, media labels, dates in other calendars.
_GONE = _set("""
    EncryptedAttributesSequence StorageMediaFileSetID PatientBirthDateInAlternativeCalendar
    PatientDeathDateInAlternativeCalendar IssuerOfAccessionNumberSequence DeidentificationMethod
    DeidentificationMethodCodeSequence PrivateDataElementDefinitionSequence BadPixelImage SpecimenDescriptionSequence
    ContributingEquipmentSequence
""")


@lru_cache(maxsize=4096)
def verdict(group: int, element: int, keyword: str, vr: str, rules: Rules) -> Verdict:
    """What to do with a public attribute of the dictionary. `vr` is the dictionary's, the first where it has several."""
    action = action_of(group, element)
    if keyword in _GONE:
        return "remove"
    if keyword in ("PatientID", "PatientName"):
        return "patient"
    if keyword == "AccessionNumber":
        return "number"
    if rules.keep_patient_characteristics:
        if keyword == "PatientAge":
            return "age"
        if keyword in _CHARACTERISTICS:
            return "keep"
    if keyword in _DESCRIPTIONS:
        if rules.descriptions == "clean":
            return "clean"
        if not action:
            return "remove"
    if vr in ("DA", "DT", "TM") and keyword not in _PERSONAL_DATES and rules.dates != "remove":
        return "time" if vr == "TM" else "date"
    if vr == "SQ":
        return _sequence(action)
    if vr == "UI":
        if keyword in _VOCABULARIES:
            return "keep"
        return "remove" if action.startswith("X") and "U" not in action else "uid"
    if action:
        return _scalar(action, vr)
    return _unnamed(keyword, vr)


def _sequence(action: str) -> Verdict:
    if not action or "U" in action:
        return "items"
    # A dummy item would claim what nobody stated: such a sequence goes where the table wants a dummy.
    return "empty" if action in ("Z", "X/Z") else "remove"


def _scalar(action: str, vr: str) -> Verdict:
    if action == "X":
        return "remove"
    if "D" in action:
        return "dummy" if vr not in BULK_VRS else "remove"
    return "empty"


def _unnamed(keyword: str, vr: str) -> Verdict:
    """Attributes that the table leaves alone."""
    if vr in ("DA", "DT", "TM"):
        return "remove"  # dates=remove, and the table knows nothing of it
    if vr in ("LO", "SH", "UC"):
        return "text" if keyword in _TECHNICAL else "remove"
    if vr in ("AE", "LT", "PN", "ST", "UR", "UT", "UN", "AS"):
        return "remove"
    if vr in BULK_VRS:
        return "keep" if keyword in _BULK else "remove"
    return "keep"


# Forms of values that are no free text. Vendors write lower case and more in CS, commas in DS.
_FORMS = {
    "CS": re.compile(rb"[A-Za-z0-9_ .,\-/+()&%:\\\0]*"),
    "DS": re.compile(rb"[0-9eE+\-., \\\0]*|[\s\\]*(?:nan|[+-]?inf)[\s\\\0]*", re.IGNORECASE),
    "IS": re.compile(rb"[0-9+\-. \\\0]*"),
    "UI": re.compile(rb"[0-9. \\\0]*"),
    "AS": re.compile(rb"\s*(?:[0-9]{3}[DWMY])?[ \0]*"),
    "TM": re.compile(rb"[0-9:.\- \\\0]*"),
    "DA": re.compile(rb"[0-9.\- \\\0]*"),
    "DT": re.compile(rb"[0-9.+\- \\\0]*"),
}


def fits(vr: str, stored_vr: str, value: bytes) -> bool:
    """Whether a stored value looks like its type. `vr` is the dictionary's, `stored_vr` the file's."""
    if stored_vr != vr and stored_vr != "UN":
        families = [next((f for f in (TEXT_VRS, NUMBER_VRS, BULK_VRS) if v in f), {v}) for v in (vr, stored_vr)]
        if families[0] != families[1] and {"SQ"} not in families and TEXT_VRS in families:
            return False
    form = _FORMS.get(vr)
    return form is None or form.fullmatch(value) is not None


# Table E.3.10-1: (creator, group) -> {element within the block: VR}. Numbers and terms alone, of the vendors whose diffusion
# and PET images cannot be read without them.
SAFE_PRIVATE: dict[tuple[str, int], dict[int, str]] = {
    ("Philips PET Private Group", 0x7053): {0x00: "DS", 0x09: "DS"},
    ("Philips Imaging DD 001", 0x2001): {0x03: "FL", 0x04: "CS"},
    ("Philips MR Imaging DD 001", 0x2005): {0x0D: "FL", 0x0E: "FL"},
    ("SIEMENS MR HEADER", 0x0019): {0x0A: "US", 0x0B: "DS", 0x0C: "IS", 0x0D: "CS", 0x0E: "FD", 0x27: "FD", 0x28: "FD"},
    ("GEMS_PARM_01", 0x0043): {0x39: "IS", 0x6F: "DS"},
    ("GEMS_ACQU_01", 0x0019): {0x23: "DS", 0x24: "DS", 0x27: "DS"},
    ("ELSCINT1", 0x01F1): {0x07: "DS", 0x26: "DS", 0x27: "DS"},
}
_SIZES = {"FL": 4, "FD": 8, "US": 2}


def safe_private(creator: str, group: int, element: int, value: bytes) -> bool:
    """Whether a private attribute is on the list and its value looks like its type."""
    vr = SAFE_PRIVATE.get((creator.strip(), group), {}).get(element & 0xFF)
    if vr is None:
        return False
    if vr in _SIZES:
        return len(value) % _SIZES[vr] == 0 and len(value) <= 128
    return _FORMS[vr].fullmatch(value) is not None and len(value) <= 128
