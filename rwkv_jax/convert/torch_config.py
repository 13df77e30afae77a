"""The authors' JSON configuration, published beside their checkpoints, as a `ClipConfig`."""

from typing import Any

from rwkv_jax.models import ClipConfig

# Their key -> our field.
IMAGE_KEYS = {
    "input_size": "image_size",
    "image_patch_size": "patch_size",
    "image_embed_dims": "width",
    "image_num_heads": "heads",
    "image_depth": "depth",
    "image_hidden_rate": "hidden_rate",
    "image_with_cls_token": "with_cls_token",
    "image_output_cls_token": "output_cls_token",
}
TEXT_KEYS = {
    "vocab_size": "vocab_size",
    "ctx_len": "context_length",
    "n_embd": "width",
    "n_layer": "depth",
    "dim_ffn": "hidden",
    "head_size_divisor": "head_size_divisor",
}
# Theirs with one value that we support: anything else would change what the weights compute.
FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "dropout": (0,),
    "pos_emb": (0,),
    "head_qk": (0,),
    "tiny_att_dim": (0, -1),
}
# Optional; their Image_RWKV takes them as arguments, so a configuration may name them.
OPTIONAL_IMAGE_KEYS = {
    "drop_path_rate": "drop_path",
    "image_init_values": "layer_scale",
    "image_post_norm": "post_norm",
    "image_key_norm": "key_norm",
}
IGNORED_KEYS = {  # without influence on what given weights compute
    "workers",
    "precision",
    "data_type",
    "text_initialization",
    "text_num_head",
    "tiny_att_layer",
}


def config_from_torch(values: dict[str, Any]) -> ClipConfig:
    """Reads the keys of model_config/*.json in the authors' repository.

    Raises:
        ValueError: naming the keys that are unknown, missing, or ask for what is not supported.
    """
    if not isinstance(values, dict):
        raise ValueError(f"the configuration must be a JSON object, got {type(values).__name__}")
    required = {*IMAGE_KEYS, *TEXT_KEYS, "head_size"}
    known = {*required, *FIXED_KEYS, *OPTIONAL_IMAGE_KEYS, *IGNORED_KEYS, "dim_att", "with_cp"}
    unknown, missing = sorted(set(values) - known), sorted(required - set(values))
    if unknown or missing:
        raise ValueError(f"the configuration has unknown keys {unknown}, missing keys {missing}")
    for key, allowed in FIXED_KEYS.items():
        if values.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} = {values[key]!r} is not supported, only {allowed[0]!r}")
    width, head_size = values["n_embd"], values["head_size"]
    if values.get("dim_att", width) != width:
        raise ValueError(f"dim_att = {values['dim_att']} must equal n_embd = {width}")
    if not isinstance(head_size, int) or head_size < 1 or width % head_size:
        raise ValueError(f"n_embd = {width} must be a multiple of head_size = {head_size!r}")
    remat = {"remat": "block"} if values.get("with_cp", False) else {}
    image = {ours: values[theirs] for theirs, ours in IMAGE_KEYS.items()} | {
        ours: values[theirs] for theirs, ours in OPTIONAL_IMAGE_KEYS.items() if theirs in values
    }
    text = {ours: values[theirs] for theirs, ours in TEXT_KEYS.items()}
    defaults = ClipConfig().to_dict()
    return ClipConfig.from_dict(
        {
            "image": defaults["image"] | image | remat,
            "text": defaults["text"] | text | {"heads": width // head_size} | remat,
        }
    )
