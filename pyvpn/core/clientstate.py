"""Where a client is and what moves it: all transitions in one table."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a client is; :data:`TRANSITIONS` says how it gets there."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    CONFIGURING = "configuring"
    UP = "up"
    REFUSED = "refused"


class Input(Enum):
    """What moves a client from one state to another."""

    START = "start"
    ANSWERED = "answered"
    CONFIGURED = "configured"
    LOST = "lost"
    REFUSED = "refused"
    STOP = "stop"


#: The whole machine: what is not listed cannot happen.
TRANSITIONS: dict[tuple[State, Input], State] = {
    (State.STOPPED, Input.START): State.CONNECTING,
    (State.CONNECTING, Input.ANSWERED): State.CONFIGURING,
    (State.CONNECTING, Input.STOP): State.STOPPED,
    (State.CONFIGURING, Input.ANSWERED): State.CONFIGURING,
    (State.CONFIGURING, Input.CONFIGURED): State.UP,
    (State.CONFIGURING, Input.LOST): State.CONNECTING,
    (State.CONFIGURING, Input.REFUSED): State.REFUSED,
    (State.CONFIGURING, Input.STOP): State.STOPPED,
    (State.UP, Input.ANSWERED): State.UP,
    (State.UP, Input.CONFIGURED): State.UP,
    (State.UP, Input.LOST): State.CONNECTING,
    (State.UP, Input.REFUSED): State.REFUSED,
    (State.UP, Input.STOP): State.STOPPED,
    (State.REFUSED, Input.START): State.CONNECTING,
    (State.REFUSED, Input.STOP): State.STOPPED,
}
