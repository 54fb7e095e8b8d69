"""`[train]`: the paper's table by model name, overrides, and one clear line for every wrong value."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import Settings, load_settings, preset_names
from trainer.errors import TrainerConfigError
from trainer.schedule import learning_rate

# CLIP table 19 and 20: learning rate; table 18: second beta and epsilon by family.
PAPER = {
    "RN50": (5e-4, 0.999, 1e-8),
    "RN101": (5e-4, 0.999, 1e-8),
    "RN50x4": (5e-4, 0.999, 1e-8),
    "RN50x16": (4e-4, 0.999, 1e-8),
    "RN50x64": (3.6e-4, 0.999, 1e-8),
    "ViT-B/32": (5e-4, 0.98, 1e-6),
    "ViT-B/16": (5e-4, 0.98, 1e-6),
    "ViT-L/14": (4e-4, 0.98, 1e-6),
    "ViT-L/14@336": (2e-5, 0.98, 1e-6),
}


def _load(folder: Path, text: str) -> Settings:
    path = folder / "wit.toml"
    path.write_text(f'workspace = "work"\n{text}')
    return load_settings(path)


@pytest.mark.parametrize("name", PAPER)
def test_presets_are_table_18(tmp_path: Path, name: str):
    train = _load(tmp_path, f'[train]\nmodel = "{name}"').train
    assert (train.learning_rate, train.beta2, train.eps) == PAPER[name]
    assert (train.batch, train.beta1, train.weight_decay, train.warmup_steps) == (32_768, 0.9, 0.2, 2_000)
    assert train.max_logit_scale == 100
    assert train.epochs == (1 if name.endswith("@336") else 32)
    assert train.channels_last == name.startswith("RN")
    assert name in preset_names()


def test_the_config_overrides_the_preset_and_leaves_the_pipelines_tables_alone(tmp_path: Path):
    text = '[fetch]\nnothing_of_ours = 1\n[train]\nmodel = "RN50"\nbeta2 = 0.9\nepochs = 2.5\nshards = ["a/*.tar"]'
    settings = _load(tmp_path, text)
    assert (settings.train.beta2, settings.train.epochs, settings.train.eps) == (0.9, 2.5, 1e-8)
    assert settings.shard_globs == (str(tmp_path / "a/*.tar"),)
    assert settings.output == tmp_path / "work/train"


def test_any_open_clip_architecture_trains_with_its_familys_values(tmp_path: Path):
    train = _load(tmp_path, '[train]\nmodel = "ViT-S-16"').train
    assert (train.learning_rate, train.beta2) == (5e-4, 0.98)
    assert _load(tmp_path, '[train]\nmodel = "convnext_base"').train.beta2 == 0.98


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "unknown key train.batchsize; allowed: model, text"),
        ("batch = 0", "train.batch = 0: input should be greater than or equal to 1"),
        ('batch = "64"', "train.batch = '64': input should be a valid integer"),
        ('model = "ViT-Q/32"', "open_clip has no CLIP architecture 'ViT-Q/32'"),
        ("model = 3", "train.model = 3"),
        ('precision = "int8"', "train.precision = 'int8'"),
        ("= 3", "cannot read"),
        ("epochs = inf", "train.epochs = inf: input should be"),
        ("epochs = 1e300", "train.epochs = 1e+300: input should be less than"),
        ("steps = 1_000_000_000_000_000_000_000", "train.steps = 1000000000000000000000: "),
        ("cache_gib = inf", "train.cache_gib = inf: input should be"),
        ("cache_gib = 1e300", "train.cache_gib = 1e+300: input should be less than"),
        ("weight_decay = nan", "train.weight_decay = nan: input should be a finite number"),
        ("beta1 = 1.0", "train.beta1 = 1.0: input should be less than 1"),
        ("crop_scale = [0, 0]", "train.crop_scale = [0, 0]: value error, must be [smallest area, largest area]"),
        ("crop_scale = [1.0, 0.5]", "train.crop_scale = [1.0, 0.5]: value error, must be [smallest area"),
        ("architecture = 5", "train.architecture = 5: must be an open_clip model config"),
        ('text = "bag-of-words"\narchitecture = { embed_dim = 3 }', "train.architecture = {'embed_dim': 3}: must be"),
        ('[[train]]\nmodel = "tiny"', "cannot read"),
        ('shards = "a/*.tar"', "train.shards = 'a/*.tar': must be a list in brackets"),
        ("shards = []", "train.shards = []: must not be empty"),
        ("evaluate_steps = 5", "train.evaluate_steps has nothing to score: set train.validation_share"),
        ('[[evals]]\nname = "a"\nkind = "foldr"\npath = "b"', "evals.0.kind = 'foldr': input should be 'folder'"),
    ],
)
def test_wrong_values_are_refused_in_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(TrainerConfigError) as caught:
        _load(tmp_path, f"[train]\n{text}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["train = 5", '[[train]]\nmodel = "tiny"'])
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, text: str):
    with pytest.raises(TrainerConfigError, match=r"^train = .*: must be one table, \[train\]$"):
        _load(tmp_path, text)


def test_a_config_that_is_not_there_is_one_line(tmp_path: Path):
    for path, reason in ((tmp_path / "none.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(TrainerConfigError) as caught:
            load_settings(path)
        assert str(caught.value) == f"cannot read {path}: {reason}"


def test_an_output_on_a_store_needs_a_folder_for_its_copy(tmp_path: Path):
    path = tmp_path / "wit.toml"
    path.write_text('workspace = "s3://bucket/work"\n[train]\nmodel = "tiny"')
    with pytest.raises(TrainerConfigError, match=r"train\.output = 's3://bucket/work/train' .* set train\.cache"):
        _ = load_settings(path).output
    outputs = []
    for name in ("one", "other"):
        path.write_text(f'workspace = "work"\n[train]\nmodel = "tiny"\noutput = "s3://bucket/{name}/"')
        settings = load_settings(path)
        assert settings.output_url == f"s3://bucket/{name}"
        outputs.append(settings.output)
    assert {output.parent for output in outputs} == {tmp_path / "work" / "train" / "cache"}
    assert outputs[0] != outputs[1]


@given(step=st.integers(0, 390_625))
def test_the_rate_warms_up_and_falls_to_zero(step: int):
    rates = [learning_rate(s, peak=5e-4, warmup_steps=2_000, total_steps=390_625) for s in (step, step + 1)]
    assert 0 <= min(rates) <= max(rates) <= 5e-4
    assert rates[0] < rates[1] if step < 1_999 else rates[0] >= rates[1]


def test_the_rate_at_the_turning_points():
    schedule = {"peak": 1.0, "warmup_steps": 10, "total_steps": 110}
    rates = [learning_rate(step, **schedule) for step in (0, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])
