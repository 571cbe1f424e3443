"""The LoRA adapter that a server answers with, exchanged while it runs.

A server takes part with `engine_args: {enable_lora: true}` and VLLM_ALLOW_RUNTIME_LORA_UPDATING. An
adapter is never replaced under its name: vLLM keeps what it has computed of a prompt by the
adapter's name, and would go on with the keys and values of the one before.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from rlvid.rewards.base import Endpoint, RewardError


async def serve_adapter(
    http: httpx.AsyncClient, endpoint: Endpoint, *, name: str, folder: Path
) -> bool:
    """Have a server hold this adapter and no other; return whether it had to be loaded.

    Args:
        name: requests have it as their `model`; another one for other weights.
        folder: as peft writes it, where the server can read it.

    Raises:
        httpx.HTTPError: the server is not there, or not well.
        RewardError: it refuses the adapter, with its own words.
    """
    held = await _held(http, endpoint)
    is_new = held.get(name) != str(folder)
    if name in held and is_new:
        raise RewardError(
            f"server {endpoint.url}: adapter {name!r} is loaded from {held[name]!r}: expected "
            f"{str(folder)!r}. Somebody else loads adapters into it."
        )
    if is_new:
        body = {"lora_name": name, "lora_path": str(folder)}
        await _post(http, endpoint, "/v1/load_lora_adapter", body)
    for other in held:
        if other != name:
            await _post(http, endpoint, "/v1/unload_lora_adapter", {"lora_name": other})
    return is_new


async def _held(http: httpx.AsyncClient, endpoint: Endpoint) -> dict[str, str]:
    """Return the adapters of a server: name to folder."""
    answer = await http.get(f"{endpoint.url}/v1/models", headers=_headers(endpoint))
    answer.raise_for_status()
    found = answer.json()["data"]
    return {str(one["id"]): str(one["root"]) for one in found if one.get("parent")}


async def _post(
    http: httpx.AsyncClient, endpoint: Endpoint, path: str, body: dict[str, str]
) -> None:
    answer = await http.post(f"{endpoint.url}{path}", json=body, headers=_headers(endpoint))
    if answer.status_code >= 500:
        answer.raise_for_status()
    if answer.status_code != 200:
        raise RewardError(
            f"server {endpoint.url}: {path} of {body['lora_name']!r} was refused, "
            f"{answer.status_code}: {answer.text[:500]}"
        )


def _headers(endpoint: Endpoint) -> dict[str, str]:
    return {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
