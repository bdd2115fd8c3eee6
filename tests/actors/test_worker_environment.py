"""What workers find in their environment."""

import json

from actors.placement import ENVIRONMENT, worker_environment


def test_workers_hear_that_the_hub_is_off():
    assert worker_environment({"HOME": "/root"}) == ENVIRONMENT
    assert worker_environment({"HF_HUB_OFFLINE": "1"}) == ENVIRONMENT | {"HF_HUB_OFFLINE": "1"}


def test_what_a_submitted_job_has_set_stays_as_it_is():
    """Ray refuses a run that sets a variable of its job once more."""
    job = {"runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "0", "TOKENIZERS_PARALLELISM": "true"}}}
    own = {"HF_HUB_OFFLINE": "1", "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    assert worker_environment(own) == {n: v for n, v in ENVIRONMENT.items() if n != "TOKENIZERS_PARALLELISM"}
    for empty in ({}, {"runtime_env": None}, {"runtime_env": {}}):
        own = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(empty)}
        assert worker_environment(own) == ENVIRONMENT
