"""The end of a server, told to the answers that still run: from then on none goes on."""

import asyncio

from moonlet.server.errors import ApiError

RETRY_AFTER_S = 5


class Closing:
    """Whether the server ends; every answer waits for that beside its work."""

    def __init__(self) -> None:
        self.begun = False
        self._waiting: set[asyncio.Future[None]] = set()

    def begin(self) -> None:
        """Lets everybody know. From any thread, for the loop of the answers is not the main thread's."""
        self.begun = True
        for waiting in list(self._waiting):
            waiting.get_loop().call_soon_threadsafe(_wake, waiting)

    async def wait(self) -> None:
        """Returns when the server ends."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            if not self.begun:  # asked after joining, so that no `begin` is missed
                await waiting
        finally:
            self._waiting.discard(waiting)

    def refusal(self) -> ApiError:
        """What an answer ends with that the server has no time for any more."""
        return ApiError(
            "the server shuts down; ask again when it is back",
            status=503,
            kind="server_unavailable",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
