"""One family of exceptions: each names the object, what it requires, what it got, and the remedy."""

from __future__ import annotations

_LONGEST = 4000  # characters: the reasons of all schedules that declined fit


class DopingError(Exception):
    """An error that a user can act on.

    what    the object at fault, by name (a file, an argument, a module's path);
    needs   what it must be;
    got     what it is;
    remedy  what to do about it.
    """

    def __init__(self, what: str, needs: str, got: str, remedy: str) -> None:
        self.what, self.needs, self.got, self.remedy = what, needs, got, remedy
        text = f"{_clip(what)}: needs {_clip(needs)}; got {_clip(got)}. {remedy}"
        # what a file holds may be no text: halves of UTF-16 pairs, which JSON allows, cannot be printed
        super().__init__(text.encode("utf-8", "backslashreplace").decode())


def _clip(text: str) -> str:
    """The text, its middle left out where it is longer than a person reads: a damaged file may name anything."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class InvalidInput(DopingError, ValueError):
    """An argument, array or option that cannot be used as given."""


class UnsupportedModel(DopingError):
    """A model that cannot be imported: `what` names the module and its path."""


class UnfinishedWarning(UserWarning):
    """A model that is compiled before its annealing is over: S is denser than it is to be."""


class CheckpointError(DopingError):
    """A run folder that is missing, damaged or of another format version."""


class RecipeError(DopingError, ValueError):
    """A training recipe with an unknown key or an impossible value."""


class DataError(DopingError):
    """Training or evaluation data that is missing or empty."""


class TargetError(DopingError):
    """A compilation target that is unknown, or that this machine cannot run."""


class ScheduleError(DopingError):
    """No schedule accepts the choice that was forced; `got` lists every reason."""


class RecordError(DopingError, ValueError):
    """A tuning record, or a file of them, that is damaged, of another version, or does not fit."""


class TuningError(DopingError):
    """A tuning job that cannot begin or go on: its log is in the way, or no candidate of a layer runs."""


class BundleError(DopingError):
    """A bundle that is missing, damaged, of another version, or made for another machine."""


class SessionError(DopingError):
    """A session used after it was closed, or with inputs of the wrong shape or dtype."""


class BenchError(DopingError):
    """A benchmark that cannot be trusted: a baseline missing, or outputs that disagree."""
