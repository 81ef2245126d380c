import os
import signal
import subprocess
import sys

import pytest

from pid_jax.training.stop_signals import Interrupted, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_only_noted(number, capfd):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.received == number
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing this step" in capfd.readouterr().err


def test_a_second_ctrl_c_ends_the_process_at_once():
    program = (
        "import os, signal\n"
        "from pid_jax.training.stop_signals import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 130
    assert ended.stdout == ""
    assert "stopped at once" in ended.stderr


def test_the_exit_status_is_that_of_a_shell():
    assert Interrupted(signal.SIGTERM, "").exit_status == 143
    assert Interrupted(signal.SIGINT, "").exit_status == 130
