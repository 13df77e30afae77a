"""Configurations: every file of configs/ loads, overrides apply, wrong ones are named."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from rwkv_jax.config import ConfigError, DataConfig, differences, load_config, override
from rwkv_jax.data.config import LoaderConfig, MixturePart

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "common")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_loads(name: str):
    config = load_config(CONFIGS / f"{name}.py")
    assert config.steps * config.batch_size > 0
    assert override(config, []) == config


def test_the_papers_number_of_steps():
    config = load_config(CONFIGS / "rwkv_clip_b32_yfcc15m.py")
    assert config.steps == 117_696  # 32 epochs of 15,061,515 // 4096 + 1 updates


def test_dotted_overrides_reach_their_fields():
    config = load_config(CONFIGS / "emoji_cpu.py")
    changed = override(
        config, ["--steps", "7", "--optimizer.weight-decay", "0.7", "--data.loader.workers", "1"]
    )
    assert (changed.steps, changed.optimizer.weight_decay) == (7, 0.7)
    decay = config.optimizer.weight_decay
    assert differences(config.to_dict(), changed.to_dict()) == [
        f"optimizer.weight_decay: {decay} -> 0.7",  # workers may change in a restart
        f"steps: {config.steps} -> 7",
    ]


def test_a_run_that_an_earlier_version_began_goes_on():
    now = load_config(CONFIGS / "emoji_gpu.py").to_dict()
    assert now["optimizer"]["beta1_peak"] == 0.85  # what the optimizer takes, not "its own"
    then = json.loads(json.dumps(now))
    then["model"]["image"]["remat"] = then["model"]["text"]["remat"] = False
    del then["model"]["image"]["unroll"], then["model"]["text"]["unroll"]
    for field in ("name", "beta1", "frozen", "no_decay", "learning_rate_multipliers", "ema_decay"):
        del then["optimizer"][field]
    del then["mesh"]
    assert differences(then, now) == []  # "none" was the default of remat; it is free to change


def test_optimizers_and_rules_from_the_command_line():
    config = load_config(CONFIGS / "emoji_gpu.py")
    changed = override(
        config,
        [
            *("--optimizer.name", "adafactor", "--optimizer.no-decay", "bias$", "scale$"),
            *("--optimizer.learning-rate-multipliers", "^text/", "0.1", "^image/", "2"),
            *("--optimizer.ema-decay", "0.999", "--eval.params", "ema"),
            *("--model.image.remat", "block", "--model.text.unroll", "True"),
            *("--kernels", "none"),
        ],
    )
    assert changed.optimizer.no_decay == ("bias$", "scale$")
    assert changed.optimizer.learning_rate_multipliers == (("^text/", 0.1), ("^image/", 2.0))
    assert (changed.eval.params, changed.model.image.remat) == ("ema", "block")
    assert (changed.model.image.unroll, changed.model.text.unroll) == (None, True)
    lines = differences(config.to_dict(), changed.to_dict())
    assert "optimizer.momentum: None -> 0.9" in lines
    assert changed.kernels == "none"
    assert not [line for line in lines if line.startswith(("kernels", "model"))]  # may change
    assert "optimizer.beta2: 0.98 -> None" in lines


def test_settings_that_do_not_go_together():
    config = load_config(CONFIGS / "emoji_cpu.py")
    averaged = dataclasses.replace(config.eval, params="ema")
    with pytest.raises(ValueError, match=r"eval\.params = 'ema': .*optimizer\.ema_decay is None"):
        dataclasses.replace(config, eval=averaged)
    locked = dataclasses.replace(config.optimizer, frozen="image")
    with pytest.raises(ValueError, match=r"model\.image\.drop_path = 0\.15: a locked tower"):
        dataclasses.replace(config, optimizer=locked)


def test_loader_and_model_must_agree():
    config = load_config(CONFIGS / "emoji_cpu.py")
    loader = dataclasses.replace(config.data.loader, image_size=40)
    with pytest.raises(ValueError, match=r"data\.loader\.image_size = 40: must equal"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, loader=loader))


def test_a_sigmoid_loss_and_a_bias_go_together():
    config = load_config(CONFIGS / "emoji_cpu.py")
    siglip = ["--model.logit-bias", "-10", "--model.logit-scale", "2.3026"]
    changed = override(config, ["--loss.kind", "sigmoid", "--loss.form", "ring", *siglip])
    assert (changed.model.logit_bias, changed.loss.form) == (-10.0, "ring")
    with pytest.raises(ValueError, match=r"'sigmoid': needs .*logit_bias = -10, .* = 2\.3026"):
        dataclasses.replace(config, loss=changed.loss)
    with pytest.raises(ValueError, match=r"'softmax': has no use for a bias.* = -10"):
        dataclasses.replace(config, model=changed.model)


def test_micro_batches_divide_the_batch():
    config = load_config(CONFIGS / "emoji_cpu.py")
    assert override(config, ["--micro-batches", "4"]).micro_batches == 4
    with pytest.raises(ValueError, match=r"micro_batches = 3: .*divide batch_size = 128"):
        dataclasses.replace(config, micro_batches=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = 3", "must set config = RunConfig"),
        ("config = nothing", "NameError"),
        ("config = (", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_a_missing_file_lists_its_neighbours(tmp_path: Path):
    (tmp_path / "near.py").touch()
    with pytest.raises(ConfigError, match=r"near\.py"):
        load_config(tmp_path / "absent.py")


def test_a_dataset_or_a_mixture(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
        (tmp_path / name / "t.jsonl").write_text(f'{{"file": "1.png", "caption_{name}": "x"}}\n')
    parts = tuple(MixturePart(f"folder:{tmp_path / name}", "train", 2.0) for name in "ab")
    source = DataConfig("", "", LoaderConfig(), mixture=parts).open()
    assert (len(source), source.text_kinds) == (2, ("caption_a", "caption_b"))
    assert len(DataConfig(parts[0].dataset, "train", LoaderConfig()).open()) == 1
    with pytest.raises(
        ValueError, match=r"data\.dataset = 'open_emoji': .* a data\.mixture \(of 2"
    ):
        DataConfig("open_emoji", "train", LoaderConfig(), mixture=parts)
    with pytest.raises(ValueError, match=r"data\.dataset = ''"):
        DataConfig("", "", LoaderConfig())
