"""The work of the training benchmarks: ranked lists of random tokens, all of one shape."""

from __future__ import annotations

import random

from larpo.types import Candidate, CandidateList, Message, Prompt, VersionSpan, list_id

PROMPT_TOKENS, RESPONSE_TOKENS = 160, 128


def random_list(
    number: int,
    candidates: int,
    vocabulary: int,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    response_tokens: int = RESPONSE_TOKENS,
) -> CandidateList:
    """Best first, all rewards different; the same for the same number."""
    draw = random.Random(number)
    prompt = Prompt(f"p{number}", (Message("user", "random tokens"),))
    key = list_id(0, prompt.id)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(count))

    ranked = tuple(
        Candidate(
            id=f"{key}/{rank}",
            text="",
            token_ids=tokens(response_tokens),
            log_probs=(-1.0,) * response_tokens,
            finish_reason="length",
            temperature=1.0,
            origin="sampled",
            iteration=0,
            versions=(VersionSpan(0, response_tokens, 0),),
            reward=float(candidates - rank),
            reward_fingerprint="random",
        )
        for rank in range(candidates)
    )
    return CandidateList(key, 0, prompt, tokens(prompt_tokens), ranked)
