"""The named mixes on real models, the fallbacks for short rows, and tables that are not tables."""

import math
from pathlib import Path

import pytest

from moonlet.config import ModelConfig
from moonlet.config.presets import preset
from moonlet.config.tensors import tensor_specs
from moonlet.errors import ConfigError
from moonlet.quant import mixes
from moonlet.quant.mixes import load_mix
from moonlet.quant.types import TYPES

named = pytest.mark.parametrize("name", mixes.NAMES)
LAYER = "language_model.model.layers.3."


def stored(config: ModelConfig, name: str) -> dict[str, tuple[str, float]]:
    """Type and bytes of every tensor of the language model in a mix."""
    found = {}
    for spec in tensor_specs(config):
        if spec.name.startswith("language_model."):
            rows, cols = (1, *spec.shape)[-2:]
            kind = load_mix(name).type_for(spec.name, rows, cols)
            # INT4: half a byte for a value, and a scale of two bytes for 32
            row = cols / 2 + cols / 16 if kind == "INT4" else TYPES[kind].row_bytes(cols)
            found[spec.name] = kind, row * math.prod(spec.shape) / cols
    return found


def test_the_five_mixes_have_their_names() -> None:
    assert mixes.NAMES == ("native-int4", "q2_k_xl", "q4_k_m", "q8_0", "tq1_0")
    assert load_mix("Q4_K_M") == load_mix("q4_k_m")
    assert [load_mix(name).file_type for name in mixes.NAMES] == [2, 10, 15, 7, 36]


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    # Published sizes of Kimi-K2.5's UD-Q2_K_XL and K2's Q8_0, and the INT4 checkpoint's.
    [("q2_k_xl", 375), ("q8_0", 1090), ("native-int4", 594), ("q4_k_m", 622), ("tq1_0", 221)],
)
def test_sizes_of_kimi_k25(name: str, gigabytes: float) -> None:
    total = sum(size for _, size in stored(preset("kimi-k2.5"), name).values())
    assert total / 1e9 == pytest.approx(gigabytes, rel=0.01)


@named
@pytest.mark.parametrize("model", ["kimi-k2.5", "moonlight-16b-a3b", "tiny", "nano"])
def test_norms_router_and_biases_stay_float(name: str, model: str) -> None:
    mix = load_mix(name)
    for spec in tensor_specs(preset(model)):
        rows, cols = (1, *spec.shape)[-2:]
        kind = mix.type_for(spec.name, rows, cols)
        if spec.part in ("router", "norm") or len(spec.shape) == 1 or "pos_emb" in spec.name:
            assert kind == "F32", spec.name
        else:
            assert kind != "F32", spec.name


def test_types_of_kimi_k25_in_q2_k_xl() -> None:
    kinds = {
        name.removeprefix(LAYER): kind
        for name, (kind, _) in stored(preset("kimi-k2.5"), "q2_k_xl").items()
    }
    assert kinds["mlp.experts.gate_up_proj"] == "Q2_K"
    assert kinds["mlp.experts.down_proj"] == "Q3_K"
    assert kinds["mlp.shared_experts.down_proj.weight"] == "Q6_K"
    assert kinds["self_attn.kv_b_proj.weight"] == "Q8_0"
    assert kinds["self_attn.o_proj.weight"] == "Q4_K"
    assert kinds["mlp.gate.weight"] == "F32"
    assert kinds["language_model.lm_head.weight"] == "Q6_K"


def test_native_int4_is_moonshots_form() -> None:
    kinds = stored(preset("kimi-k2.5"), "native-int4")
    assert {kind for name, (kind, _) in kinds.items() if ".experts." in name} == {"INT4"}
    others = {kind for name, (kind, _) in kinds.items() if ".experts." not in name}
    assert others == {"BF16", "F32"}
    # INT4 has a scale for a last partial group: any row length will do.
    assert load_mix("native-int4").type_for(LAYER + "mlp.experts.down_proj", 16, 83) == "INT4"


@pytest.mark.parametrize(
    ("kind", "at_128", "at_80"),
    [
        ("Q2_K", "IQ4_NL", "F16"),
        ("Q3_K", "IQ4_NL", "F16"),
        ("IQ4_XS", "IQ4_NL", "F16"),
        ("Q4_K", "Q5_0", "F16"),
        ("Q5_K", "Q5_1", "F16"),
        ("Q6_K", "Q8_0", "F16"),
        ("TQ1_0", "Q4_0", "F16"),
        ("TQ2_0", "Q4_0", "F16"),
        ("Q8_0", "Q8_0", "F16"),
        ("BF16", "BF16", "BF16"),
    ],
)
def test_rows_too_short_for_a_type_fall_back(kind: str, at_128: str, at_80: str) -> None:
    mix = mixes.Mix("test", (("*", kind),))
    for cols, expected in ((256, kind), (128, at_128), (80, at_80)):
        assert mix.type_for(LAYER + "self_attn.o_proj.weight", 64, cols) == expected


def test_every_wide_type_has_a_fallback() -> None:
    wide = {name for name in mixes.WRITTEN if name != "INT4" and TYPES[name].values == 256}
    assert mixes.FALLBACKS.keys() == wide


def test_a_file_is_a_mix_and_its_first_match_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[types]\n"*.o_proj.*" = "Q6_K"\n"*.self_attn.*" = "Q8_0"\n"*" = "INT4"\n')
    mix = load_mix(path)
    assert (mix.name, mix.file_type) == ("mine", 1024)
    assert load_mix(str(path)) == mix
    assert mix.type_for(LAYER + "self_attn.o_proj.weight", 4, 256) == "Q6_K"
    assert mix.type_for(LAYER + "self_attn.q_proj.weight", 4, 256) == "Q8_0"
    assert mix.type_for("language_model.lm_head.weight", 4, 256) == "INT4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[types]\n", "last line"),
        ("", "last line"),
        ("types = 3", "last line"),
        ('[types]\n"*" = "Q8_0"\n"*.o_proj.*" = "Q6_K"\n', "last line"),
        ('[types]\n"*" = "Q9_K"\n', "'Q9_K'; moonlet writes"),
        ('[types]\n"*" = "IQ1_S"\n', "'IQ1_S'; moonlet writes"),
        ('[types]\n"*" = ["Q8_0"]\n', "moonlet writes"),
        ('size = 3\n[types]\n"*" = "Q8_0"\n', "the key 'size'"),
        ('file_type = "many"\n[types]\n"*" = "Q8_0"\n', "file_type 'many'"),
        ('file_type = true\n[types]\n"*" = "Q8_0"\n', "file_type True"),
        ("[types", "cannot be read"),
        ("\udcff", "cannot be read"),
        ("#\n" * (1 << 20), "longer than 100 kB"),
        (".a" * 25_000, "a line of 50000 bytes"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, "utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=message):
        load_mix(path)


def test_names_and_paths_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name one of native-int4, q2_k_xl"):
        load_mix("q3_k_s")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mix(tmp_path / "absent.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="no regular file"):
        load_mix(tmp_path / "folder.toml")
