"""config.json in and out: every published file, both spellings, and refusals by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import PRESETS, from_hf, load_config, preset, to_hf
from moonlet.errors import ConfigError, NotSupportedError
from tests.shared import SHARED, needs_shared

PUBLISHED = {
    "moonshotai--Kimi-K2.5": "kimi-k2.5",
    "moonshotai--Kimi-K2.6": "kimi-k2.6",
    "moonshotai--Kimi-K2-Instruct": "kimi-k2",
    "moonshotai--Moonlight-16B-A3B-Instruct": "moonlight-16b-a3b",
    "deepseek-ai--DeepSeek-V3": "deepseek-v3",
    "deepseek-ai--DeepSeek-R1": "deepseek-r1",
    "zai-org--GLM-4.7-Flash": "glm-4.7-flash",
}


def published(name: str) -> Path:
    return SHARED / "reference" / "configs" / f"{name}.json"


@needs_shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_equal_the_presets(name: str) -> None:
    assert load_config(published(name)) == preset(PUBLISHED[name])


@needs_shared
def test_every_published_file_is_known_here() -> None:
    found = {path.stem for path in (SHARED / "reference" / "configs").glob("*.json")}
    assert found == {*PUBLISHED, "moonshotai--Kimi-K3"}


@needs_shared
def test_kimi_k3_is_refused_with_what_is_missing() -> None:
    with pytest.raises(NotSupportedError, match=r"kimi_k3.*Delta Attention.*latent experts"):
        load_config(published("moonshotai--Kimi-K3"))


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    config = preset(name)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_both_spellings_of_rope_mean_the_same() -> None:
    raw = to_hf(preset("kimi-k2"))
    scaling, theta = raw.pop("rope_scaling"), raw.pop("rope_theta")
    scaling["rope_type"] = scaling.pop("type")
    raw["rope_parameters"] = {**scaling, "rope_theta": theta}
    assert from_hf(raw) == preset("kimi-k2")


def test_published_vision_names_win_over_the_library_names() -> None:
    raw = to_hf(preset("tiny"))
    raw["vision_config"]["hidden_size"] = 999
    assert from_hf(raw) == preset("tiny")


def test_library_vision_names_alone_are_enough() -> None:
    raw = to_hf(preset("tiny"))
    for key in [k for k in raw["vision_config"] if k.startswith(("vt_", "init_"))]:
        plain = key.removeprefix("vt_").removeprefix("init_")
        raw["vision_config"][plain] = raw["vision_config"].pop(key)
    raw["image_token_id"] = raw.pop("media_placeholder_token_id")
    assert from_hf(raw) == preset("tiny")


def test_a_preset_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"kimi-k2\.5"):
        preset("kimi-k9")


def changed(**changes: Any) -> dict[str, Any]:
    return {**to_hf(preset("moonlight-16b-a3b")), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 4}}, "longrope"),
        ({"scoring_func": "relu"}, "relu"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"topk_method": "sinkhorn"}, "sinkhorn"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}, "weight_block_size"),
        ({"model_type": "llama"}, "llama"),
        ({"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)  # fmt: skip
def test_other_networks_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NotSupportedError, match=message):
        from_hf(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 4096}, "unknown keys sliding_window"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_experts_per_tok": 65}, "num_experts_per_tok is 65"),
        ({"n_group": 7}, "n_routed_experts is 64"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"routed_scaling_factor": None}, "routed_scaling_factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"first_k_dense_replace": 99}, "first_k_dense_replace"),
    ],
)  # fmt: skip
def test_impossible_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(changed(**changes))


INT4 = to_hf(preset("kimi-k2-thinking"))["quantization_config"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("transform_config",), {"x": 1}),
        (("sparsity_config",), {"format": "dense"}),
        (("format",), "marlin-24"),
        (("kv_cache_scheme",), {"num_bits": 8}),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8}),
        (("config_groups", "group_0", "weights", "actorder"), "group"),
        (("config_groups", "group_0", "weights", "num_bits"), 8),
        (("config_groups", "group_0", "weights", "symmetric"), False),
        (("config_groups", "group_0", "weights", "group_size"), 128),
    ],
)
def test_other_int4_schemes_are_refused_by_name(path: tuple[str, ...], value: Any) -> None:
    quantization = json.loads(json.dumps(INT4))
    inner = quantization
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(NotSupportedError, match=path[-1]):
        from_hf(changed(quantization_config=quantization))


def test_an_unknown_key_of_the_quantization_is_named() -> None:
    with pytest.raises(ConfigError, match=r"quantization_config\.smooth"):
        from_hf(changed(quantization_config={**INT4, "smooth": 1}))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (None, {"image_token_id": 5}, "image_token_id 5 contradicts"),
        (None, {"projection_hidden_size": 5}, "projection_hidden_size is 5"),
        ("text_config", {"qk_head_dim": 5}, "qk_head_dim is 5"),
        ("text_config", {"rope_parameters": {"rope_type": "default"}}, "both given"),
        ("text_config", {"mscale": 1}, "unknown keys text_config.mscale"),
        ("text_config", {"initializer_range": "abc"}, "initializer_range"),
        ("text_config", {"routed_scaling_factor": -1}, "routed_scaling_factor"),
        ("text_config", {"eos_token_id": 10**6}, "eos_token_id"),
        ("vision_config", {"mm_hidden_size": 5}, "mm_hidden_size is 5"),
        ("vision_config", {"text_hidden_size": 5}, "text_hidden_size is 5"),
    ],
)
def test_contradictions_are_named(part: str | None, changes: dict[str, Any], message: str) -> None:
    raw = to_hf(preset("tiny"))
    (raw[part] if part else raw).update(changes)
    with pytest.raises(ConfigError, match=message):
        from_hf(raw)


def test_a_file_without_a_model_type_says_so() -> None:
    with pytest.raises(ConfigError, match="model_type is missing"):
        from_hf({"hidden_size": 7})


def test_a_yarn_temperature_that_would_divide_by_zero_is_refused() -> None:
    raw = to_hf(preset("kimi-k2"))
    raw["rope_scaling"]["mscale_all_dim"] = -2.4044917348149393
    with pytest.raises(ConfigError, match="mscale_all_dim"):
        from_hf(raw)


def test_ends_of_both_parts_count() -> None:
    raw = to_hf(preset("tiny"))
    raw["eos_token_id"], raw["text_config"]["eos_token_id"] = 300, [257, 258]
    assert from_hf(raw).eos_token_ids == (257, 258, 300)


def test_a_missing_key_is_named_with_its_file() -> None:
    raw = changed()
    del raw["kv_lora_rank"]
    with pytest.raises(ConfigError, match=r"some/config.json: kv_lora_rank is missing"):
        from_hf(raw, "some/config.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", '"x"', "[" * 100_000, "\xff"])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "config.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.sampled_from(sorted(to_hf(preset("kimi-k2")))), json_values)
def test_any_value_of_any_key_reads_or_is_refused(key: str, value: Any) -> None:
    raw = to_hf(preset("kimi-k2"))
    raw[key] = value
    try:
        from_hf(raw)
    except (ConfigError, NotSupportedError) as error:
        assert "\n" not in str(error)[:200]  # noqa: PT017


@given(st.sampled_from(["vision_config", "text_config"]), st.data())
def test_any_value_inside_the_parts_reads_or_is_refused(part: str, data: st.DataObject) -> None:
    raw = to_hf(preset("tiny"))
    raw[part][data.draw(st.sampled_from(sorted(raw[part])))] = data.draw(json_values)
    try:
        from_hf(raw)
    except (ConfigError, NotSupportedError) as error:
        assert str(error)  # noqa: PT017
