"""What networks are trained on: toy LQ control, the teacher ladder, and real images."""

from __future__ import annotations

from pathlib import Path

from jcredit.config import Config
from jcredit.tasks.base import Data, Task
from jcredit.tasks.images import image_task
from jcredit.tasks.lq import lq_task
from jcredit.tasks.teacher import teacher_task

__all__ = ["Data", "Task", "make_task"]


def make_task(config: Config, data_dir: str | Path | None = None) -> Task:
    """Returns the task ``config`` names.

    Args:
      config: the run; its task, sizes and augmentation fields are read.
      data_dir: folder with prepared image data (default: ``TFDS_DATA_DIR``, else tfds downloads).

    Raises:
      DataError: image data that can neither be found nor downloaded.
    """
    if config.task == "lq":
        return lq_task(config)
    if config.task == "teacher":
        return teacher_task(config)
    return image_task(config, data_dir)
