"""Ctrl-C while local workers start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from typing import Any

import pytest

from medfm.data.workers import worker_context


def test_worker_context__ctrl_c_while_the_server_starts_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    start = forkserver.ensure_running

    def pressed() -> None:
        signal.raise_signal(signal.SIGINT)
        start()

    with monkeypatch.context() as patch:
        patch.setattr(forkserver, "ensure_running", pressed)
        with pytest.raises(KeyboardInterrupt):
            worker_context(print, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


SCRIPT = """
from medfm.data.workers import worker_context
from tests_of_workers import number
context = worker_context(number, [])
queue = context.SimpleQueue()
process = context.Process(target=number, args=(queue,))
process.start()
process.join()
print(queue.get(), process.exitcode)
"""


def test_worker_context__ctrl_c_does_not_reach_workers(tmp_path: Any) -> None:
    """In a process of its own, where the server starts anew."""
    (tmp_path / "tests_of_workers.py").write_text(
        "import signal\ndef number(queue):\n    signal.raise_signal(signal.SIGINT)\n    queue.put(7)\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7 0\n", "")
