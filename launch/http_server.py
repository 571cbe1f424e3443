"""Runs an ASGI application in this thread until it is told to end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


def run_until_told(
    app: Any,
    *,
    host: str,
    port: int,
    grace_s: int,
    announce: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, and say then that it has ended.

    Args:
        port: 0 takes a free one.
        grace_s: seconds that requests under way have once it was told to end.
        announce: called with the address, "http://127.0.0.1:8400", once it takes connections.
        say: shows a line to the user.
    """
    import uvicorn

    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=grace_s
    )
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    socket.listen(config.backlog)  # Whoever reads the address may connect at once.
    address = socket.getsockname()
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    announce(f"http://{name}:{address[1]}")
    # uvicorn ends by the signal, and then sends it to us once more; as an interrupt, whichever it
    # was, so that the caller clears away what it has to.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run(sockets=[socket])
    except KeyboardInterrupt:
        say("ended")
