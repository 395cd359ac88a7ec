"""The exact messages a researcher sees, and the order of resolution."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medfm.config.overrides import parse_value, parse_words
from medfm.config.recipes import list_recipes
from medfm.config.resolve import resolve
from medfm.errors import ConfigError
from medfm.training.config import PretrainConfig


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a manifest file in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDFM_RECIPES", raising=False)
    (tmp_path / "m.parquet").write_bytes(b"")
    return tmp_path


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / "recipes" / "pretrain" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _resolve(recipe: str, **overrides: Any) -> PretrainConfig:
    return resolve(PretrainConfig, "pretrain", recipe, {"data.manifest": "m.parquet", **overrides}).config


def _message(recipe: str, overrides: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        resolve(PretrainConfig, "pretrain", recipe, overrides)
    return str(error.value)


def test_resolve__reports_all_problems_with_their_places(here: Path) -> None:
    _write(
        here,
        "mine",
        "name: mine\n"
        "data: {manifest: gone.parquet}\n"
        "objective:\n"
        "  image_weight: 75\n"
        "trainer:\n"
        "  precision: bf16-mixd\n"
        "  max_epochs: many\n",
    )
    lines = _message("mine", {"trainer.devces": 8}).splitlines()
    assert [re.sub(" {4,}", "   ", line) for line in lines] == [
        "5 problems in recipe 'mine' (recipes/pretrain/mine.yaml)",
        "  data.manifest   'gone.parquet' does not exist   (line 2)",
        "  objective.image_weight  75 is above 1   (line 4)",
        "  trainer.devces   unknown key; did you mean 'trainer.devices'?   (command line)",
        "  trainer.max_epochs   'many' is not a number   (line 7)",
        "  trainer.precision   'bf16-mixd' is not one of '32-true', 'bf16-mixed', '16-mixed', 'bf16-true'; did you mean "
        "'bf16-mixed'?   (line 6)",
    ]


def test_resolve__key_in_the_wrong_section_is_found(here: Path) -> None:
    _write(here, "mine", "devices: 2\n")
    assert "did you mean 'trainer.devices'?" in _message("mine", {"data.manifest": "m.parquet"})


def test_resolve__unknown_component_and_its_own_keys(here: Path) -> None:
    _write(here, "mine", "objective: {text_encoder: {name: clip_texd}}\nencoder: {name: timm, depth: 3}\n")
    text = _message("mine", {"data.manifest": "m.parquet"})
    assert "objective.text_encoder  unknown text encoder 'clip_texd'; did you mean 'clip_text'?" in text
    assert "encoder.depth           unknown key here; known: name, model," in text


def test_resolve__a_broken_section_is_not_judged_by_its_default(here: Path) -> None:
    (here / "films.parquet").touch()
    given = {"data.manifest": "films.parquet", "preprocess.size": [64, 64], "encoder.img_size": [64, 64], "encoder.depht": 3}
    with pytest.raises(ConfigError, match=r"1 problem.*\n.*encoder\.depht .*did you mean 'encoder.depth'\?[^\n]*$"):
        resolve(PretrainConfig, "pretrain", None, given)


def test_resolve__a_cache_may_be_a_path(here: Path) -> None:
    (here / "films.parquet").touch()
    config = resolve(PretrainConfig, "pretrain", None, {"data.manifest": here / "films.parquet", "data.cache": here}).config
    assert config.data.cache == str(here)


def test_resolve__components_of_a_list_have_paths_of_their_own(here: Path) -> None:
    _write(here, "mine", "name: mine\ndata: {manifest: m.parquet}\n")
    terms = [{"name": "filip", "heldd": 3}, "glora", 3, {"name": "streams", "dim": 10}, {"name": "sentences", "top": 0}]
    assert [re.sub(" {2,}", "  ", line) for line in _message("mine", {"objective.terms": terms}).splitlines()[1:]] == [
        "  objective.terms.0.heldd  unknown key; did you mean 'objective.terms.0.held'?  (command line)",
        "  objective.terms.1  unknown alignment term 'glora'; did you mean 'gloria'?  (command line)",
        "  objective.terms.2  must name an alignment term  (command line)",
        "  objective.terms.3  dim 10 is not a multiple of num_heads 4  (command line)",
        "  objective.terms.4.top  0 is below 1  (command line)",
    ]
    terms = [{"name": "gloria", "tempature": 3}, {"name": "hard_negatives", "kinds": ["swaped"]}]
    lines = _message("mine", {"objective.terms": terms}).splitlines()
    assert len(lines) == 3
    assert "objective.terms.0.tempature  unknown key here; known: name, weight, attention" in re.sub(" {2,}", "  ", lines[1])
    assert "'swaped' is not one of 'swapped', 'negated'; did you mean 'swapped'?" in lines[2]
    found = _resolve("mine", **{"objective.terms": ["filip", {"name": "sentences", "top": 3}]}).objective
    assert [term.name for term in found.terms] == ["filip", "sentences"]
    assert found.terms[1].top == 3


def test_resolve__swapping_a_component_drops_the_old_ones_keys(here: Path) -> None:
    _write(here, "mine", "encoder: {name: vit, depth: 3, drop_path: 0.2}\npreprocess: {size: [64, 64]}\n")
    config = _resolve("mine", **{"encoder.model": "resnet18", "encoder": "timm", "encoder.img_size": [64, 64]})
    assert config.encoder.name == "timm"
    assert config.encoder.model == "resnet18"
    assert config.encoder.drop_path == 0.0


def test_resolve__same_component_keeps_its_keys(here: Path) -> None:
    _write(here, "mine", "encoder: {depth: 3}\n")
    assert _resolve("mine", encoder="vit").encoder.depth == 3


def test_resolve__stale_sibling_keys_on_the_command_line_are_errors(here: Path) -> None:
    _write(here, "mine", "name: mine\n")
    text = _message("mine", {"data.manifest": "m.parquet", "encoder.depth": 3, "encoder": "timm"})
    assert "encoder.depth  unknown key here" in text
    assert "(command line)" in text


def test_resolve__a_component_that_may_be_left_out(here: Path) -> None:
    _write(here, "mine", "objective: {name: distill, teacher: m.parquet}\n")
    left_out = _resolve("mine")
    assert left_out.objective.teacher_encoder is None  # type: ignore[attr-defined]
    assert PretrainConfig.model_validate(left_out.model_dump(mode="json")) == left_out
    again = here / "again.yaml"
    again.write_text("objective: {name: distill, teacher: m.parquet, teacher_encoder: null}\n", encoding="utf-8")
    assert _resolve(str(again)).objective == left_out.objective
    text = _message("mine", {"data.manifest": "m.parquet", "objective.teacher_encoder": {"name": "timm", "depth": 3}})
    assert "objective.teacher_encoder.depth  unknown key" in text


def test_resolve__views_of_two_view_objectives_keep_what_is_not_set(here: Path) -> None:
    _write(here, "mine", "objective: {name: simclr, views: {blur_p: [0.5, 0.5, 0.5]}}\n")
    views = _resolve("mine").objective.views  # type: ignore[attr-defined]
    assert (views.local_count, views.global_scale, views.blur_p) == (0, (0.08, 1.0), (0.5, 0.5, 0.5))


def test_resolve__parent_then_recipe_then_command_line(here: Path) -> None:
    _write(here, "base", "seed: 1\ntrainer: {max_epochs: 1, keep: 2}\noptimizer: {lr: 1e-4}\n")
    _write(here, "mine", "extends: base\nseed: 2\ntrainer: {max_epochs: 2}\n")
    config = _resolve("mine", **{"trainer.max_epochs": 3})
    assert (config.seed, config.trainer.max_epochs, config.trainer.keep, config.optimizer.lr) == (2, 3, 2, 1e-4)
    _write(here, "base", "seed: 1\ntrainer: {max_epoch: 1}\n")
    assert "(recipes/pretrain/base.yaml, line 2)" in _message("mine", {"data.manifest": "m.parquet"})


def test_resolve__circle_of_parents(here: Path) -> None:
    _write(here, "a", "extends: b\n")
    _write(here, "b", "extends: a\n")
    assert "extends itself" in _message("a", {})


def test_resolve__same_name_in_two_places(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = _write(here, "chest_xray", "name: mine\n")
    text = _message("chest_xray", {})
    assert "exists more than once" in text
    assert str(mine.relative_to(here)) in text
    assert "shipped with medfm" in text


def test_resolve__recipe_not_found_suggests(here: Path) -> None:
    assert _message("chest_xra", {}) == "there is no pretrain recipe 'chest_xra'; did you mean 'chest_xray'?"
    assert _message("./nope.yaml", {}) == "recipe file './nope.yaml' does not exist"


def test_resolve__broken_yaml_names_the_line(here: Path) -> None:
    path = _write(here, "mine", "name: mine\ndata: [1\nseed: 2\n")
    assert str(path.relative_to(here)) + ", line 3" in _message("mine", {})


def test_resolve__interpolation_that_leads_nowhere(here: Path) -> None:
    _write(here, "mine", "seed: ${nope}\n")
    assert "nope" in _message("mine", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("1e-4", 1e-4),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{name: timm}", {"name": "timm"}),
        ("a: b", "a: b"),
        ("run #1", "run #1"),
        ("2024-01-01", "2024-01-01"),
        ("C:\\data", "C:\\data"),
        ("'8'", "8"),
        ("[1", "[1"),
    ],
)
def test_parse_value(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_parse_words__splits_on_the_first_equals_sign() -> None:
    assert parse_words(["a.b=c=d"]) == {"a.b": "c=d"}
    with pytest.raises(ConfigError, match="'trainer' is not of the form key=value"):
        parse_words(["trainer"])
    with pytest.raises(ConfigError, match="'a' is given twice"):
        parse_words(["a=1", "a=2"])


@pytest.mark.parametrize("recipe", [str(r.path.resolve()) for r in list_recipes("pretrain")], ids=lambda p: Path(p).stem)
def test_every_shipped_recipe__validates(recipe: str, here: Path) -> None:
    assert _resolve(recipe).name


def test_plugin__registers_a_component(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "my_lab_ext.py").write_text(
        "from medfm.registry import ENCODERS, ComponentConfig\n"
        "@ENCODERS.register('lab_net', 'my_lab_ext:Net')\n"
        "class NetConfig(ComponentConfig):\n"
        "    name: str = 'lab_net'\n"
        "    width: int = 3\n"
    )
    _write(here, "mine", "plugins: [my_lab_ext]\nencoder: {name: lab_net, width: 5}\n")
    assert _resolve("mine").encoder.width == 5
    _write(here, "other", "plugins: [not_there]\n")
    assert "plugins: cannot import 'not_there'" in _message("other", {})


def _medfm(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "medfm.cli", *words], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_cli__typo_exits_with_two_and_no_traceback(here: Path) -> None:
    done = _medfm("validate", "recipe=chest_xray", "data.manifest=m.parquet", "trainer.devces=8", cwd=here)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "trainer.devces  unknown key; did you mean 'trainer.devices'?   (command line)" in done.stderr


def test_cli__help_and_validate_import_no_torch(here: Path) -> None:
    code = (
        "import sys; from medfm.cli import main; "
        "assert main(['--help']) == 0; "
        "assert not {'pydantic', 'omegaconf', 'torch'} & set(sys.modules); "
        "assert main(['validate', 'recipe=chest_xray', 'data.manifest=m.parquet']) == 0; "
        "heavy = {'torch', 'lightning', 'timm', 'transformers', 'pandas', 'pydicom', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "medfm <verb> key=value" in done.stdout


def test_cli__recipes_list_show_copy(here: Path) -> None:
    assert "pretrain chest_xray" in _medfm("recipes", cwd=here).stdout
    shown = _medfm("recipes", "show", "chest_xray", cwd=here).stdout
    assert "objective:" in shown
    assert _medfm("recipes", "copy", "chest_xray", "to=mine.yaml", cwd=here).returncode == 0
    assert (here / "mine.yaml").read_text().rstrip() == shown.rstrip()
    again = _medfm("recipes", "copy", "chest_xray", "to=mine.yaml", cwd=here)
    assert again.returncode == 2
    assert "nothing was copied" in again.stderr


@pytest.mark.parametrize("verb", ["phantom", "index", "pretrain", "evaluate zero_shot", "evaluate retrieval", "embed"])
def test_cli__every_verb_describes_its_keys(verb: str, here: Path) -> None:
    done = _medfm(*verb.split(), "--help", cwd=here)
    assert done.returncode == 0, done.stderr
    assert f"medfm {verb}" in done.stdout


def test_parse_value__leading_zeros_are_identifiers() -> None:
    assert parse_value("00123") == "00123"
    assert [parse_value(v) for v in ("0", "0.5", "10", "1e-4")] == [0, 0.5, 10, 1e-4]


def test_resolve__a_private_value_is_not_repeated() -> None:
    from medfm.data.download.config import DownloadConfig

    with pytest.raises(ConfigError) as error:
        resolve(DownloadConfig, "download", None, {"source": "dicomweb://x", "root": "r", "patient": ["DOE^JANE"]})
    assert "patient" in str(error.value)
    assert "DOE" not in str(error.value)


def test_parse_words__a_text_stays_as_typed() -> None:
    from medfm.config.overrides import text_keys
    from medfm.data.download.config import DownloadConfig

    texts = text_keys(DownloadConfig)
    assert {"patient", "study", "source", "card"} <= texts
    assert not {"parallel", "modality", "everything"} & texts
    assert parse_words(["patient=12:30", "parallel=2", "card=null"], texts) == {"patient": "12:30", "parallel": 2, "card": None}


def test_parse_value__times_are_texts() -> None:
    """YAML reads 24:00:00 as 86400."""
    assert [parse_value(v) for v in ("24:00:00", "12:30", "[1:10]")] == ["24:00:00", "12:30", [70]]


def test_resolve__numbers_must_be_finite_and_plugins_names() -> None:
    message = _message("chest_xray", {"optimizer.lr": float("inf"), "trainer.max_epochs": float("inf"), "seed": 2**64})
    assert "optimizer.lr        input should be a finite number (got inf)" in message
    assert "trainer.max_epochs  input should be a finite number (got inf)" in message
    assert "seed                18446744073709551616 is not below" in message
    assert "betas must lie from 0 to below 1, got [2.0, 0.9]" in _message("chest_xray", {"optimizer.betas": [2, 0.9]})
    assert _message("chest_xray", {"plugins": 5}) == "plugins: 5 is not a list of modules"
