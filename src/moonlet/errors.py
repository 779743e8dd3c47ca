"""Every exception that moonlet raises on purpose, in one tree.

    MoonletError
      ConfigError          a config.json or preset that does not describe a model of this family
      NotSupportedError    something real and well formed that moonlet does not do; names it
      CheckpointError      weights or an index that are missing, truncated, misshaped or hostile
      TokenizerError       a vocabulary file that cannot be used
      PromptError          a conversation that cannot be rendered; `param` says where
      MediaError           an image or video that cannot be used; `param` says where
      EngineError          generation that cannot start or go on
        UpstreamError      the same, where somebody else's endpoint was to answer
      QuotaError           an API key that has used up its budget
      TrainingError        a training run that cannot go on

Others stand beside their only user: `ApiError` in `server/errors.py`, which knows an HTTP status, those of
`gateway/fidelity/errors.py`, which end a check, and `UsageError` in `cli/console.py`. Each also inherits the standard
exception that it refines, so callers may catch either. A message is one sentence that says what is wrong and
what to do.
"""


class MoonletError(Exception):
    """Root of the tree: catch this to catch everything that moonlet raises on purpose."""


class ConfigError(MoonletError, ValueError):
    """A configuration that does not describe a model of this family."""


class NotSupportedError(MoonletError, ValueError):
    """Something well formed that moonlet does not do."""


class CheckpointError(MoonletError, ValueError):
    """Weights that cannot be used as they are."""


class TokenizerError(MoonletError, ValueError):
    """A vocabulary that cannot be used."""


class _RequestError(MoonletError, ValueError):
    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class PromptError(_RequestError):
    """A conversation that cannot be rendered. `param` names the offending field of the request."""


class MediaError(_RequestError):
    """An image or video that cannot be used. `param` names the offending field of the request."""


class EngineError(MoonletError, RuntimeError):
    """Generation that cannot start or go on."""


class UpstreamError(EngineError):
    """Somebody else's endpoint did not answer as it should.

    status: the HTTP status that tells a client of it. retry: asked again the endpoint may answer, after
    `retry_after_s` seconds if it said so.
    """

    def __init__(
        self,
        message: str,
        status: int = 502,
        *,
        retry: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry = retry
        self.retry_after_s = retry_after_s


class QuotaError(MoonletError):
    """An API key that has used up its budget."""


class TrainingError(MoonletError, RuntimeError):
    """A training run that cannot go on."""
