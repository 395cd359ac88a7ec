"""Wordings of the generated reports. Braces are filled by reports.py; `[a|b]` takes one of the alternatives."""

from __future__ import annotations

SIZE = {
    "small": "[small|mild]",
    "moderate": "[moderate|moderate-sized|medium-sized]",
    "large": "[large|extensive|sizeable]",
}
SEVERITY = {"small": "[mild|slight]", "moderate": "[moderate]", "large": "[marked|severe]"}
ADVERB = {"small": "[mildly|slightly]", "moderate": "moderately", "large": "[markedly|severely]"}
ZONE = {
    "upper": "[upper lung zone|upper zone|upper lung field|upper lung]",
    "mid": "[mid lung zone|mid zone|mid lung field|midlung]",
    "lower": "[lower lung zone|lower zone|lower lung field|lung base]",
}

# Sentences for FINDINGS.
PRESENT = {
    "Pleural Effusion": (
        "There is a {size} {side} pleural effusion.",
        "{size} {side} pleural effusion.",
        "{size} {side}-sided pleural effusion[| with a meniscus at the base].",
        "[Blunting|Obliteration] of the {side} costophrenic angle, in keeping with a {size} pleural effusion on the {side}.",
        "Fluid [obscures|covers] the {side} hemidiaphragm, consistent with a {size} {side} pleural effusion.",
        "[Dependent|Layering] opacity at the {side} base represents a {size} {side} pleural effusion.",
        "On the {side}, a {size} pleural effusion is [present|seen|noted].",
    ),
    "Pneumothorax": (
        "There is a {size} {side} pneumothorax.",
        "{size} {side} pneumothorax.",
        "{size} {side}-sided pneumothorax with a visible pleural line.",
        "A {side} visceral pleural line is seen without lung markings beyond it: {size} {side} pneumothorax.",
        "Air in the {side} pleural space, a {size} {side} pneumothorax, with partial collapse of the {side} lung.",
        "On the {side}, a {size} [apicolateral ||]pneumothorax is [present|seen|noted].",
        "The {side} lung is [partly|partially] collapsed by a {size} {side} pneumothorax.",
    ),
    "Consolidation": (
        "There is [a focal consolidation|consolidation|an area of consolidation] in the {side} {zone}.",
        "{size} consolidation in the {side} {zone}.",
        "[Focal|Patchy] airspace opacity in the {side} {zone}, [consistent with|representing] consolidation.",
        "{side} {zone} consolidation[|, which may represent pneumonia].",
        "[Dense|Confluent|Patchy] {side} {zone} consolidation is [present|seen|noted].",
        "The {side} lung shows {size} consolidation in its {zone}.",
    ),
    "Nodule": (
        "There is a {mm} nodule in the {side} {zone}.",
        "{mm} [round|rounded|well-defined|] nodule in the {side} {zone}.",
        "A [solitary|single] pulmonary nodule in the {side} {zone} measures {mm}.",
        "{side} {zone} nodule measuring {mm}.",
        "A [rounded|well-circumscribed] nodule of {mm} projects over the {side} {zone}.",
        "[Solitary|Round] {side} lung nodule, {mm}, in the {zone}.",
    ),
    "Edema": (
        "[Bilateral|Diffuse bilateral] perihilar haze and vascular congestion, consistent with {severity} pulmonary edema.",
        "{severity} pulmonary edema.",
        "There is {severity} pulmonary edema with indistinct vessels.",
        "[Interstitial|Interstitial and perihilar] opacities in both lungs indicate {severity} pulmonary edema.",
        "Prominent, ill-defined pulmonary vessels and hazy lungs: {severity} pulmonary edema.",
    ),
    "Cardiomegaly": (
        "The heart is {adverb} enlarged.",
        "{severity} cardiomegaly.",
        "There is {severity} cardiomegaly.",
        "The cardiac silhouette is {adverb} enlarged.",
        "{severity} enlargement of the cardiac silhouette.",
        "Cardiomegaly, with a cardiothoracic ratio of {ratio}.",
        "The heart size is {adverb} increased[|, with a cardiothoracic ratio of {ratio}]: cardiomegaly.",
    ),
}
POSSIBLE = {
    "Pleural Effusion": (
        "Possible {size} {side} pleural effusion.",
        "[Slight|Minimal] blunting of the {side} costophrenic angle may represent a [trace|small] pleural effusion.",
        "A [trace|small] {side} pleural effusion cannot be excluded.",
        "Questionable [trace|small] {side} pleural effusion.",
    ),
    "Pneumothorax": (
        "Possible {size} {side} pneumothorax.",
        "A [tiny|small] {side} apical pneumothorax cannot be excluded.",
        "Questionable [thin pleural line|pleural line] on the {side}, which may represent a [tiny|small] pneumothorax.",
        "Suspected [tiny|small] {side} pneumothorax.",
    ),
    "Consolidation": (
        "Possible early consolidation in the {side} {zone}.",
        "Faint opacity in the {side} {zone} may represent consolidation.",
        "Developing consolidation in the {side} {zone} cannot be excluded.",
        "Questionable {side} {zone} consolidation.",
    ),
    "Nodule": (
        "Possible {mm} nodule in the {side} {zone}.",
        "A faint {side} {zone} density of {mm} may represent a nodule.",
        "Questionable {mm} nodule in the {side} {zone}.",
    ),
    "Cardiomegaly": (
        "The heart size is borderline.",
        "Borderline heart size.",
        "Borderline cardiomegaly cannot be excluded.",
        "The heart may be [borderline|slightly] enlarged.",
    ),
}
DEVICE = {
    "pacemaker": (
        "{side} chest [pacemaker|cardiac pacemaker] with leads in the right atrium and right ventricle.",
        "[Dual-lead|Two-lead] pacemaker with its generator in the {side} chest wall.",
        "A {side}-sided pacemaker is [present|in place], leads projecting over the right heart.",
    ),
    "central line": (
        "{side} central venous catheter with its tip in the superior vena cava.",
        "A {side}-sided central venous line [ends|terminates] in the SVC.",
        "[There is a|A] {side} central venous catheter [in place|], tip over the superior vena cava.",
    ),
    "endotracheal tube": (
        "Endotracheal tube with its tip above the carina.",
        "The endotracheal tube [ends|terminates] above the carina.",
        "[The patient is intubated, the|An] endotracheal tube is in [satisfactory|good] position.",
    ),
}

# What is absent. {what} is a list of findings.
ABSENT = (
    "No {what}.",
    "There is no {what}.",
    "No evidence of {what}.",
    "[No sign of|Negative for] {what}.",
    "No {what} is [seen|identified|present].",
)
ABSENT_WORDS = {
    "Pleural Effusion": "[pleural effusion|pleural effusion|effusion]",
    "Pneumothorax": "pneumothorax",
    "Consolidation": "[consolidation|focal consolidation|airspace consolidation]",
    "Nodule": "[nodule|pulmonary nodule|suspicious nodule]",
    "Edema": "[pulmonary edema|edema|vascular congestion]",
}
OTHER_SIDE = {
    "Pleural Effusion": (
        "No {other} pleural effusion.",
        "The {other} costophrenic angle is sharp.",
        "No effusion on the {other}.",
    ),
    "Pneumothorax": ("No {other} pneumothorax.", "The {other} lung is fully expanded.", "No pneumothorax on the {other}."),
    "Consolidation": ("No {other} consolidation.", "No consolidation in the {other} lung."),
    "Nodule": ("No {other} nodule.", "No nodule in the {other} lung."),
}
CLEAR = (
    "The lungs are clear.",
    "[Both lungs|The lungs] are clear[| and well expanded].",
    "Lungs are [well expanded|well inflated] and clear.",
    "The [lung fields|lungs] are clear bilaterally.",
    "Clear lungs.",
)
HEART_NORMAL = (
    "The heart size is normal.",
    "[Normal heart size.|Heart size is within normal limits.]",
    "The cardiac silhouette is [normal|not enlarged].",
    "Cardiomediastinal silhouette is [normal|unremarkable|within normal limits].",
    "Normal heart size [and mediastinal contours|with no cardiomegaly].",
    "No cardiomegaly.",
)
BONES = (
    "[The bones|Osseous structures|Visualized bones] are [intact|unremarkable].",
    "No acute [osseous|bony] abnormality.",
    "No rib fracture is seen.",
    "[Soft tissues and bones|Bones and soft tissues] are unremarkable.",
)
NO_DEVICE = ("No support devices.", "No lines or tubes[| are seen].", "No pacemaker or catheter.")

SUMMARY = {
    "Pleural Effusion": (
        "{size} {side} pleural effusion.",
        "{side} pleural effusion, {size}.",
        "{side}-sided pleural effusion.",
    ),
    "Pneumothorax": ("{size} {side} pneumothorax.", "{side} pneumothorax, {size}.", "{side}-sided pneumothorax."),
    "Consolidation": (
        "{side} {zone} consolidation.",
        "Consolidation in the {side} {zone}.",
        "{side} {zone} consolidation[, concerning for pneumonia|, likely pneumonia|].",
    ),
    "Nodule": (
        "{mm} nodule in the {side} {zone}.",
        "{side} {zone} nodule.",
        "{side} lung nodule of {mm}[|; CT is recommended].",
    ),
    "Edema": ("{severity} pulmonary edema.", "Pulmonary edema."),
    "Cardiomegaly": ("{severity} cardiomegaly.", "Cardiomegaly.", "[Enlarged heart|Enlarged cardiac silhouette]."),
}
SUMMARY_DEVICE = {
    "pacemaker": ("{side}-sided pacemaker in place.", "{side} pacemaker."),
    "central line": ("{side} central venous catheter in the SVC.", "{side} central line in place."),
    "endotracheal tube": ("Endotracheal tube in [good|satisfactory] position.", "Intubated."),
}
NORMAL = (
    "No acute cardiopulmonary [process|abnormality|disease].",
    "Normal {study}.",
    "No acute [findings|abnormality|intrathoracic process].",
    "[Unremarkable|Normal] {study}[| without acute disease].",
    "No evidence of acute cardiopulmonary disease.",
    "[Clear lungs.|Lungs are clear.] No acute [process|disease].",
)

INDICATION = (
    "Cough.", "Shortness of breath.", "Chest pain.", "Fever.", "Preoperative assessment.", "Dyspnea.", "Routine follow-up.",
    "Weakness.", "Fall.", "Evaluation of the chest.", "Cough and fever.", "Clinical question: acute process?",
)  # fmt: skip
TECHNIQUE = {
    "PA": ("Single PA view of the chest.", "PA radiograph of the chest.", "Frontal (PA) chest radiograph."),
    "AP": ("Portable AP view of the chest.", "Single AP radiograph.", "AP portable chest radiograph."),
    "PA+LATERAL": ("PA and lateral views of the chest.", "Two views of the chest, PA and lateral.", "Chest, PA and lateral."),
    "AP+LATERAL": ("AP and lateral views of the chest.", "Two views of the chest, AP and lateral."),
    "CT": ("CT of the chest without contrast.", "Noncontrast axial CT of the chest.", "Unenhanced chest CT."),
}
PRIOR = ("Prior [{study}|examination].", "Previous [study|{study}] is available.", "Earlier {study}.")
NO_PRIOR = ("None.", "None available.", "No prior studies.")
