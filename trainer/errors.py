"""Why a job ends for good. `code` is that of service.events.Failed; the message carries the values and the remedy.

TrainerError
    BadSpec          the specification asks for something that cannot be built
    BadData          the images cannot be used
    NonFiniteLoss    the loss became NaN or infinite
    DiskError        a checkpoint or the export cannot be written
    StorageError     what the images lie on is away
    BadExport        an exported folder is not what timm should load
"""

from __future__ import annotations

from typing import ClassVar


class TrainerError(Exception):
    """What a person can act upon. All but DiskError and StorageError would end alike if tried again."""

    code: ClassVar[str]


class BadSpec(TrainerError):
    """The specification asks for something that cannot be built."""

    code = "bad_spec"


class BadData(TrainerError):
    """The images cannot be used."""

    code = "bad_data"


class NonFiniteLoss(TrainerError):
    """The loss became NaN or infinite."""

    code = "non_finite_loss"


class DiskError(TrainerError):
    """A checkpoint or the export cannot be written."""

    code = "disk"


class StorageError(TrainerError):
    """What the images lie on is away: none of them is at fault, and a later attempt may succeed."""

    code = "storage"


class BadExport(TrainerError):
    """An exported folder is not what timm should load."""

    code = "internal"
