import signal

import pytest

from granvit.train import loop
from granvit.train.signals import StopSignals


def test_an_echo_of_the_signal_is_the_same_wish_and_a_later_one_acts(monkeypatch, request):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    # A shell's background jobs ignore this signal, and hand that on to what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # would end the process
        now[0] += 3
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the later signal did nothing")
    assert stop.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
