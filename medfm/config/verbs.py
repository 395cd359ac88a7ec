"""The verbs: name -> schema and function, as texts, so that `medfm --help` imports neither."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb of the command line and of `medfm.api`.

    `schema` and `run` are "module:attribute"; `run` takes the validated config. `recipes`: the verb is driven by a recipe.
    `positional`: the key that a word without `=` stands for. `changes`: the verb whose recipe this one is about: keys of that
    verb's go into this one's field `changes`.
    """

    name: str
    help: str
    schema: str
    run: str
    example: str
    recipes: bool = False
    positional: str = ""
    changes: str = ""


VERBS = {
    v.name: v
    for v in (
        Verb(
            "phantom",
            "generate radiographs or CTs with known answers",
            "medfm.data.phantom.config:PhantomConfig",
            "medfm.api:run_phantom",
            "medfm phantom kind=chest_xray n=2000 seed=0 out=phantom",
        ),
        Verb(
            "index",
            "find images, join reports, split by patient -> manifest",
            "medfm.data.index_config:IndexConfig",
            "medfm.api:run_index",
            "medfm index images=DIR reports=FILE.csv out=manifest.parquet",
        ),
        Verb(
            "doctor",
            "say of every series: accepted, repaired or rejected, and why",
            "medfm.data.doctor.config:DoctorConfig",
            "medfm.api:run_doctor",
            "medfm doctor DIR",
            positional="path",
        ),
        Verb(
            "deidentify",
            "copy images without what identifies the patient",
            "medfm.data.deidentify.config:DeidentifyConfig",
            "medfm.api:run_deidentify",
            "medfm deidentify in=DIR out=DIR",
        ),
        Verb(
            "download",
            "fetch a public data set, or studies from DICOMweb",
            "medfm.data.download.config:DownloadConfig",
            "medfm.api:run_download",
            "medfm download card=open_i root=DIR",
        ),
        Verb(
            "merge",
            "manifests of several data sets -> one",
            "medfm.data.merge_config:MergeConfig",
            "medfm.api:run_merge",
            "medfm merge manifests=[a.parquet,b.parquet] out=all.parquet",
        ),
        Verb(
            "cache",
            "decode and preprocess once, for fast training",
            "medfm.data.store.config:CacheConfig",
            "medfm.api:run_cache",
            "medfm cache manifest=manifest.parquet recipe=chest_xray out=DIR",
        ),
        Verb(
            "pretrain",
            "train encoders by a recipe",
            "medfm.training.config:PretrainConfig",
            "medfm.api:run_pretrain",
            "medfm pretrain recipe=chest_xray data.manifest=manifest.parquet trainer.devices=8",
            recipes=True,
        ),
        Verb(
            "plan",
            "say what a recipe needs of a GPU: memory, time, settings that fit",
            "medfm.training.plan.config:PlanConfig",
            "medfm.api:run_plan",
            "medfm plan recipe=chest_xray gpu=24GB",
            changes="pretrain",
        ),
        Verb(
            "evaluate zero_shot",
            "score findings by prompts, with confidence intervals and a page",
            "medfm.evaluation.config:ZeroShotConfig",
            "medfm.api:run_evaluate",
            "medfm evaluate zero_shot model=runs/chest_xray data.manifest=manifest.parquet prompts=chexpert",
        ),
        Verb(
            "evaluate retrieval",
            "image to report and back: R@1, R@5, R@10",
            "medfm.evaluation.config:RetrievalConfig",
            "medfm.api:run_evaluate",
            "medfm evaluate retrieval model=runs/chest_xray data.manifest=manifest.parquet",
        ),
        Verb(
            "evaluate linear_probe",
            "read findings off frozen features by a line, beside random weights",
            "medfm.evaluation.config:LinearProbeConfig",
            "medfm.api:run_evaluate",
            "medfm evaluate linear_probe model=runs/chest_xray_dino data.manifest=manifest.parquet",
        ),
        Verb(
            "evaluate knn",
            "read findings off the nearest training images, beside random weights",
            "medfm.evaluation.config:KnnConfig",
            "medfm.api:run_evaluate",
            "medfm evaluate knn model=runs/chest_xray_dino data.manifest=manifest.parquet",
        ),
        Verb(
            "evaluate segmentation_probe",
            "read masks off frozen patch features by a linear layer",
            "medfm.evaluation.config:SegmentationProbeConfig",
            "medfm.api:run_evaluate",
            "medfm evaluate segmentation_probe model=runs/brain_mr_mae data.manifest=manifest.parquet",
        ),
        Verb(
            "evaluate grounding",
            "do heat maps of findings fall into their masks: pointing game and Dice",
            "medfm.evaluation.config:GroundingConfig",
            "medfm.api:run_evaluate",
            "medfm evaluate grounding model=runs/chest_ct data.manifest=manifest.parquet prompts=phantom_ct",
        ),
        Verb(
            "evaluate compositional",
            "is an image nearer to its report than to one with sides swapped or findings denied",
            "medfm.evaluation.config:CompositionalConfig",
            "medfm.api:run_evaluate",
            "medfm evaluate compositional model=runs/chest_ct data.manifest=manifest.parquet",
        ),
        Verb(
            "heatmap",
            "where an image or volume resembles a text: NIfTI on its grid, and a picture",
            "medfm.evaluation.config:HeatmapConfig",
            "medfm.api:run_heatmap",
            "medfm heatmap model=runs/chest_ct image=ct.nii.gz modality=CT text='left pleural effusion' out=DIR",
        ),
        Verb(
            "embed",
            "features of a file, a folder or a manifest",
            "medfm.evaluation.config:EmbedConfig",
            "medfm.api:run_embed",
            "medfm embed model=runs/chest_xray input=DIR out=features.parquet",
        ),
    )
}
