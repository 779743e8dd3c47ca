"""`moonlet verify URL`: does an endpoint do what the API promises, and does it call tools as a reference does?"""

import asyncio
import os
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.cli.console import UsageError, add_json_flag, print_json
from moonlet.cli.convert import progress_bar
from moonlet.cli.sources import KEY_VARIABLE
from moonlet.cli.verify_report import print_results, print_scores

if TYPE_CHECKING:
    from moonlet.gateway.fidelity.check import Result
    from moonlet.gateway.fidelity.records import Record

CHECK_S, SAMPLE_S = 120.0, 600.0  # how long one check, one try of a sample may take
MAX_CONCURRENCY = 256
OF_SAMPLES = ("reference", "output", "extra_body")


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "verify",
        help="check any endpoint: parameters, thinking, tools, schemas",
        description="Check an OpenAI-compatible endpoint. Exits with 1 when a check fails. With --samples, "
        "replay the requests of a tool-call verifier instead and report how its calls are; then 1 means that "
        "some were not answered.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", metavar="NAME", help="which model (default: the first listed)")
    parser.add_argument(
        "--profile",
        choices=("open", "kimi", "openai"),
        default="open",
        help="whose rules it should keep (%(default)s: whatever can be served is)",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"the endpoint's key (default: {KEY_VARIABLE})"
    )
    parser.add_argument(
        "--only", metavar="PATTERN", help="the checks called so, as tools or 'schemas/*-enum-*'"
    )
    parser.add_argument(
        "--concurrency",
        type=_count,
        default=8,
        metavar="N",
        help="checks or samples at once (%(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help=f"seconds for one check ({CHECK_S:g}) or one try of a sample ({SAMPLE_S:g})",
    )
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="requests with tools, JSON lines"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="the --output of another run, to compare with",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="append results here; what it has is not asked again",
    )
    parser.add_argument(
        "--extra-body", type=_members, metavar="JSON", help="members for every sample's request"
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    _check_flags(args)
    try:
        import_module("moonlet.gateway.fidelity.judge")
    except ImportError as error:
        raise UsageError(
            f"moonlet verify needs {error.name}, which judges arguments: pip install 'moonlet[verify]'"
        ) from error
    try:
        return asyncio.run((_verify if args.samples is None else _replay)(args))
    except KeyboardInterrupt:
        if args.output is not None:
            print("stopped; the same command goes on from there", file=sys.stderr)
        raise


async def _verify(args: Namespace) -> int:
    from moonlet.gateway.fidelity.client import open_client, open_http
    from moonlet.gateway.fidelity.discovery import discover
    from moonlet.gateway.fidelity.suite import run_suite, select

    checks = select(args.profile, args.only)
    key, begun = _key(args), time.monotonic()
    async with open_http() as http:
        endpoint = await discover(open_client(http, args.url, key), args.model, args.profile)
        with progress_bar(f"checking {endpoint.model}") as show:
            results = await run_suite(
                endpoint,
                checks,
                concurrency=args.concurrency,
                timeout_s=args.timeout or CHECK_S,
                on_done=show,
            )
    document = {
        "url": endpoint.client.base,
        "model": endpoint.model,
        "profile": args.profile,
        "counts": counts(results),
        "seconds": time.monotonic() - begun,
        "checks": [asdict(result) for result in results],
    }
    if args.json:
        print_json(_without(key, document))
    else:
        print_results(_without(key, document))
    return 1 if document["counts"]["failed"] else 0


async def _replay(args: Namespace) -> int:
    from moonlet.gateway.fidelity.client import open_client, open_http
    from moonlet.gateway.fidelity.discovery import find_model
    from moonlet.gateway.fidelity.records import RecordFile, read_records
    from moonlet.gateway.fidelity.replay import replay
    from moonlet.gateway.fidelity.samples import read_samples

    reference = None if args.reference is None else read_records(args.reference)
    extra = args.extra_body or {}
    total = sum(1 for _ in read_samples(args.samples, "", extra))  # and every line is looked at
    if not total:
        raise UsageError(f"{args.samples} holds no request")
    key, done = _key(args), 0
    async with open_http() as http:
        client = open_client(http, args.url, key)
        model, _ = await find_model(client, args.model)
        records = RecordFile(args.output)
        try:
            with progress_bar(f"asking {model}") as show:

                def on_done() -> None:
                    nonlocal done
                    done += 1
                    show(done, total)

                found = await replay(
                    client,
                    read_samples(args.samples, model, extra),
                    records,
                    concurrency=args.concurrency,
                    timeout_s=args.timeout or SAMPLE_S,
                    on_done=on_done,
                )
        finally:
            records.close()
    document = {"url": client.base, "model": model, **scores(found, reference)}
    if args.json:
        print_json(_without(key, document))
    else:
        print_scores(_without(key, document))
    return 1 if document["unanswered"] else 0


def scores(found: "Sequence[Record]", reference: "Sequence[Record] | None") -> dict[str, Any]:
    """The figures of a run as JSON; shares are between 0 and 1."""
    from moonlet.gateway.fidelity.scores import finish_reasons, score_schemas, score_triggers

    schemas = score_schemas(found)
    document: dict[str, Any] = {
        "samples": len(found),
        "unanswered": sum(record.error is not None for record in found),
        "errors": sorted({record.error for record in found if record.error is not None})[:20],
        "finish_reasons": finish_reasons(found),
        "schema_accuracy": schemas.accuracy,
        "schemas": asdict(schemas),
    }
    if reference is not None:
        triggers = score_triggers(found, reference)
        document |= {"tool_call_f1": triggers.f1, "triggers": asdict(triggers)}
    return document


def counts(results: "Sequence[Result]") -> dict[str, int]:
    outcomes = [result.outcome for result in results]
    return {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}


def _check_flags(args: Namespace) -> None:
    if args.samples is None:
        for name in OF_SAMPLES:
            if getattr(args, name) is not None:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} belongs to --samples, and there are none")
    elif args.only is not None:
        raise UsageError("--only chooses checks, and with --samples none are run")
    elif args.output is not None and args.output in (args.samples, args.reference):
        raise UsageError(f"{args.output} is read already; write --output to another file")


def _key(args: Namespace) -> str | None:
    return args.api_key or os.environ.get(KEY_VARIABLE, "").strip() or None


def _without(key: str | None, value: Any) -> Any:
    """`value` without the key, which an endpoint may repeat in its errors."""
    if isinstance(value, dict):
        return {name: _without(key, part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without(key, part) for part in value]
    return value.replace(key, "***") if key and isinstance(value, str) else value


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_CONCURRENCY:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is no whole number from 1 to {MAX_CONCURRENCY}")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value <= 7 * 86400:
        return value
    raise ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def _members(text: str) -> dict[str, Any]:
    from moonlet.gateway.fidelity.client import parse_json

    try:
        value = parse_json(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text[:80]!r} is no JSON: {error}") from None
    if isinstance(value, dict):
        return value
    raise ArgumentTypeError(f"{text[:80]!r} is no JSON object")
