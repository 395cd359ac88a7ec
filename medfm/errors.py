"""What medfm raises for a person's mistake: one clear sentence that names the file or key and what to do."""

from __future__ import annotations


class MedfmError(Exception):
    """Base of all errors a user can cause. The command line prints its text without a traceback and exits with 2."""


class ConfigError(MedfmError):
    """A recipe, an override or an argument is wrong."""


class DataError(MedfmError):
    """An image, a report, a label or a manifest cannot be used as it is. Never holds patient data."""


class WeightsError(MedfmError):
    """A weight file is missing, broken, or does not fit the model."""


class TrainingError(MedfmError):
    """Training cannot go on, for example because a loss term is not finite."""
