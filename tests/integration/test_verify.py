"""Our own server under `moonlet verify`: no failure, on random weights and on the embedded model."""

import asyncio
from pathlib import Path

import pytest

from moonlet.chat.provider import Provider
from moonlet.cli.models import load_provider
from moonlet.engine import load
from moonlet.gateway.fidelity.check import Profile
from moonlet.gateway.fidelity.client import open_client, open_http
from moonlet.gateway.fidelity.discovery import discover
from moonlet.gateway.fidelity.schemas import MFJS
from moonlet.gateway.fidelity.suite import run_suite, select
from moonlet.server import create_app
from moonlet.server.profiles import PROFILES
from tests.server.running import serving
from tests.tiny_checkpoint import write_tiny_checkpoint

KEY = "sk-here"
# May be of any length, so that not every model ends them in time; blind: both models see.
MAY_BE_SKIPPED = {
    f"schemas/{kind}-{name}"
    for kind in ("tool", "answer")
    for name in (case.name for case in MFJS if case.open_ended)
} | {"images/blind"}


def provider_of(model: str, folder: Path) -> Provider:
    return load_provider(None) if model == "nano" else load(write_tiny_checkpoint(folder), "tiny")


@pytest.mark.parametrize("profile", ["open", "kimi"])
@pytest.mark.parametrize("model", ["tiny", pytest.param("nano", marks=pytest.mark.slow)])
def test_no_check_fails(model: str, profile: Profile, tmp_path: Path) -> None:
    async def run(url: str) -> None:
        async with open_http() as http:
            endpoint = await discover(open_client(http, url, KEY), None, profile)
            checks = select(profile)
            results = await run_suite(endpoint, checks, concurrency=16, timeout_s=120)
        assert {one.id: one.detail for one in results if one.outcome == "failed"} == {}
        assert {one.id for one in results if one.outcome == "skipped"} <= MAY_BE_SKIPPED
        assert len(results) > len(checks)  # and the rules

    provider = provider_of(model, tmp_path / "model")
    try:
        with serving(create_app(provider, profile=PROFILES[profile], api_keys=[KEY])) as server:
            asyncio.run(run(server.url))
    finally:
        provider.close()
