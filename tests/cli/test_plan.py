"""`moonlet plan` as a person and a program meet it: what it loads, what it prints, what it refuses."""

import json
import re
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from moonlet.cli import plan_document
from moonlet.cli.main import main
from moonlet.cli.plan import _answers
from moonlet.config import preset, to_hf
from moonlet.plan.answer import Question
from moonlet.plan.describe import describe_machine
from moonlet.plan.weights import Weights

SCHEMA = json.loads(Path(plan_document.__file__).with_name("plan.schema.json").read_text("utf-8"))
DOCS = Path(__file__).parents[2] / "docs" / "plan.md"
H200 = ["kimi-k2.5", "--gpu", "8xh200"]

pytestmark = pytest.mark.usefixtures("_no_network")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def planned(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> dict[str, Any]:
    """The document: the whole of stdout, and strict JSON."""
    assert main(["plan", *argv, "--json"]) == status
    out, _ = capsys.readouterr()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(out, parse_constant=refuse, object_pairs_hook=unique)


def printed(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    assert main(["plan", *argv]) == status
    return capsys.readouterr().out


def loaded_by(*argv: str) -> set[str]:
    """The modules that a process has imported, by `-X importtime`."""
    command = [sys.executable, "-X", "importtime", "-m", "moonlet.cli.main", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize("rest", [["--help"], ["CONFIG", "--gpu", "8xh200"], ["CONFIG", "--json", "--gpu", "h100", "--ram", "768"]])  # fmt: skip
def test_it_loads_nothing_heavy(tmp_path: Path, rest: list[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_hf(preset("kimi-k2.5"))))
    found = loaded_by("plan", *(str(config) if word == "CONFIG" else word for word in rest))
    assert "argparse" in found
    heavy = {"torch", "transformers", "huggingface_hub", "httpx2", "PIL", "matplotlib", "fastapi", "llguidance", "tiktoken"}  # fmt: skip
    if "--help" in rest:
        heavy |= {"numpy", "rich"}
    if "--json" in rest:
        heavy |= {"rich"}
    assert not found & heavy


DOCUMENTS = {
    "fits": (H200, 0),
    "streams": ([*H200, "--streams", "16", "--cache", "fp8", "--draft", "3"], 0),
    "nodes": (["kimi-k2.5", "--gpu", "8xh100", "--nodes", "4"], 0),
    "hybrid": (["kimi-k2.5", "--gpu", "1xrtx4090", "--ram", "768"], 0),
    "disk": (["kimi-k2.5", "--gpu", "1xrtx4090", "--ram", "128", "--engine", "llama.cpp"], 0),
    "apple": (["kimi-k2.5", "--gpu", "1xm3-ultra-512"], 0),
    "own card": (["kimi-k2.5", "--gpu", "2xmine:96GB@1800", "--ram", "1024", "--price", "9000", "--watts", "900"], 0),
    "here": ([], 0),
    "refused": (["kimi-k2.5", "--gpu", "2xh100", "--engine", "vllm"], 1),
    "hopeless": (["kimi-k2.5", "--ram", "32", "--nvme", "0"], 1),
    "unknown price": (["kimi-k2.5", "--gpu", "8xmine:141GB@4800"], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_keep_the_schema(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, status = DOCUMENTS[name]
    found = planned(capsys, *argv, status=status)
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(found)
    assert (found["best"] is None) == (status == 1)
    assert [plan["fits"] for plan in found["plans"]] == sorted(
        (plan["fits"] for plan in found["plans"]), reverse=True
    )


def test_the_schema_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """It is strict: a member more, a member less and a number as text are none of its documents."""
    found = planned(capsys, *H200)
    validator = Draft202012Validator(SCHEMA)
    less = {key: value for key, value in found.items() if key != "best"}
    wrong = {**found, "sizes": {**found["sizes"], "bytes": "595"}}
    inner = {**found, "plans": [{**found["plans"][0], "guess": 1}]}
    for broken in (less, wrong, inner, {**found, "more": 1}):
        assert not validator.is_valid(broken)


def described(node: dict[str, Any], at: str, inside: tuple[str, ...] = ()) -> dict[str, str]:
    """Every member in the schema with its description, as docs/plan.md names them."""
    found: dict[str, str] = {}
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        if name == "estimate" or name in inside or not at.startswith("plans"):
            return found  # estimates are described once, and so is a plan
        node, inside = SCHEMA["$defs"][name], (*inside, name)
    for name, member in node.get("properties", {}).items():
        path = f"{at}.{name}" if at else name
        found[path] = member["description"]
        found |= described(member, path, inside)
    for one in node.get("oneOf", ()):
        found |= described(one, at, inside)
    if isinstance(value := node.get("additionalProperties"), dict):
        found |= described(value, f"{at}.*", inside)
    if "items" in node:
        found |= described(node["items"], f"{at}[]", inside)
    return found


def test_docs_and_schema_have_the_same_members() -> None:
    told = described(SCHEMA, "") | described(SCHEMA["$defs"]["estimate"], "estimate")
    assert len(told) > 100
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]* \| (.+) \|$", DOCS.read_text("utf-8"), re.M)
    assert dict(rows) == told
    assert len(rows) == len(told)


def test_figures_of_the_document_agree(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *H200, "--streams", "4")
    for plan in found["plans"]:
        if plan["fits"]:
            assert sum(plan["experts"].values()) == pytest.approx(1)
            for tier in plan["memory"].values():
                assert sum(tier["parts"].values()) == pytest.approx(tier["used"])
                assert tier["used"] <= tier["capacity"]
            for name in ("first_token_s", "prefill_tok_s", "each_tok_s", "all_tok_s"):
                assert plan[name]["low"] < plan[name]["value"] < plan[name]["high"]
            each = found["request"]["prompt"] / plan["prefill_tok_s"]["value"]
            assert plan["first_token_s"]["value"] == pytest.approx(each)
            assert plan["bottleneck"]["share"] == pytest.approx(
                max(plan["step_s"].values()) / sum(plan["step_s"].values())
            )
    assert sum(sum(part.values()) for part in found["sizes"]["parts"].values()) == pytest.approx(
        found["sizes"]["bytes"]
    )
    # 61 layers of 512 + 64 values in two bytes, and attention with 64 heads of 192 and 128 values
    assert found["sizes"]["cache_bytes_per_token"] == 61 * 576 * 2
    mha = next(one for one in found["sizes"]["cache_alternatives"] if one["name"] == "mha")
    assert mha["bytes_per_token"] == 61 * 64 * (192 + 128) * 2


def test_costs_of_the_document_agree(capsys: pytest.CaptureFixture[str]) -> None:
    cost = planned(capsys, *H200, "--price", "250000", "--watts", "8000", "--kwh", "0.2")["cost"]
    assert (cost["usd"], cost["watts"], cost["kwh_usd"]) == (250_000, 8000, 0.2)
    (api,) = cost["apis"]
    mix = cost["mix"]
    price = mix["fresh"] * api["input"] + mix["cached"] * api["cached_input"] + mix["output"] * api["output"]  # fmt: skip
    assert api["usd_per_million"] == pytest.approx(price)
    fixed = cost["hardware_usd_per_day"] + cost["idle_usd_per_day"]
    own = fixed + api["tokens_per_day"] / 1e6 * cost["usd_per_million_more"]
    assert own == pytest.approx(api["tokens_per_day"] / 1e6 * price)  # there the two meet
    assert api["pays"] == (api["tokens_per_day"] <= cost["most_per_day"])


@pytest.mark.parametrize("source", ["preset", "config.json"])
def test_a_config_is_known_as_what_was_published(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "kimi-k2.6"
    if source == "config.json":
        model = str(tmp_path / "config.json")
        Path(model).write_text(json.dumps(to_hf(preset("kimi-k2.6"))))
    found = planned(capsys, model, "--gpu", "8xh200", "--engine", "vllm")
    assert found["published_as"] == "moonshotai/Kimi-K2.6"
    (step,) = found["plans"][0]["start"]["commands"]
    assert step["command"].startswith("vllm serve moonshotai/Kimi-K2.6 ")
    assert [api["api"] for api in found["cost"]["apis"]] == ["api.moonshot.ai/kimi-k2.6"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--gpu", "0xh100"], "a node holds 1 to 128 accelerators"),
        (["--gpu", "999xh100"], "a node holds 1 to 128 accelerators"),
        (["--gpu", ""], "no accelerator ''"),
        (["--gpu", "\x1b[31mh100"], "no accelerator"),
        (["--gpu", "h100\n\x9b2J"], "no accelerator"),
        (["--gpu", "mine:0GB@900"], "must be a number above 0"),
        (["--gpu", "mine:1e400GB@900"], "is no accelerator"),
        (["--ram", "-1"], "no number from 0"),
        (["--ram", "nan"], "no number from 0"),
        (["--ram", "inf"], "no number from 0"),
        (["--ram", "0"], "0 is too little"),
        (["--nvme", "x"], "no number from 0"),
        (["--cores", "0", "--ram", "64"], "no whole number from 1"),
        (["--cores", "4"], "nothing is said of the machine"),
        (["--cpu", "nosuch"], "no processor"),
        (["--nodes", "1000000000", "--gpu", "h100"], "--nodes"),
        (["--context", "0"], "no whole number from 1"),
        (["--context", "262145", "--gpu", "h100"], "262,144"),
        (["--context", "\u0663", "--gpu", "h100"], "no whole number from 1"),
        (["--context", "9" * 5000], "no whole number from 1"),
        (["--streams", "0"], "no whole number from 1"),
        (["--streams", "1.5"], "no whole number from 1"),
        (["--prompt", "40000", "--gpu", "h100"], "do not fit into a context"),
        (["--draft", "65", "--gpu", "h100"], "65 drafted tokens"),
        (["--accepted", "1.1"], "no number from 0 to 1"),
        (["--expert-hits", "-1"], "no number from 0"),
        (["--cache", "int8"], "invalid choice"),
        (["--cached", "2"], "no number from 0 to 1"),
        (["--engine", "ollama"], "no engine"),
        (["-q", "q3_huge"], "no quantization"),
        (["-q", "\x1b]0;evil\x07"], "no quantization"),
        (["--gpu", "8xh200", "--region", "mars"], "no price of electricity"),
        (["--gpu", "8xh200", "--kwh", "1000"], "kwh_usd is 1000"),
        (["--gpu", "8xh200", "--prices", "/"], "cannot be read"),
        (["--gpu", "8xh200", "--plot", "plan.gif"], ".svg, .png, .pdf"),
    ],
)
def test_a_wrong_value_is_one_sentence(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["plan", "kimi-k2.5", *argv])
    except SystemExit as left:  # of argparse, after the usage
        status = left.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    last = err.rstrip("\n").splitlines()[-1]
    assert last.startswith(("moonlet: ", "moonlet plan: error: "))
    assert says in err
    assert not set(err) & {"\x1b", "\x07", "\x9b"}
    assert err.count("Traceback") == 0
    assert len(last) < 500


def test_hostile_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "kimi-k2.5", "--gpu", "8x[red]\x1b[31mmine:141GB@4800")
    assert "[red]" in out
    assert "\x1b" not in out


def test_it_says_first_whether_it_fits_and_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *H200)["plans"][0]
    fits, fastest, *_ = printed(capsys, *H200).splitlines()
    assert fits == "moonshotai/Kimi-K2.5 fits on 8xh200 + 2x EPYC 9654."
    assert fastest.startswith(f"Best: {found['engine']} with {found['quantization']} weights")
    assert f"{found['each_tok_s']['value']:,.0f} (" in fastest


def test_it_says_first_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["kimi-k2.5", "--gpu", "2xh100", "--engine", "vllm"]
    missing = planned(capsys, *argv, status=1)["plans"][0]["missing_bytes"]
    first, near, *_ = printed(capsys, *argv, status=1).splitlines()
    assert f"does not fit on 2xh100 + 2x EPYC 9654: {int(missing) / 1e9:,.0f} GB" in first
    assert near.startswith("The nearest thing that works: ")


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_nothing_is_cut(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for argv in (
        [*H200, "--streams", "4"],
        ["kimi-k2.5", "--gpu", "2xrtx4090", "--ram", "768", "--streams", "2"],
    ):
        fitting = [plan for plan in planned(capsys, *argv)["plans"] if plan["fits"]]
        out = printed(capsys, *argv)
        assert "…" not in out
        head, *rows = re.findall(r"^ (?:engine|[\w.]+ {2,}).*", out, re.M)
        assert head.split()[0] == "engine"
        assert [row.split()[0] for row in rows] == [plan["engine"] for plan in fitting]
        assert max(len(line) for line in (head, *rows)) <= width


def test_commands_are_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for step in planned(capsys, *H200)["plans"][0]["start"]["commands"]:
        assert f"  {step['command']}" in printed(capsys, *H200).splitlines()


def test_apple_chips_are_not_upgraded_and_run_no_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "moonlight-16b-a3b", "--gpu", "1xm3-ultra-512")
    assert found["upgrades"] == []
    argv = ["moonlight-16b-a3b", "--gpu", "1xm3-ultra-512", "--engine", "moonlet"]
    assert planned(capsys, *argv)["upgrades"] == []
    assert {plan["engine"] for plan in found["plans"] if plan["fits"]} == {"llama.cpp", "mlx", "moonlet"}  # fmt: skip


def test_several_nodes_are_for_engines_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "kimi-k2.5", "--gpu", "8xh100", "--nodes", "4")
    assert {plan["engine"] for plan in found["plans"] if plan["fits"]} == {"llama.cpp", "sglang", "vllm"}  # fmt: skip


def test_one_token_of_context(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, *H200, "--context", "1")["request"]["prompt"] == 1


def test_reading_from_the_disk_is_in_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["kimi-k2.5", "--gpu", "1xrtx4090", "--ram", "256", "--engine", "llama.cpp"]
    first = printed(capsys, *argv, "-q", "q2_k_xl").splitlines()[0]
    assert first.endswith(", partly read from the disk at every token.")
    assert "disk" not in printed(capsys, *argv).splitlines()[0]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence of a status 2."""
    try:
        status = main(["plan", *argv])
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    return err.rstrip("\n").splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "flag", "mode"),
    [
        ("kimi-k2.5 --check-claims k25", "MODEL", "--check-claims"),
        ("--check-claims k25 --gpu 8xh200", "--gpu", "--check-claims"),
        ("--check-claims k25 --train", "--train", "--check-claims"),
        ("--check-claims k25 --measure", "--measure", "--check-claims"),
        ("--check-claims k25 --plot a.svg", "--plot", "--check-claims"),
        ("--check-claims k25 --streams 1", "--streams", "--check-claims"),
        ("nano --train --plot a.svg", "--plot", "--train"),
        ("nano --train -q q8_0", "--quantization", "--train"),
        ("nano --train moonlet --engine vllm", "--engine", "--train"),
        ("nano --train --context 8", "--context", "--train"),
        ("nano --train --cached 0", "--cached", "--train"),
        ("nano --train paper", "MODEL", "--train paper"),
        ("--train paper --tokens 9", "--tokens", "--train paper"),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(
    argv: str, flag: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, *argv.split())
    assert told == f"moonlet: {flag} does not go with {mode}: leave one of them out"


@pytest.mark.parametrize("flag", ["--tokens 1e9", "--sequence 8", "--micro-batch 0", "--offload"])
def test_flags_of_training_need_a_training(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, *H200, *flag.split())
    assert told.startswith(f"moonlet: {flag.split()[0]} is of a training run: add --train")


def test_accepted_drafts_need_drafts(capsys: pytest.CaptureFixture[str]) -> None:
    assert "add --draft N" in refused(capsys, *H200, "--accepted", "0.6")
    request = planned(capsys, *H200, "--draft", "0", "--accepted", "0.5")["request"]
    assert (request["drafted"], request["accepted"]) == (0, 0.5)
    assert planned(capsys, *H200, "--draft", "2")["request"]["accepted"] == 0.6


def test_what_describes_another_machine_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--measure is for this machine" in refused(capsys, "nano", "--measure", "--ram", "8")


def test_wrong_prices_are_wrong_where_nothing_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["kimi-k2.5", "--gpu", "2xh100", "--engine", "vllm"]
    assert "nothing" in refused(capsys, *argv, "--prices", str(tmp_path / "nothing"))
    assert "no price of electricity is known for 'mars'" in refused(
        capsys, *argv, "--region", "mars"
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--disk", "10"], "The files take 595 GB, and the drive has 10 GB free: make room first."),
        (["--disk", "596"], None),
        (["--nvme", "0"], None),
    ],
)
def test_files_need_room_on_the_drive(
    argv: list[str], says: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, *H200, "--engine", "vllm", *argv).splitlines()
    assert [line for line in lines if line.startswith("The files take")] == ([says] if says else [])


def test_files_that_are_there_need_no_more_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded model lies on the drive already; as another quantization, and what a config.json is of, do not."""
    small = ["--ram", "64", "--disk", "0.000001", "--engine", "moonlet"]
    assert not planned(capsys, *small)["assumed"][-1].startswith("the files take")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_hf(preset("moonlight-16b-a3b"))))
    for argv in (["-q", "bf16"], [str(config)]):
        assert planned(capsys, *argv, *small)["assumed"][-1].startswith("the files take")


def test_costs_are_those_of_the_busiest_not_of_the_most_streams(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """64 caches push experts out of memory here: one stream makes more tokens than they do together."""
    argv = ["kimi-k2.5", "--gpu", "1xrtx4090", "--ram", "256", "--engine", "llama.cpp", "-q", "ud-tq1_0"]  # fmt: skip
    cost = planned(capsys, *argv)["cost"]
    for streams in (1, *plan_document.BATCHES):
        other = planned(capsys, *argv, "--streams", str(streams))["cost"]
        assert other["decode_tok_s"] <= cost["decode_tok_s"]
    assert cost["streams"] < 64


def test_a_gguf_file_is_for_engines_that_run_it() -> None:
    """Nothing is planned that is not in the file."""
    held = Weights(preset("kimi-k2.5"), "K2.gguf", {"experts": {"Q4_0": 200e9}, "attention": {"Q8_0": 9e9}})  # fmt: skip
    machine, _ = describe_machine(["8xh200"])
    question = Question(held.config, "gguf", machine, 4096, weights=held)
    args = Namespace(model="K2.gguf", engine=None, quantization=None)
    found = _answers(question, args)
    assert {one.engine.name for one in found if one.fits} == {"llama.cpp", "moonlet"}
    assert all(one.weights is held for one in found)
    refused = {one.engine.name: one.refusal.reason for one in found if one.refusal}
    assert refused["vllm"] == "vllm does not run weights stored as gguf"


def test_what_cannot_be_started_is_not_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    """llama.cpp is the fastest on two nodes, but no command is known for it; all three lose nothing."""
    argv = ["moonlight-16b-a3b", "--gpu", "8xh100", "--nodes", "2", "-q", "bf16"]
    plans = [plan for plan in planned(capsys, *argv)["plans"] if plan["fits"]]
    assert [bool(plan["start"]["commands"]) for plan in plans] == [True, True, False]
    assert plans[-1]["each_tok_s"]["value"] > plans[0]["each_tok_s"]["value"]


@pytest.mark.parametrize("gpu", ["2xh100", "1xh100"])
def test_the_nearest_is_named_once(gpu: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "kimi-k2.5", "--gpu", gpu, "--engine", "vllm", status=1).splitlines()
    near = lines[1].removeprefix("The nearest thing that works: ")
    assert near.count("llama.cpp") == 1
    assert near.count(near.split()[2]) == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--ram 1e30", "'1e30' is no number from 0 to 1e+12"),
        ("--streams 2000000000", "'2000000000' is no whole number from 1 to 1000000000"),
        ("--draft -1", "'-1' is no whole number from 0 to 1000000000"),
        ("--draft 0000000000000" + "9" * 5000, "is no whole number from 0 to 1000000000"),
        ("--draft 0.5", "'0.5' is no whole number from 0 to 1000000000"),
        ("--cached 2", "'2' is no number from 0 to 1"),
        ("--gpu h100 --nodes 1000000", "--nodes 1000000: it must be 1 to 4096"),
    ],
)
def test_bounds_are_named(argv: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "nano", *argv.split())


def test_the_name_of_a_card_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    fits, *_ = printed(capsys, "nano", "--gpu", "my\ncard:24GB@936").splitlines()
    assert "my card:24GB@936 + " in fits
