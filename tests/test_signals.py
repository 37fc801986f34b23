"""What is kept waiting, and what is not."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from ripieno import signals


class Arrived(Exception):
    """A signal took its way."""


@pytest.fixture(autouse=True)
def raising() -> Iterator[None]:
    def arrive(*_: object) -> None:
        raise Arrived

    before = {number: signal.signal(number, arrive) for number in signals.WAITING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def done_before_it_arrives(*sent: signal.Signals) -> bool:
    """Send signals in the block; return whether it came to its end."""
    done = False

    def block() -> None:
        nonlocal done
        with signals.held() as held:
            for number in sent:
                signal.raise_signal(number)
            assert held.arrived == sent[0]
            done = True

    with pytest.raises(Arrived):
        block()
    return done


@pytest.mark.parametrize("number", signals.WAITING)
def test_one_waits(number: signal.Signals) -> None:
    assert done_before_it_arrives(number)


def test_a_second_one_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not done_before_it_arrives(signal.SIGINT, signal.SIGINT)
    assert not done_before_it_arrives(signal.SIGINT, signal.SIGTERM)
    monkeypatch.setattr(signals, "ECHO", 0.0)
    assert not done_before_it_arrives(signal.SIGTERM, signal.SIGTERM)


def test_slurm_sends_two_for_one() -> None:
    assert done_before_it_arrives(signal.SIGTERM, signal.SIGTERM)
