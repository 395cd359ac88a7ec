"""`medfm deidentify`: images and reports without the people in them.

What it does. DICOM files go through the basic profile of DICOM PS3.15 (table E.1-1 as dicom-anonymizer carries it), at every
depth of nesting, and stricter than it: free text that the table does not name goes too, kept values must look like their type,
and a kept text that holds a name or number of the same file is removed. UIDs, patient ids and accession numbers become codes
that a secret decides (HMAC-SHA256), so that files, studies and report tables still belong together; dates move by whole days,
one distance per patient. Preamble and file meta information are written anew, private attributes, overlays, curves, icons and
comments inside compressed pixels removed. NIfTI headers lose their free text, PNG and JPEG files everything but the picture.
Report texts go through `medfm.text.deidentify.scrub`. Names of files and folders in the output are codes.

What it does not do. It reads no pixels: a name that is drawn into an image stays there. Images whose header hints at that are
set apart for a person to look at; an image whose header is silent is not. It does not deface: a face can be rebuilt from a head
CT or MR, and the report says how many there are. Free text in DICOM attributes is removed, not cleaned (but on request for
descriptions). Rules find names in report text by their form and by what the headers say; a name that stands alone and appears
nowhere else stays. Structured reports, encapsulated documents and unknown objects are not written at all. Someone who knows the
data and the law that applies to them must look through the result before it leaves the house.
"""
