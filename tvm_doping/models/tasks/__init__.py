"""What models are trained for: one file a task, and one row here."""

from __future__ import annotations

from typing import Any, Literal

from tvm_doping.models.tasks.forecast import Forecasting
from tvm_doping.models.tasks.intent import IntentDetection
from tvm_doping.models.tasks.language_model import LanguageModelling
from tvm_doping.models.tasks.protocol import Task
from tvm_doping.models.tasks.translation import Translation

# One row makes a task known to recipes, to the training loop and to `load_model`.
TaskName = Literal["language_model", "intent", "translation", "forecast"]
TASKS: dict[str, Task[Any]] = {
    "language_model": LanguageModelling(),
    "intent": IntentDetection(),
    "translation": Translation(),
    "forecast": Forecasting(),
}

__all__ = ["TASKS", "Task", "TaskName"]
