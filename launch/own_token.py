"""A token for the Ray that a command starts for itself: its ports are open to the whole network."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlvid.config import Recipe

logger = logging.getLogger(__name__)


def ask_for_token(recipe: Recipe) -> None:
    """Have Ray serve only who has a token made here, unless the user or an address decides.

    Ray reads the setting while it is imported, so a command calls this before anything imports it;
    its processes inherit the token. `RAY_AUTH_MODE=disabled` in the environment turns it off.
    """
    if recipe.cluster.address is not None or "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        logger.warning("own_token: Ray was imported before the command, so it asks for no token")
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
