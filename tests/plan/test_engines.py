"""Which engine runs what: by the names of `moonlet plan --quantization`."""

from moonlet.plan.engines import engines


def test_a_file_of_ones_own_mix_runs_where_gguf_files_do_whatever_it_is_called() -> None:
    for path in (
        "mix.toml",
        "a/b/My-Mix.toml",
        "fp8.toml",
        "native.toml",
        "4.5bpw.toml",
        "Q4.TOML",
    ):
        runs = {name for name, one in engines().items() if one.runs(path)}
        assert runs == {"moonlet", "llama.cpp"}, path
    assert not any(one.runs("mix") for one in engines().values())
