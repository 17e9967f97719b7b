"""Networks of other packages, and settings that a network does not take."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from cxr_pipeline.configs import networks
from cxr_pipeline.configs.schema import ClassifyConfig, ConfigError, dump_config, load_config
from cxr_pipeline.models.backbones import NetworkError, find_backbone
from cxr_pipeline.models.backbones.base import Backbone
from cxr_pipeline.models.classifier import build_classifier, network_settings
from cxr_pipeline.models.gradcam import has_linear_head
from cxr_pipeline.models.pooling import POOLINGS

OWN = "tests.models.own_network:build"


def test_a_network_of_ones_own_is_named_by_its_place():
    config = load_config(None, [f"classify.network={OWN}", "classify.network_settings={depth: 3, filters: 4}"])
    settings = network_settings(config.classify)
    assert settings == {"dropout": 0.2, "head_l2": 0.3, "depth": 3, "filters": 4}
    model = build_classifier(OWN, 64, 1, 3, pool="zones", **settings)
    assert model.get_layer("pool").input.shape[1:] == (8, 8, 24)
    assert has_linear_head(model)
    answer = np.asarray(model(np.random.default_rng(0).random((2, 64, 64, 2)).astype(np.float32)))
    np.testing.assert_allclose(answer.sum(1), 1, atol=1e-5)


def test_a_package_registers_its_networks_by_name(monkeypatch):
    entry = EntryPoint("mynet", OWN, networks.ENTRY_POINTS)
    monkeypatch.setattr(networks, "entry_points", lambda group: [entry] if group == networks.ENTRY_POINTS else [])
    assert load_config(None, ["classify.network=mynet"]).classify.network == "mynet"
    assert isinstance(find_backbone("mynet"), Backbone)
    with pytest.raises(ConfigError, match="'mynet', 'sequential_cnn', or 'package.module:build'.*'yournet'"):
        load_config(None, ["classify.network=yournet"])


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("no_such_package:build", r"cannot be imported \(No module named 'no_such_package'\)"),
        ("tests.models.own_network:biuld", "has no attribute 'biuld'"),
        ("tests.models.own_network:not_a_network", "must be a function.*Received: int"),
    ],
)
def test_what_is_no_network_is_named(place, says):
    with pytest.raises(NetworkError, match=says):
        find_backbone(place)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["network=densenet121", "alpha=1.0"], r"densenet121 takes no setting 'alpha'.*default, 0\.35.*Received: 1\.0"),
        (["network=sequential_cnn", "cut=block_12_add"], r"sequential_cnn takes no setting 'cut'.*It takes: dropout"),
        (["network_settings={alfa: 1.0}"], "takes no setting 'alfa'. Did you mean alpha"),
    ],
)
def test_a_setting_that_the_network_does_not_take_is_refused(settings, says):
    config = load_config(None, [f"classify.{one}" for one in settings])
    with pytest.raises(NetworkError, match=says):
        network_settings(config.classify)


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_a_config_that_spells_every_default_out_fits_every_network(name, tmp_path):
    (tmp_path / "all.yaml").write_text(dump_config(load_config(None, [f"classify.network={name}"])))
    network_settings(load_config(tmp_path / "all.yaml").classify)


def test_a_layer_to_cut_at_that_is_not_there_is_named_with_near_ones():
    with pytest.raises(NetworkError, match=r"no layer to cut at named 'block_12_ad'.*block_12_add"):
        build_classifier("mobilenetv2", 64, 1, 3, cut="block_12_ad")


def test_a_network_must_give_a_map():
    with pytest.raises(NetworkError, match=r"must give a feature map.*Received: shape \(None, 64\)"):
        build_classifier("tests.models.test_backbones:flat", 8, 1, 3)


def flat(rgb):
    from cxr_pipeline.models.backend import keras

    return keras().layers.Flatten()(rgb[..., :1])


def test_poolings_and_the_setting_that_names_them_agree():
    from typing import get_args

    assert get_args(ClassifyConfig.model_fields["pool"].annotation) == tuple(POOLINGS)
