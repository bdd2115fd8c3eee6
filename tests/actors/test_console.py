"""The console: one page that fits, lines that come in time, a terminal that stays sane."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from actors.console import (
    LiveConsole,
    OffConsole,
    PlainConsole,
    RunState,
    SamplerState,
    make_console,
)
from actors.console_page import clock_text, plain_line, render_page
from larpo.config import Telemetry as TelemetryConfig

ROOT = Path(__file__).resolve().parents[2]
STATE = RunState(
    phase="training while sampling",
    iteration=1,
    iterations=3,
    prompts_sampled=128,
    prompts_ranked=96,
    prompts_total=192,
    lists_in_stream=31,
    stream_capacity=256,
    step=14,
    steps_planned=36,
    loss=2.34123,
    mean_reward=0.214,
    tokens_per_second=1812.4,
    samplers=(SamplerState("sampler-0", 3, "sampling"), SamplerState("sampler-1", 2, "updating")),
    seconds_elapsed=252,
    seconds_left=390,
)


def page_text(state: RunState, age_s: float = 0.0) -> list[str]:
    stream = io.StringIO()
    RichConsole(file=stream, width=80, height=24).print(render_page(state, age_s))
    return stream.getvalue().splitlines()


def test_the_page_says_everything_the_issue_asks_for() -> None:
    text = "\n".join(page_text(STATE))
    for said in (
        "iteration 2 of 3",
        "training while sampling",
        "128 of 192",
        "96 of 192",
        "31 of 256",
        "14 of at most 36",
        "loss 2.3412",
        "mean reward 0.214",
        "tokens/s 1,812",
        "sampler-0  v3  sampling",
        "sampler-1  v2  updating",
        "elapsed 04:12",
        "left about 06:30",
    ):
        assert said in text


def test_the_clocks_run_on_between_states() -> None:
    text = "\n".join(page_text(STATE, age_s=400))
    assert "elapsed 10:52" in text
    assert "left about 00:00" in text


def test_the_page_fits_a_small_terminal_whatever_it_shows() -> None:
    samplers = tuple(SamplerState(f"sampler-{i}", i % 2 + 3, "sampling") for i in range(100))
    alarms = tuple(f"alarm {i}: [red]" + "many words\n" * 30 for i in range(50))
    lines = page_text(replace(STATE, samplers=samplers, alarms=alarms, iterations=10**6, phase="p" * 200))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "and 96 more  v3..v4  96 sampling" in text
    assert "alarms (50)" in text
    assert "alarm 49: [red]many words" in text


def test_an_unknown_state_shows_dashes() -> None:
    text = "\n".join(page_text(RunState(phase="starting")))
    assert "loss -" in text
    assert "left about -" in text
    assert plain_line(RunState(phase="starting")) == (
        "[00:00] iteration 1/1 starting: sampled 0/0  ranked 0/0  stream 0/0  step 0/0  loss -  reward -  "
        "- tokens/s  weights -  left -"
    )


def test_a_plain_line() -> None:
    assert plain_line(replace(STATE, alarms=("x",))) == (
        "[04:12] iteration 2/3 training while sampling: sampled 128/192  ranked 96/192  stream 31/256  step 14/36  "
        "loss 2.3412  reward 0.214  1,812 tokens/s  weights sampler-0=v3 sampler-1=v2  left 06:30  alarms 1"
    )


def test_a_run_on_a_dataset_speaks_of_its_lists_alone() -> None:
    state = replace(STATE, samples=False)
    line = plain_line(state)
    assert f"lists {state.prompts_ranked}/{state.prompts_total}  stream" in line
    assert not [word for word in ("sampled", "ranked", "reward", "tokens/s", "weights") if word in line]
    page = "\n".join(page_text(state))
    assert "lists offered" in page
    assert "prompts sampled" not in page


def test_plain_lines_come_at_changes_and_at_the_interval() -> None:
    now, stream = [0.0], io.StringIO()
    console = PlainConsole(stream, 15.0, lambda: now[0])
    console.update(STATE)  # first: said
    console.update(replace(STATE, step=15))  # too early
    now[0] = 14.9
    console.update(replace(STATE, step=16))  # too early
    now[0] = 15.0
    console.update(replace(STATE, step=17))  # due
    console.update(replace(STATE, step=17, phase="publishing"))  # phase changed
    console.say("alarm: x")
    console.update(replace(STATE, step=18, phase="publishing"))  # too early, but the last: said at close
    console.close()
    console.close()
    said = re.findall(r"step (\d+)/|(alarm: x)", stream.getvalue())
    assert [step or line for step, line in said] == ["14", "17", "17", "alarm: x", "18"]


def test_make_console_follows_the_knob_and_the_stream() -> None:
    pipe = io.StringIO()
    assert isinstance(make_console(TelemetryConfig(), pipe), PlainConsole)
    assert isinstance(make_console(TelemetryConfig(console="plain"), pipe), PlainConsole)
    off = make_console(TelemetryConfig(console="off"), pipe)
    assert isinstance(off, OffConsole)
    off.update(STATE)
    off.say("x")
    off.close()
    assert pipe.getvalue() == ""
    live = make_console(TelemetryConfig(console="live"), io.StringIO())
    assert isinstance(live, LiveConsole)
    live.close()


def test_clock_text() -> None:
    assert [clock_text(s) for s in (0, 61.9, 3852, None, float("inf"), -5)] == [
        "00:00", "01:01", "1:04:12", "-", "-", "00:00",
    ]  # fmt: skip


CHILD = """
import sys, time
from actors.console import RunState, make_console
from larpo.config import Telemetry
console = make_console(Telemetry(refresh_s=0.05))
console.update(RunState(phase="sampling", prompts_total=4, prompts_sampled=2))
time.sleep(0.3)
console.say("a line [above] the view")
print("a print of other code")
time.sleep(0.2)
if sys.argv[1] == "raise":
    raise RuntimeError("out of luck")
if sys.argv[1] == "close":
    console.close()
    print("after the view")
else:
    time.sleep(60)
"""


def in_terminal(mode: str, kill_after_s: float | None = None) -> tuple[int, str]:
    """Run CHILD with a pseudo-terminal as its output: exit code and what the terminal received."""
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, mode]
    child = subprocess.Popen(command, stdout=follower, stderr=follower, env=env, cwd=ROOT)
    os.close(follower)
    received, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if kill_after_s is not None and b"other code" in received:
            time.sleep(kill_after_s)
            child.send_signal(signal.SIGKILL)
            kill_after_s = None
        if not select.select([leader], [], [], 0.1)[0]:
            continue
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        received += chunk
    os.close(leader)
    return child.wait(timeout=10), received.decode()


def cursor_is_shown(text: str) -> bool:
    return text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


@pytest.mark.parametrize(("mode", "code"), [("close", 0), ("raise", 1)])
def test_the_live_view_leaves_the_terminal_sane(mode: str, code: int) -> None:
    returned, text = in_terminal(mode)
    assert returned == code
    assert "phase" in text
    assert "a line [above] the view" in text
    assert "a print of other code" in text
    assert cursor_is_shown(text)
    assert "\x1b[?1049h" not in text  # never the alternate screen: the last view stays in the scroll-back
    assert ("RuntimeError: out of luck" if mode == "raise" else "after the view") in text


def test_a_killed_run_leaves_the_cursor() -> None:
    returned, text = in_terminal("sleep", kill_after_s=0.3)
    assert returned == -signal.SIGKILL
    assert cursor_is_shown(text)


def test_samplers_that_come_and_go_are_told_apart_from_those_at_work() -> None:
    def state(*statuses: str) -> RunState:
        return replace(
            STATE, samplers=tuple(SamplerState(f"sampler-{n}", 3 * (s != "pending"), s) for n, s in enumerate(statuses))
        )

    assert "samplers" not in plain_line(state("sampling", "idle"))
    coming = state("sampling", "leaving", "pending", "pending")
    assert plain_line(coming).endswith("weights v3  samplers 1 (1 leaving, 2 pending)  left 06:30")
    page = "\n".join(page_text(coming))
    assert "sampler-0  v3  sampling" in page
    assert "sampler-2  -  pending" in page
