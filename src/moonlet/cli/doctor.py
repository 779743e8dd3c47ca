"""`moonlet doctor`: does this installation compute what it should, and what can this machine do?"""

import hashlib
import os
import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet import __version__, nano
from moonlet.cli.console import UsageError, add_json_flag, busy, print_json
from moonlet.cli.inspect import size

if TYPE_CHECKING:
    from moonlet.kernels.selftest import Check

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
NODES = Path("/sys/devices/system/node")
OPERATIONS = {"int8_dot": "int8", "bf16_dot": "bf16", "float_multiply_add": "fp32"}
# A conversation with everything that a template treats in its own way.
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What time is it?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I should look.",
        "tool_calls": [
            {
                "id": "functions.clock:0",
                "type": "function",
                "function": {"name": "clock", "arguments": '{"zone": "UTC"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "functions.clock:0", "content": "12:00"},
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
        },
    }
]


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "doctor",
        help="self-test of this installation: kernels, template, speed limits",
        description="Check each kernel against its reference for every instruction set of this CPU, and "
        "say what the machine can do. Exits with 1 when a check fails.",
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    with busy("checking the kernels and measuring this machine"), told_if_forced_wrongly():
        document = examine()
    if args.json:
        print_json(document)
    else:
        _print_report(document)
    return 0 if document["ok"] else 1


@contextmanager
def told_if_forced_wrongly() -> Iterator[None]:
    """Raises UsageError where MOONLET_ISA names an instruction set that this CPU does not run."""
    from moonlet import kernels

    try:
        kernels.isa()
    except ValueError as error:
        raise UsageError(f"{error}: unset it, or name one of these") from error
    yield


def examine() -> dict[str, Any]:
    """The JSON document. `ok` is whether every check passed; `advice` are sentences for the reader."""
    from moonlet.kernels.selftest import self_test, types_without_kernel

    checks = list(self_test())
    document: dict[str, Any] = {
        "ok": all(check.problem is None for check in checks),
        "versions": {
            "moonlet": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy")},
        },
        "machine": machine(),
        "limits": limits(),
        "templates": template_hashes(),
        "nano": {"weights_sha256": _sha256((nano.folder() / "model.safetensors").read_bytes())},
        "checks": [asdict(check) for check in checks],
        "types_without_kernel": types_without_kernel(),
    }
    document["advice"] = list(_advice(document, checks))
    return document


def machine() -> dict[str, Any]:
    """What kernels find here: instruction sets, the one in use, threads, memory and how it is paged."""
    from moonlet import kernels
    from moonlet.kernels.limits import available_bytes

    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "isas": list(kernels.supported_isas()),
        "isa": kernels.isa(),
        "isa_forced": bool(os.environ.get("MOONLET_ISA")),
        "threads": kernels.num_threads(),
        "numa_nodes": max(1, len(list(NODES.glob("node[0-9]*")))),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "memory_available_bytes": available_bytes(),
        "huge_pages": huge_pages(),
    }


def huge_pages() -> str | None:
    """Whether memory comes in huge pages: "always", "madvise" (when asked for), "never"; None: unknown."""
    try:
        text = HUGE_PAGES.read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def limits() -> dict[str, Any]:
    """Bytes and operations per second, on one thread and on all."""
    from moonlet import kernels
    from moonlet.kernels.limits import Bandwidth, arithmetic

    bandwidth = Bandwidth()
    found: dict[str, Any] = {}
    for name, all_threads in (("one_thread", False), ("all_threads", True)):
        found[name] = {
            "read_bandwidth": bandwidth.read(all_threads),
            "arithmetic": {
                isa: asdict(arithmetic(isa, all_threads)) for isa in kernels.supported_isas()
            },
        }
    return found


def template_hashes() -> dict[str, str]:
    """SHA-256 of what each built-in prompt style makes of a fixed conversation."""
    from moonlet.chat.messages import parse_messages
    from moonlet.chat.template import STYLES, ChatTemplate
    from moonlet.chat.tokenizer import Tokenizer

    tokenizer, messages = Tokenizer.from_folder(nano.folder()), parse_messages(CONVERSATION)
    return {
        style: _sha256(ChatTemplate(tokenizer, style).render(messages, TOOLS).text.encode())
        for style in STYLES
    }


def _advice(document: dict[str, Any], checks: "list[Check]") -> Iterator[str]:
    failed = [check for check in checks if check.problem]
    if failed:
        first = failed[0]
        yield (
            f"{len(failed)} of {len(checks)} checks failed, the first being {first.kernel} on {first.isa}: "
            f"{first.problem}. Install moonlet anew; if that does not help, force another instruction set "
            f"with MOONLET_ISA={document['machine']['isas'][0]} and report this output."
        )
    if document["machine"]["huge_pages"] == "never":
        yield (
            "Huge pages are off, which costs about a tenth of the memory bandwidth: as root, write "
            f"madvise to {HUGE_PAGES}."
        )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _print_report(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(document):
        facts.add_row(name, value)
    console.print(facts)
    checks = document["checks"]
    table = Table("kernel", *document["machine"]["isas"], title="kernels against their references")
    families: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for check in checks:  # one line for all sizes of a kernel
        family = families.setdefault(check["kernel"].partition(", ")[0], {})
        family.setdefault(check["isa"], []).append(check)
    for kernel, by_isa in families.items():
        table.add_row(kernel, *(_mark(by_isa[isa]) for isa in document["machine"]["isas"]))
    console.print(table)
    if document["types_without_kernel"]:
        console.print(f"read, but without a kernel: {', '.join(document['types_without_kernel'])}")
    for check in checks:
        if check["problem"]:
            text = f"{check['kernel']} on {check['isa']}: {check['problem']}"
            console.print(text, style="red", markup=False)
    for sentence in document["advice"] or ["Everything is as it should be."]:
        console.print(sentence, markup=False)


def _mark(checks: list[dict[str, Any]]) -> str:
    """The largest error of the checks, or that one failed."""
    if any(check["problem"] for check in checks):
        return "[red]failed[/]"
    return f"{max(check['error'] for check in checks):.0e}"


def _facts(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    found, versions = document["machine"], document["versions"]
    yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())
    yield (
        "machine",
        f"{found['cpu']}, {found['threads']} threads, {found['numa_nodes']} NUMA node(s)",
    )
    forced = " (forced by MOONLET_ISA)" if found["isa_forced"] else ""
    yield "instruction sets", f"{', '.join(found['isas'])}; in use: {found['isa']}{forced}"
    memory = f"{size(found['memory_available_bytes'])} of {size(found['memory_bytes'])} free"
    yield "memory", f"{memory}, huge pages: {found['huge_pages'] or 'unknown'}"
    for name, one in document["limits"].items():
        yield name.replace("_", " "), limits_text(one, found["isa"])
    for style, digest in document["templates"].items():
        yield f"template {style}", digest[:16]
    yield "nano's weights", document["nano"]["weights_sha256"][:16]


def limits_text(found: dict[str, Any], isa: str) -> str:
    """One line: "reads 36.1 GB/s; 931 int8, 466 bf16, 233 fp32 GOPS"."""
    peaks = ", ".join(
        f"{found['arithmetic'][isa][name] / 1e9:.0f} {short}"
        for name, short in OPERATIONS.items()
        if found["arithmetic"][isa][name]
    )
    return f"reads {found['read_bandwidth'] / 1e9:.1f} GB/s; {peaks} GOPS"
