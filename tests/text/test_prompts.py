"""Prompt sets: the shipped ones, templates, and what a broken file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfm.errors import ConfigError
from medfm.text.prompts import load_prompts, parse_prompts, prompt_set_names

CHEXPERT_COLUMNS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "set.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", prompt_set_names())
def test_load_prompts__every_shipped_set_is_valid(name: str) -> None:
    prompts = load_prompts(name)
    assert prompts.name == name
    assert prompts.source
    for finding in prompts.findings:
        assert finding.positive
        assert not set(finding.positive) & set(finding.negative)


def test_load_prompts__chexpert_holds_the_label_columns_with_chexzeros_pair_first() -> None:
    prompts = load_prompts("chexpert")
    assert tuple(finding.label for finding in prompts.findings) == CHEXPERT_COLUMNS
    assert prompts.method == "pair"
    for finding in prompts.findings:
        assert finding.positive[0] == finding.name.lower()
        if finding.name != "No Finding":
            assert finding.negative == tuple(f"no {phrase}" for phrase in finding.positive)


def test_load_prompts__kermany_uses_the_training_sentences(data_dir: Path) -> None:
    import pandas as pd

    sentences = set(pd.read_csv(data_dir / "cxr_kermany" / "manifest.csv")["text_derived"])
    pneumonia, cause = load_prompts("kermany").findings
    assert {*pneumonia.positive, *pneumonia.negative} == sentences
    assert cause.where == (("pneumonia", (1.0,)),)


def test_parse_prompts__templates_times_phrases_and_negation() -> None:
    prompts = parse_prompts(
        {
            "templates": ["{}", "there is {}"],
            "negate": ["no {}"],
            "findings": {
                "Edema": {"positive": ["edema", "congestion"]},
                "Size": {"label": "Cardiomegaly", "positive": "big", "negative": "small", "templates": ["{} heart"]},
            },
        }
    )
    edema, size = prompts.findings
    assert edema.positive == ("edema", "congestion", "there is edema", "there is congestion")
    assert edema.negative == ("no edema", "no congestion")
    assert (size.label, size.positive, size.negative) == ("Cardiomegaly", ("big heart",), ("small heart",))


def test_load_prompts__unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown prompt set 'chexprt'; did you mean 'chexpert'\?; shipped: chexpert, kermany"
    ):
        load_prompts("chexprt")
    with pytest.raises(ConfigError, match=r"'nowhere/x\.yaml' does not exist"):
        load_prompts("nowhere/x.yaml")


def test_load_prompts__lists_all_problems_of_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
method: softmax
templates: [without a place]
finding: {}
findings:
  A: {positve: [a]}
  B: {positive: [no], negative: [b]}
  C: {positive: c, negative: d, where: {x: 2}}
  D: [d]
""",
    )
    with pytest.raises(ConfigError) as caught:
        load_prompts(path)
    assert str(caught.value).splitlines() == [
        f"7 problems in {path}",
        "  finding: unknown key; did you mean 'findings'?",
        "  method: 'softmax' is not 'pair' or 'multiclass'",
        "  templates: 'without a place' has no '{}' for the phrase",
        "  findings.A.positve: unknown key; did you mean 'positive'?",
        "  findings.B.positive: False is not text; put it in quotes",
        "  findings.C.where.x: 2 is not 1, 0, -1 or a list of them",
        "  findings.D: must be a mapping with the key 'positive'",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"findings": {"A": {"negative": "b"}}}, "findings.A: has no positive phrase"),
        ({"findings": {"A": {"positive": "a"}}}, "findings.A: has no negative phrase, and the set has no 'negate'"),
        ({"findings": {"A": {"positive": "a", "negative": "a"}}}, "findings.A: the same text is positive and negative"),
        ({"findings": {"A": {"positive": " ", "negative": "a"}}}, "findings.A.positive: holds an empty phrase"),
        ({"method": "multiclass", "findings": {"A": {"positive": "a"}}}, "multiclass needs at least two"),
        ({"findings": {}}, "findings: must be a mapping of at least one finding"),
        (["a"], "the file must hold a mapping"),
    ],
)
def test_parse_prompts__refuses(content: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_prompts(content)
    assert message in str(caught.value)


def test_load_prompts__a_finding_given_twice_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "findings:\n  A: {positive: a, negative: b}\n  A: {positive: c, negative: d}\n")
    with pytest.raises(ConfigError, match="line 3: the key 'A' is given twice"):
        load_prompts(path)


@pytest.mark.parametrize(("text", "message"), [("a: [1", "is not valid YAML"), (b"\xff\xfe\xfa", "is not UTF-8")])
def test_load_prompts__broken_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "set.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        load_prompts(path)


def test_using__a_method_the_prompts_cannot_serve_is_refused() -> None:
    classes = parse_prompts({"method": "multiclass", "findings": {"A": {"positive": "a"}, "B": {"positive": "b"}}})
    with pytest.raises(ConfigError, match=r"(?s)with method=pair.*findings\.A: has no negative phrase"):
        classes.using("pair")
    assert load_prompts("chexpert").using("multiclass").method == "multiclass"


def test_select__keeps_the_sets_order_and_refuses_unknown_names() -> None:
    prompts = load_prompts("chexpert").select(("Edema", "Cardiomegaly"))
    assert [finding.name for finding in prompts.findings] == ["Cardiomegaly", "Edema"]
    with pytest.raises(ConfigError, match="has no finding 'Odema'; did you mean 'Edema'"):
        prompts.select(("Odema",))


def test_hash__follows_what_decides_scores_only() -> None:
    content = {"findings": {"A": {"positive": "a", "negative": "b"}}}
    first = parse_prompts(content)
    assert parse_prompts({**content, "description": "other"}).hash() == first.hash()
    assert parse_prompts({"findings": {"A": {"positive": "a", "negative": "c"}}}).hash() != first.hash()
    assert parse_prompts({"findings": {"A": {"positive": "a", "negative": "b", "where": {"x": 1}}}}).hash() != first.hash()
