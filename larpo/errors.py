"""One error hierarchy: every message names the value, the limit and the next step."""


class LarpoError(Exception):
    """Base of every error that larpo raises on purpose."""


class ConfigError(LarpoError):
    """A recipe or an override that cannot be run as written. Ends a command with exit code 2."""


class DataError(LarpoError):
    """Input files, datasets, models or run folders that cannot be used. Ends a command with exit code 2."""


class HubUnreachable(DataError):
    """A model or dataset of the hub that cannot be asked for from here. `--dry-run` goes on without it."""


class RewardError(LarpoError):
    """A reward model that cannot rank any more."""


class EndpointError(RewardError):
    """A reward server that has no usable answer, however often it was asked."""


class SamplerError(LarpoError):
    """Samplers that cannot sample any more."""


class EvaluationError(LarpoError):
    """A model whose scores cannot be computed."""


class TrainingError(LarpoError):
    """A training step that cannot go on."""


class CheckpointError(LarpoError):
    """A checkpoint that cannot be written or read back."""


class StorageError(LarpoError):
    """Storage behind a URI that cannot be read or written, or a disk that is full."""


class PhaseTimeout(LarpoError):
    """A phase that took longer than its limit."""


class NotPlaced(PhaseTimeout):
    """An actor that no node had room for within its limit."""
