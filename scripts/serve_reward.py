"""Serve a recipe's reward model over HTTP: `python -m scripts.serve_reward RECIPE [key=value ...]`."""

from __future__ import annotations

import argparse
import asyncio
import hmac
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.reward import Described, RewardActor
from larpo.config import Config, Evaluation
from larpo.config_checks import problem_list
from larpo.errors import ConfigError, DataError, LarpoError
from larpo.http_reward import TOKEN, decode_requests
from larpo.masking import redact
from larpo.recipe import read_config
from larpo.reward_checks import reward_problems
from larpo.rewards import check_reward
from larpo.safety_checks import code_notes

if TYPE_CHECKING:
    from aiohttp import web

LONGEST_REQUEST = 64 * 2**20  # bytes


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m scripts.serve_reward",
        description="Serve a recipe's reward model to runs with reward.kind=http.",
    )
    result.add_argument(
        "recipe", metavar="RECIPE", help="a bundled recipe's name or a YAML file; its `reward` is served"
    )
    result.add_argument("overrides", nargs="*", metavar="key=value", help="knobs to change")
    result.add_argument("--host", default="127.0.0.1", help="where to listen (loopback)")
    result.add_argument("--port", type=int, default=8100)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    try:
        config = read_config(options.recipe, options.overrides, Config)
        section = config.reward
        if section.kind == "http":
            raise ConfigError("reward.kind = 'http': a server has to score by itself; give a recipe of another kind")
        alone = config.model_copy(update={"evaluation": Evaluation()})  # an evaluation's reranker is not served
        if problems := reward_problems(alone):
            raise ConfigError(problem_list(f"recipe {options.recipe}: its reward cannot be served", problems))
        check_reward(section)
        print(*(f"reward.{note}" for note in code_notes(section)), sep="\n", end="", flush=True)
        actor = RewardActor(section)
        actor.load()
        described = asyncio.run(actor.describe())
    except LarpoError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | DataError) else 1
    from aiohttp import web

    print(f"serving {section.kind} {section.source} on http://{options.host}:{options.port}", flush=True)
    web.run_app(application(actor, described), host=options.host, port=options.port, print=None)
    return 0


def application(actor: RewardActor, described: Described) -> web.Application:
    """The two routes that `larpo.http_reward` describes; with LARPO_REWARD_TOKEN set, only who knows it is answered."""
    from aiohttp import web

    token = os.environ.get(TOKEN)

    @web.middleware
    async def known(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return web.json_response({"error": f"the token is wrong or missing ({TOKEN})"}, status=401)
        return await handler(request)

    async def describe(request: web.Request) -> web.Response:
        return web.json_response({"fingerprint": described.fingerprint, "joint": described.joint})

    async def score(request: web.Request) -> web.Response:
        try:
            asked = decode_requests(await request.json())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        try:
            rewards = await actor.rank(asked)
        except LarpoError as error:
            return web.json_response({"error": str(error)}, status=422)
        except Exception as error:  # whatever a model raises: the client's message should tell it
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=500)
        found = [[{"value": r.value, "failure": r.failure} for r in row] for row in rewards]
        return web.json_response({"fingerprint": described.fingerprint, "rewards": found})

    async def stop(_: web.Application) -> None:
        await asyncio.wait_for(actor.close(), 60)

    served = web.Application(client_max_size=LONGEST_REQUEST, middlewares=[known])
    served.router.add_get("/describe", describe)
    served.router.add_post("/score", score)
    served.on_cleanup.append(stop)
    return served


if __name__ == "__main__":
    sys.exit(main())
