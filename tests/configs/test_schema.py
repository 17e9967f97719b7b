"""Settings: presets load, overrides work, and what cannot be used is named."""

from __future__ import annotations

import pytest

from cxr_pipeline.configs.schema import ConfigError, dump_config, explain, load_config, presets


@pytest.mark.parametrize("name", presets())
def test_presets_load_and_survive_a_round_trip(name, tmp_path):
    config = load_config(name)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_a_preset_keeps_the_defaults_of_what_it_does_not_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("classify: {fit: {epochs: 3}}")
    fit = load_config(path).classify.fit
    assert fit.epochs == 3
    assert fit.batch_size == load_config().classify.fit.batch_size


def test_overrides_reach_into_sections():
    config = load_config(
        None,
        ["classify.alpha=1.0", "segment.encoder_weights=null", "classes=[SICK, WELL]", "positive=SICK", "normal=WELL"],
    )
    assert config.classify.alpha == 1.0
    assert config.segment.encoder_weights is None
    assert config.classes == ["SICK", "WELL"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["classify.alfa=1"], r"classify\.alfa: there is no such setting. Did you mean classify\.alpha\?"),
        (["classify.fit.epoch=3"], r"mean classify\.fit\.epochs\? Allowed in classify\.fit: epochs, batch_size, .*ema"),
        (["clasify.alpha=1"], r"clasify: .*mean classify\? Allowed: name, .*segment, classify, localize"),
        (["classify.epochs=3"], r"mean segment\.fit\.epochs or classify\.fit\.epochs\?"),
        (["localize.zzz=3"], r"localize\.zzz: there is no such setting\. Allowed in localize: threshold, "),
        (["segment.size=100"], r"segment\.size.*multiple of 32.*100"),
        (["classify.lungs=nothing"], r"classify\.lungs.*'nothing'"),
        (["positive=COVID"], r"positive must be one of.*'COVID'"),
        (["classes=[TB, TB, NORM]"], "differ"),
        (["classes=[TB, 'A|B', NORM]"], "pipe sign.*'A|B'"),
        (["classes=[TB, '', NORM]"], "needs a name"),
        (["normal=TB"], "must be two classes"),
        (["localize.label=TBB"], "localize.label must be one of.*'TBB'"),
        (["classify.network=resnet50"], r"classify\.network.*'densenet121'.*'resnet50'"),
        (["name"], "key=value"),
        (["name.x.y=1"], "name"),
        (["segment.fit.epochs=0"], r"segment\.fit\.epochs.*0"),
        (["classify.fit.epochs=-1"], r"classify\.fit\.epochs.*-1"),
        (
            ["classify.fit.schedule=step"],
            r"classify\.fit\.schedule.*'constant', 'cosine', 'plateau' or 'exponential'.*'step'",
        ),
        (["segment.fit.optimizer=lion"], r"segment\.fit\.optimizer.*'adamw', 'adam', 'sgd' or 'rmsprop'.*'lion'"),
        (["classify.loss=hinge"], r"classify\.loss.*'cross_entropy', 'focal' or 'generalized_cross_entropy'.*'hinge'"),
        (["segment.loss=hinge"], r"segment\.loss.*'dice_cross_entropy', 'dice', 'cross_entropy' or 'focal'.*'hinge'"),
        (["segment.fit.early_stopping=0"], r"segment\.fit\.early_stopping.*0"),
        (["segment.fit.final_learning_rate=1"], r"segment\.fit: .*not be above learning_rate, 0\.001.*1\.0"),
    ],
)
def test_what_cannot_be_used_is_named(overrides, named):
    with pytest.raises(ConfigError, match=named):
        load_config("tb", overrides)


def test_a_rule_over_several_settings_names_what_it_received_alone():
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["classes=[TB, NORM]", "positive=Flu"])
    assert str(caught.value).endswith("config: positive must be one of the classes ['TB', 'NORM']. Received: 'Flu'")


def test_a_typo_in_a_file_is_named_with_what_was_meant(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("classify: {fit: {learningrate: 0.1, epochs: 0}}\nsede: 3\n")
    with pytest.raises(ConfigError, match=r"(?s)mine\.yaml: 2 setting.*classify\.fit\.learning_rate\?.*mean seed\?"):
        load_config(path)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*preset: .*tb"):
        load_config("nowhere")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not YAML"):
        load_config(broken)
    broken.write_text("just text")
    with pytest.raises(ConfigError, match="key: value"):
        load_config(broken)


def test_every_value_says_where_it_came_from():
    shown = {name: (value, origin) for name, value, origin in explain("tb", ["classify.fit.batch_size=7", "seed=1"])}
    assert shown["classify.size"] == (192, "tb")
    assert shown["classify.fit.batch_size"] == (7, "--set")
    assert shown["segment.size"] == (256, "default")
    assert shown["seed"] == (1, "default")  # set to what it was
    assert shown["classify.assumed_mix"][0] == {"TB": 0.25, "NTB": 0.25, "NORM": 0.50}
    with pytest.raises(ConfigError):
        explain("tb", ["classify.alfa=1"])
