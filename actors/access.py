"""Whether the hub's models and data that a recipe names can be had: asked for by their head, within a time limit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from actors.checks import Line, fail, ok, warn
from larpo.config import Config
from larpo.policy import BUNDLED_POLICIES
from larpo.preference_checks import CONSTRUCTED
from larpo.prompt_sets import BUNDLED_SETS
from larpo.reward_model import BUNDLED_BASES
from larpo.reward_training_config import RewardTraining

LIMIT_S = 10.0
BUNDLED_MODELS = (*BUNDLED_POLICIES, *BUNDLED_BASES)
BUNDLED_DATA = (*BUNDLED_SETS, CONSTRUCTED)
MODEL_KINDS = ("sequence_classification", "pairwise", "vllm")  # of rewards


def hub_items(config: Config | RewardTraining) -> list[tuple[str, str, str]]:
    """(knob, kind, id) of each model and dataset that comes from the hub; what is bundled or a path is none."""
    if isinstance(config, RewardTraining):
        models, data = [("base.model", str(config.base.model))], ("preferences.source", config.preferences.source)
    elif config.preferences.source is not None:
        models, data = [("policy.model", config.policy.model)], ("preferences.source", config.preferences.source)
    else:
        parts = [part for part in config.reward.sections() if part.kind in MODEL_KINDS]
        rewards = [(f"reward ({part.kind})", part.source) for part in parts]
        models, data = [("policy.model", config.policy.model), *rewards], ("prompts.source", config.prompts.source)
    found = [(knob, "model", name) for knob, name in models if name not in BUNDLED_MODELS and is_hub_id(name)]
    knob, source = data
    if source is not None and source not in BUNDLED_DATA and is_hub_id(source):
        found.append((knob, "dataset", source))
    return found


def is_hub_id(name: str) -> bool:
    """Whether a name is looked up on the hub: no folder or file of that name is here, and it looks like no path.

    >>> is_hub_id("meta-llama/Llama-3.2-1B"), is_hub_id("./model"), is_hub_id("data/pairs.jsonl")
    (True, False, False)
    """
    is_path = name.startswith(("/", ".", "~")) or name.endswith((".jsonl", ".parquet")) or "://" in name
    return not is_path and not Path(name).expanduser().exists()


def check_access(items: Sequence[tuple[str, str, str]], *, limit_s: float = LIMIT_S) -> list[Line]:
    """One line an item, and one on the token."""
    from huggingface_hub import get_token

    if not items:
        return [ok("hub", "nothing of this recipe comes from the hub")]
    has_token = bool(get_token())
    said = "a token is there" if has_token else "no token (HF_TOKEN): enough for public models and data"
    return [ok("hub", said), *(_asked(*item, has_token=has_token, limit_s=limit_s) for item in items)]


def _asked(knob: str, kind: str, name: str, *, has_token: bool, limit_s: float) -> Line:
    """What the hub, or without it the cache, says of one model or dataset."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.utils import build_hf_headers, get_session

    where, cached = f"{knob} = {name}", _is_cached(kind, name)
    if HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") in ("1", "true"):
        if cached:
            return ok("hub", f"{where}: offline (HF_HUB_OFFLINE), and in the cache of this node")
        return fail("hub", f"{where}: offline (HF_HUB_OFFLINE), and not in the cache", "Unset it, or give a folder")
    path = "datasets/" if kind == "dataset" else ""
    file = "config.json" if kind == "model" else "README.md"
    try:
        url = f"{ENDPOINT}/{path}{name}/resolve/main/{file}"
        status = get_session().head(url, headers=build_hf_headers(), timeout=limit_s).status_code
    except Exception as error:  # the client library's own errors, by its version
        told = f"{where}: {ENDPOINT} cannot be reached ({type(error).__name__})"
        if cached:
            return warn("hub", f"{told}, but it is in the cache of this node", "Set HF_HUB_OFFLINE=1 on such nodes")
        return fail("hub", told, "Give the nodes a way there (HF_ENDPOINT, a proxy), or a local folder")
    return judged(where, status, has_token=has_token)


def judged(where: str, status: int, *, has_token: bool) -> Line:
    """What a status of the hub means for one model or dataset."""
    if status in (401, 403):
        advice = "Ask for access on its page, with the account of this token" if has_token else "Set HF_TOKEN"
        return fail("hub", f"{where}: gated, private or unknown, and not readable from here ({status})", advice)
    if status == 404 and not where.startswith(("prompts", "preferences")):
        return fail("hub", f"{where}: there is none, or it has no config.json", "Correct the id")
    if status >= 500 or status == 429:
        return warn("hub", f"{where}: the hub answered {status}", "Try again later")
    return ok("hub", f"{where}: readable")


def _is_cached(kind: str, name: str) -> bool:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, repo_type=kind, local_files_only=True, allow_patterns=["config.json", "*.parquet"])
    except Exception:  # not there, whatever the library's version calls it
        return False
    return True
