"""Runs `moevision ARGUMENTS` with a task that needs no weights; a child process for the tests to kill."""

import os
import signal
import sys
import time
import types
from dataclasses import replace

from moevision.engine.task import TaskResult


def restoration_task(**_):
    seconds = float(os.environ.get("FAKE_SECONDS", "0"))

    def task(pictures):
        time.sleep(seconds)  # stands for the model's work
        return TaskResult(replace(pictures[0], pixels_HWC=255 - pictures[0].pixels_HWC), {})

    return task


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell would have us ignore it
    api = types.ModuleType("moevision.api")
    api.restoration_task = restoration_task
    api.list_models = list
    sys.modules["moevision.api"] = api
    from moevision.cli.main import main

    main()
