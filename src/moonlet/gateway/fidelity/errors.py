"""How a check ends when it does not pass, and what keeps all of them from being run."""

from moonlet.errors import MoonletError


class VerifyError(MoonletError, ValueError):
    """Nothing can be verified: the URL, the key, the model or a file cannot be used."""


class Failed(MoonletError):
    """The endpoint did what it must not do; the message is the one sentence that says so."""


class Unreachable(Failed):
    """No HTTP answer came at all."""


class Refusal(Failed):
    """A request that had to be served was not; `status` says how it was answered."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Skipped(Exception):
    """A check that cannot be decided at this endpoint; the message says why."""
