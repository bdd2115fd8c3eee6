"""What a person sees while a run goes on: one live page in a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import atexit
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from actors.console_page import RunState, SamplerState, plain_line, render_page
from larpo.config import Telemetry as TelemetryConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Console", "LiveConsole", "OffConsole", "PlainConsole", "RunState", "SamplerState", "make_console"]


class Console(Protocol):
    """Shows states and lines; `close` may be called twice and leaves the terminal as it was."""

    def update(self, state: RunState) -> None: ...

    def say(self, line: str) -> None: ...

    def close(self) -> None: ...


class OffConsole:
    """Shows nothing."""

    def update(self, state: RunState) -> None:
        """Nothing is shown."""

    def say(self, line: str) -> None:
        """Nothing is said."""

    def close(self) -> None:
        """Nothing is open."""


class PlainConsole:
    """One line every `every_s` seconds and at each change of phase or iteration."""

    def __init__(self, stream: TextIO, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._said_at = -math.inf
        self._last: RunState | None = None
        self._said: RunState | None = None

    def update(self, state: RunState) -> None:
        self._last = state
        said = self._said
        changed = said is None or (said.phase, said.iteration) != (state.phase, state.iteration)
        if changed or self._clock() - self._said_at >= self._every_s:
            self._said, self._said_at = state, self._clock()
            self.say(plain_line(state))

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """The last state is said if it was not yet."""
        if self._last is not None and self._last is not self._said:
            self._said = self._last
            self.say(plain_line(self._last))


class LiveConsole:
    """One page that is redrawn in place; lines said, and the prints of other code, scroll above it.

    Closing, or the end of the process, restores the terminal. The cursor is never hidden, so that a killed
    run leaves a usable terminal too.
    """

    def __init__(self, stream: TextIO, refresh_s: float) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._state: RunState | None = None
        self._updated_at = time.monotonic()
        self._console = RichConsole(file=stream, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=1 / refresh_s,
            vertical_overflow="ellipsis",
        )
        self._live.start()
        self._console.show_cursor(True)
        atexit.register(self.close)

    def update(self, state: RunState) -> None:
        self._state, self._updated_at = state, time.monotonic()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._live.stop()

    def _render(self) -> RenderableType:
        if self._state is None:
            return "starting"
        return render_page(self._state, time.monotonic() - self._updated_at)


def make_console(config: TelemetryConfig, stream: TextIO | None = None) -> Console:
    """The console that `telemetry.console` names; `auto` is live in a terminal and plain elsewhere."""
    stream = sys.stdout if stream is None else stream
    kind = config.console
    if kind == "auto":
        kind = "live" if stream.isatty() else "plain"
    if kind == "off":
        return OffConsole()
    if kind == "live":
        return LiveConsole(stream, config.refresh_s)
    return PlainConsole(stream, config.plain_every_s)
