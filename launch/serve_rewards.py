"""`rlvid serve-rewards`: the reward pool of a recipe as an HTTP service, until told to end."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlvid.config import Recipe
from rlvid.launch.cluster import open_cluster
from rlvid.launch.http_server import run_until_told
from rlvid.rewards.pool import RewardPool
from rlvid.rewards.service.app import ServiceSettings, make_app
from rlvid.rewards.service.jobs import ScoringJobs
from rlvid.rewards.service.protocol import ScorerDescription

logger = logging.getLogger(__name__)

GRACE_S = 20
"""For requests in flight when the service is told to end."""


def serve_rewards(
    recipe: Recipe,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    settings: ServiceSettings,
    say: Callable[[str], None],
) -> None:
    """Start the pool and serve it until SIGTERM or SIGINT.

    Args:
        token_file: with the bearer token; one is made for the time of the service when None.
        say: shows a line to the user.

    Raises:
        ValueError: a host others can reach without a token file, or a token file others can read.
        RewardError: the pool does not come up.
    """
    if token_file is None and not is_loopback(host):
        raise ValueError(
            f"serve-rewards: --host {host} can be reached by others: expected a --token-file of "
            "your own. Make one: (umask 077; openssl rand -hex 32 > token)"
        )
    with token_of(token_file) as (token, path), open_cluster(rewards_only(recipe)):
        pool = RewardPool(recipe.rewards, None, recipe.cluster)
        try:
            pool.start()
            pool.health_check(recipe.cluster.start_deadline_s)
            labels = [scorer.label for scorer in recipe.rewards.scorers]
            jobs = ScoringJobs(
                pool,
                labels,
                max_clips=settings.max_clips,
                kept_answers=settings.kept_answers,
                media_folder=settings.media_folder,
            )
            app = make_app(jobs, describe(recipe, pool), token=token, settings=settings, pool=pool)
            _run(app, host=host, port=port, say=say, token_path=path)
        finally:
            pool.shutdown()


def _run(
    app: object, *, host: str, port: int, say: Callable[[str], None], token_path: Path
) -> None:
    """Run the server in this thread; the pool and the token file are cleared away behind it."""

    def announce(address: str) -> None:
        say(f"token file: {token_path}")
        say(f"serving rewards at {address} (page: /docs, health: /healthz)")

    run_until_told(app, host=host, port=port, grace_s=GRACE_S, announce=announce, say=say)


def describe(recipe: Recipe, pool: RewardPool) -> list[ScorerDescription]:
    """Return what the service says of the pool's scorers."""
    infos, versions = pool.scorer_infos, pool.scorer_versions
    return [
        ScorerDescription(
            name=scorer.label,
            weight=scorer.weight,
            is_group_wise=infos[scorer.label].is_groupwise,
            version=versions[scorer.label],
        )
        for scorer in recipe.rewards.scorers
    ]


def rewards_only(recipe: Recipe) -> Recipe:
    """Return the recipe without the roles and phases that the service does not start."""
    return recipe.model_copy(
        update={
            "phases": ("grpo",),
            "rollout": recipe.rollout.model_copy(update={"num_actors": 0}),
            "learner": recipe.learner.model_copy(update={"num_ranks": 0}),
            "grpo": recipe.grpo.model_copy(update={"evaluate_every": 0}),
        }
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host; a name other than localhost may not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def token_of(token_file: Path | None) -> Iterator[tuple[str, Path]]:
    """Give the token and its file: the user's, or one made for the length of the block."""
    if token_file is not None:
        yield read_token(token_file), token_file
        return
    descriptor, name = tempfile.mkstemp(prefix="rlvid-rewards-", suffix=".token")  # mode 0600
    try:
        token = secrets.token_hex(32)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
        yield token, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def read_token(path: Path) -> str:
    """Return the token in the file; ValueError when others can read it or it is too short."""
    try:
        mode = path.stat().st_mode
        token = path.read_text().strip()
    except OSError as error:
        raise ValueError(f"serve-rewards: --token-file: cannot read it: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(
            f"serve-rewards: --token-file {path} can be read by others (mode "
            f"{stat.S_IMODE(mode):o}): expected 600. Run: chmod 600 {path}"
        )
    if len(token) < 16:
        raise ValueError(
            f"serve-rewards: --token-file {path}: a token of {len(token)} characters: expected "
            "16 or more"
        )
    return token
