import dataclasses
import json

import pytest

from rwkv_jax.convert.torch_config import config_from_torch
from rwkv_jax.models import (
    SIGLIP_LOGIT_BIAS,
    ClipConfig,
    ImageConfig,
    TextConfig,
    abstract_params,
    rwkv_clip_b16,
    rwkv_clip_b32,
)
from rwkv_jax.models.params import flat_params

# What the authors publish beside RWKV-CLIP-B/32 (model_config/RWKV_CLIP_B32.json).
PUBLISHED_B32 = {
    "workers": 10,
    "precision": "bf16",
    "dropout": 0.0,
    "input_size": 224,
    "image_depth": 12,
    "image_embed_dims": 640,
    "image_patch_size": 32,
    "image_hidden_rate": 5,
    "image_num_heads": 8,
    "image_output_cls_token": False,
    "image_with_cls_token": False,
    "drop_path_rate": 0.3,
    "data_type": "utf-8",
    "ctx_len": 77,
    "vocab_size": 49408,
    "text_initialization": True,
    "head_size": 64,
    "text_num_head": 0,
    "pos_emb": 0,
    "head_size_divisor": 8,
    "n_layer": 6,
    "n_embd": 640,
    "dim_att": 640,
    "dim_ffn": 2240,
    "head_qk": 0,
    "tiny_att_dim": 0,
    "tiny_att_layer": -999,
    "with_cp": False,
}


def test_published_configurations():
    assert config_from_torch(PUBLISHED_B32) == rwkv_clip_b32()
    assert config_from_torch(PUBLISHED_B32 | {"image_patch_size": 16}) == rwkv_clip_b16()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_layers": 3}, "n_layers"),
        ({"pos_emb": 64}, "pos_emb = 64"),
        ({"dim_att": 320}, "dim_att = 320"),
        ({"head_size": 48}, "head_size = 48"),
        ({"image_depth": "12"}, "depth must be int, got '12'"),
        ({"n_embd": 320, "dim_att": 320}, "640 and 320"),
    ],
)
def test_unusable_published_configuration(change, told):
    with pytest.raises(ValueError, match=told):
        config_from_torch(PUBLISHED_B32 | change)


def test_missing_published_key():
    with pytest.raises(ValueError, match=r"missing keys \['ctx_len'\]"):
        config_from_torch({k: v for k, v in PUBLISHED_B32.items() if k != "ctx_len"})


def test_json_round_trip():
    config = ClipConfig(ImageConfig(layer_scale=0.1), TextConfig(drop_path=0.2))
    assert ClipConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_model_saved_before_there_were_biases_has_none():
    values = ClipConfig().to_dict()
    del values["logit_scale"], values["logit_bias"]
    assert ClipConfig.from_dict(values) == ClipConfig()


def test_a_bias_is_one_more_parameter():
    without = flat_params(abstract_params(rwkv_clip_b32()))
    biased = dataclasses.replace(rwkv_clip_b32(), logit_bias=SIGLIP_LOGIT_BIAS)
    assert sum(leaf.size for leaf in without.values()) == 149_561_601
    assert flat_params(abstract_params(biased)).keys() - without.keys() == {"logit_bias"}


def test_remat_was_true_or_false_once():
    values = ClipConfig().to_dict()
    values["image"]["remat"], values["text"]["remat"] = True, False
    config = ClipConfig.from_dict(json.loads(json.dumps(values)))
    assert (config.image.remat, config.text.remat) == ("block", "none")
    assert config_from_torch(PUBLISHED_B32 | {"with_cp": True}).image.remat == "block"
    with pytest.raises(ValueError, match=r"ImageConfig\.remat .* none, block, dots, got 'all'"):
        ClipConfig.from_dict(values | {"image": values["image"] | {"remat": "all"}})


def test_models_saved_before_blocks_could_be_unrolled():
    values = ClipConfig().to_dict()
    del values["image"]["unroll"], values["text"]["unroll"]
    assert ClipConfig.from_dict(values) == ClipConfig()


def test_unknown_and_missing_fields_are_named():
    values = ClipConfig().to_dict()
    values["image"]["dept"] = values["image"].pop("depth")
    with pytest.raises(ValueError, match=r"unknown fields \['dept'\], missing fields \['depth'\]"):
        ClipConfig.from_dict(values)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (ImageConfig, "patch_size", 0),
        (ImageConfig, "heads", 7),
        (ImageConfig, "drop_path", 1.0),
        (ImageConfig, "output_cls_token", True),
        (TextConfig, "context_length", 0),
        (TextConfig, "heads", 64),
    ],
)
def test_values_out_of_range_name_the_field(cls, field, value):
    with pytest.raises(ValueError, match=rf"{cls.__name__}.*{field}.*{value}"):
        cls(**{field: value})
