"""The OpenAI-compatible HTTP API in front of a provider. Needs no torch and no model: see `create_app`."""

from moonlet.server.app import create_app

__all__ = ["create_app"]
