"""The report of synthetic runs: whole, interrupted and empty ones."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from larpo.busy import Span
from larpo.errors import DataError
from larpo.events import check_event
from larpo.metrics import check_names
from larpo.plots import actor_order, running_mean, time_cuts
from larpo.records import write_part
from larpo.report import write_report
from larpo.report_figures import (
    boundaries,
    evaluated,
    evaluated_by_step,
    figures,
    reward_figure,
    steps_behind,
    training_reward,
    with_position,
)
from larpo.run_log import kept_evaluations, kept_steps, make_run_log, read_run_log, series
from larpo.types import Candidate, CandidateList, Message, Prompt, VersionSpan, list_id

T0 = 1_790_000_000.0
CONFIG = """description: small policy, three verified tasks
run:
  name: quickstart-synthetic
  seed: 0
training:
  iterations: 3
  gap_alarm: 0.1
telemetry:
  report_samples: 2
"""


def step_record(step: int, iteration: int, rng: random.Random) -> dict[str, Any]:
    def noise() -> float:
        return rng.gauss(0, 1)

    return {
        "event": "step",
        "step": step,
        "iteration": iteration,
        "epoch": 0,
        "train/loss": 3.4 - 0.03 * step + 0.2 * iteration + 0.12 * noise(),
        "train/grad_norm": 6 + noise(),
        "train/kl_to_reference": 0.004 * step + 0.003 * abs(noise()),
        "train/entropy": 1.9 * math.exp(-step / 60) + 0.05 * noise(),
        "train/score_gap": 0.02 * step + 0.05 * noise(),
        "train/ranking_accuracy": 0.5 + 0.006 * step + 0.03 * noise(),
        "train/staleness_mean": (step % 12) * 0.7,
        "train/staleness_max": float(step % 12),
        "train/log_prob_gap": 0.012 + 0.002 * noise() if step % 12 == 0 else None,
        "train/policy_gap": 0.02 + 0.004 * (step % 12),
        "train/step_seconds": 6 + 0.4 * noise(),
        "train/wait_seconds": abs(noise()) * 2,
    }


def span_records(iteration: int, start: float) -> list[dict[str, Any]]:
    """Two samplers, a reward actor and a trainer in the stream mode, 120 s an iteration."""
    rows = []
    for sampler in ("sampler-0", "sampler-1"):
        rows += [(sampler, "sample", 8 * i, 8 * i + 7.6) for i in range(9)]
        rows += [(sampler, "update", 112, 115), (sampler, "evaluate", 115, 120)]
    rows += [("reward-0", "rank", 8 * i + 7, 8 * i + 8.5) for i in range(9)]
    rows += [("reward-0", "wait", 8 * i + 8.5, 8 * i + 15) for i in range(9)]
    rows += [("trainer", "wait", 0, 12)]
    rows += [("trainer", "train", 12 + 8 * i, 12 + 8 * i + 7.2) for i in range(12)]
    rows += [("trainer", "publish", 108, 112)]
    return [
        {"event": "span", "actor": actor, "kind": kind, "start": start + begin, "end": start + end}
        for actor, kind, begin, end in rows
    ]


def heldout(label: str, reward: float) -> dict[str, Any]:
    return {
        "event": "evaluation",
        "label": label,
        "heldout/reward": reward,
        "heldout/reward_stderr": 0.021,
        "heldout/greedy": reward + 0.04,
        "heldout/fully_met": reward + 0.04,
        "heldout/response_tokens": 24.0 - 10 * reward,
        "heldout/cut_off_share": 0.2 - reward / 4,
    }


def run_records(iterations: int = 3) -> list[dict[str, Any]]:
    rng = random.Random(0)
    starts = [{"event": "span", "actor": "sampler-0", "kind": "start", "start": T0, "end": T0 + 30}]
    records = [{"event": "start", "resumed": False}, *starts, heldout("base", 0.15)]
    for iteration in range(iterations):
        start = T0 + 30 + 121 * iteration + (50_000 if iteration == 2 else 0)
        records += span_records(iteration, start)
        for part in range(12):
            hardness = {
                "lists/reward_gap": 1 - 0.1 * iteration + 0.05 * rng.gauss(0, 1),
                "lists/overlap": 0.2 + 0.1 * iteration + 0.02 * rng.gauss(0, 1),
            }
            reward = {"lists/reward_mean": 0.16 + 0.09 * iteration}
            records.append({"event": "lists", "iteration": iteration, "part": part, **hardness, **reward})
        records += [step_record(12 * iteration + i + 1, iteration, rng) for i in range(12)]
        told = {"lists/reward_mean": 0.16 + 0.09 * iteration, "busy/sampler": 0.8, "busy/overlap_efficiency": 0.875}
        records.append({"event": "iteration", "iteration": iteration, **told})
        records.append(heldout(f"iteration {iteration + 1}", 0.15 + 0.09 * (iteration + 1)))
    records.insert(20, {"event": "alarm", "message": "log-probability gap 0.131 above 0.1 at step 7 <b>"})
    records.insert(40, {"event": "failure", "actor": "sampler-1", "kind": "sampler", "reason": "killed by signal 9"})
    return [{"time": T0 + index, **record} for index, record in enumerate(records)]


def done_record() -> dict[str, Any]:
    before = {"reward": 0.15, "greedy": 0.19, "fully_met": 0.19, "response_tokens": 22.5, "cut_off_share": 0.16}
    after = {"reward": 0.42, "greedy": 0.46, "fully_met": 0.46, "response_tokens": 19.8, "cut_off_share": 0.05}
    return {
        "time": T0 + 900,
        "event": "done",
        **{f"heldout/{noun}_before": value for noun, value in before.items()},
        **{f"heldout/{noun}_after": value for noun, value in after.items()},
        "heldout/reward_diff": 0.27,
        "heldout/reward_diff_low": 0.221,
        "heldout/reward_diff_high": 0.319,
        "heldout/prompts": 150,
        "heldout/samples": 4,
    }


def candidate(index: int, reward: float, text: str) -> Candidate:
    return Candidate(
        f"c{index}", text, (1, 2, 3), (-0.1, -0.2, -0.3), "length" if index == 2 else "stop", 1.0,
        "remembered" if index == 1 else "sampled", 0, (VersionSpan(0, 3, 0),), reward,
    )  # fmt: skip


def candidate_list(iteration: int, number: int) -> CandidateList:
    prompt = Prompt(f"chain_sum-{number}", (Message("user", f"What is {number} + 4?"),), "chain_sum")
    texts = (f"{number} + 4 = {number + 4}.", "The answer is <script>alert('7')</script>", "I think " * 12)
    candidates = tuple(candidate(i, float(i == 0), text) for i, text in enumerate(texts))
    return CandidateList(list_id(iteration, prompt.id), iteration, prompt, (5, 6), candidates)


def write_run(folder: Path, records: list[dict[str, Any]], lists: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for iteration in range(lists):
        write_part(folder / "lists", [candidate_list(iteration, n) for n in range(4)], iteration, 0)
    return folder


class Page(HTMLParser):
    """The tags that a browser would see, the addresses they load and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes += [value or "" for name, value in attrs if name == "class"]
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_synthetic_run_uses_declared_names_only() -> None:
    for record in [*run_records(), done_record()]:
        fields = {key: value for key, value in record.items() if "/" not in key and key not in ("time", "event")}
        check_names(key for key in record if "/" in key)
        check_event(record["event"], fields)


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = write_run(tmp_path_factory.mktemp("runs") / "whole", [*run_records(), done_record()])
    path = write_report(run)
    assert path == run / "report.html"
    assert [item.name for item in run.iterdir() if item.name.startswith(".")] == []
    return Page(path.read_text(encoding="utf-8"))


def test_a_whole_run_has_every_section_and_nothing_missing(whole_page: Page) -> None:
    for title in ("Result", "Learning", "Busy time", "Alarms and failures", "Sample lists", "Configuration"):
        assert title in whole_page.text
    for title in ("Reward by iteration", "Loss", "List hardness", "Who worked when", "Staleness", "Sampler against"):
        assert title in whole_page.text
    assert whole_page.tags.count("img") == 9
    assert "missing" not in whole_page.classes
    assert "no final record" not in whole_page.text


def test_staleness_is_drawn_of_a_run_in_which_lists_were_stale() -> None:
    drawn = figures(make_run_log(run_records()), gap_alarm=None)
    on_time = [{**record, "train/staleness_max": 0.0} for record in run_records()]
    assert list(drawn.keys() - figures(make_run_log(on_time), gap_alarm=None).keys()) == ["staleness"]


def test_the_headline_has_the_numbers_of_the_done_record(whole_page: Page) -> None:
    for number in ("0.150", "0.420", "+0.270 [+0.221, +0.319]", "19.0%", "46.0%", "150 held-out prompts, 4 samples"):
        assert number in whole_page.text


def test_the_overlap_of_each_iteration_is_told(whole_page: Page) -> None:
    assert "both sidesbusier side" in whole_page.text
    for iteration in (1, 2, 3):
        assert f"{iteration}80.0%---87.5%" in whole_page.text  # the others were not told


def test_the_page_loads_nothing_and_escapes_what_models_and_users_wrote(whole_page: Page) -> None:
    assert all(address.startswith("data:image/svg+xml;base64,") for address in whole_page.loads)
    assert "script" not in whole_page.tags
    assert "link" not in whole_page.tags
    assert "b" not in whole_page.tags
    assert "<script>alert('7')</script>" in whole_page.text
    assert "above 0.1 at step 7 <b>" in whole_page.text


def test_sample_lists_show_rewards_and_origins(whole_page: Page) -> None:
    assert whole_page.text.count("What is") == 3 * 2  # report_samples lists of each of 3 iterations
    for said in ("Iteration 3", "remembered", "cut off", "(chain_sum)", "1.000"):
        assert said in whole_page.text


def test_an_interrupted_run_shows_what_there_is_and_says_what_is_missing(tmp_path: Path) -> None:
    records = [{"time": T0, "event": "start", "resumed": False}, {"time": T0 + 1, **heldout("base", 0.15)}]
    run = write_run(tmp_path / "cut", records, lists=0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1790000002.0, "event": "st')
    (run / "config.yaml").unlink()
    text = Page(write_report(run).read_text()).text
    for said in (
        "last line of metrics.jsonl was cut off",
        "no final record",
        "0.150",
        "Loss: no step recorded train/loss, train/grad_norm.",
        "List hardness: no lists recorded",
        "no spans were recorded",
        "No candidate lists are on disk",
        "config.yaml is not in the run folder",
    ):
        assert said in text


def test_an_empty_run_folder_gets_a_report(tmp_path: Path) -> None:
    text = Page(write_report(tmp_path).read_text()).text
    assert "nothing was recorded" in text
    assert "No held-out evaluation was recorded" in text


def test_no_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        write_report(tmp_path / "absent")


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"time": 1, "event": "done"}\nnonsense\n{"time": 2, "event": "done"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_run_log(tmp_path / "metrics.jsonl")


def test_a_damaged_part_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", run_records(1), lists=2)
    part = run / "lists" / "iteration-0000" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    text = Page(write_report(run).read_text()).text
    assert "iteration-0000/part-00000.parquet cannot be read" in text
    assert "Iteration 2" in text


def test_rolled_back_steps_are_taken_out() -> None:
    steps = [{"step": step, "train/loss": loss} for step, loss in ((1, 1), (2, 2), (3, 3), (4, 4), (2, 5), (3, 6))]
    assert series(kept_steps(steps), "train/loss", "step") == ([1, 2, 3], [1, 5, 6])


def test_later_records_of_the_same_part_evaluation_or_iteration_win() -> None:
    records: list[dict[str, Any]] = [
        {"time": 1, "event": "lists", "iteration": 0, "part": 0, "lists/reward_mean": 0.1},
        {"time": 2, "event": "lists", "iteration": 0, "part": 0, "lists/reward_mean": 0.3},
        {"time": 3, "event": "lists", "iteration": 0, "part": 1, "lists/reward_mean": 0.5},
        {"time": 4, "event": "lists", "iteration": 1, "part": 0, "lists/reward_mean": 0.7},
        {"time": 5, "event": "iteration", "iteration": 1, "lists/reward_mean": 0.9},
        {"time": 6, "event": "evaluation", "label": "base", "heldout/reward": 0.1},
        {"time": 7, "event": "evaluation", "label": "base", "heldout/reward": 0.2},
    ]
    log = make_run_log(records)
    assert training_reward(log) == {0: (0.3 + 0.5) / 2, 1: 0.9}
    assert [record["heldout/reward"] for record in log.evaluations] == [0.2]


def test_evaluations_lie_at_the_iterations_behind_them() -> None:
    first, last = {"label": "base", "heldout/reward": 0.1}, {"label": "end", "heldout/reward": 0.4, "iteration": 3}
    assert evaluated([first, last]) == [(0, first), (3, last)]
    assert evaluated([{"label": "base", "heldout/reward": None}]) == []


def evaluation(label: str, iteration: int, step: int | None = None) -> dict[str, Any]:
    place = {"iteration": iteration} | ({} if step is None else {"step": step})
    return {"time": 1, **heldout(label, 0.5), **place}


def test_evaluations_of_snapshots_lie_at_their_step_and_ends_at_the_last_of_their_iteration() -> None:
    steps = [{"time": 1, "event": "step", "step": s, "iteration": s // 5} for s in range(1, 9)]  # 4 and 4
    points = [evaluation("base", 0), evaluation("s3", 0, 3), evaluation("s6", 1, 6), evaluation("1", 1)]
    log = make_run_log([*steps, *points])
    assert [(x, record["label"]) for x, record in evaluated_by_step(log)] == [
        (0, "base"),
        (3, "s3"),
        (4, "1"),
        (6, "s6"),
    ]
    assert [(x, record["label"]) for x, record in evaluated(log.evaluations)] == [(0, "base"), (1, "1")]
    assert "Reward by step" in reward_figure(log)
    assert "Reward by iteration" in reward_figure(make_run_log([*steps, points[0], points[3]]))


def test_steps_whose_records_a_kill_lost_still_count() -> None:
    steps = [{"time": 1, "event": "step", "step": s, "iteration": s // 9} for s in (1, 2, 3, 10, 11)]
    log = make_run_log([*steps, evaluation("step 12", 1, 12)])
    assert [steps_behind(log, iterations) for iterations in (0, 1, 2)] == [0, 9, 12]


def test_an_evaluation_of_a_step_that_was_taken_back_does_not_count() -> None:
    def step(number: int) -> dict[str, Any]:
        return {"time": 1, "event": "step", "step": number, "iteration": 0}

    before = [step(1), step(2), step(3), evaluation("base", 0), evaluation("step 2", 0, 2), evaluation("step 3", 0, 3)]
    assert len(kept_evaluations([*before, step(4)])) == 3
    assert [r["label"] for r in kept_evaluations([*before, step(3)])] == ["base", "step 2"]
    assert [r["label"] for r in kept_evaluations([*before, step(1), step(2)])] == ["base"]
    assert len(kept_evaluations([step(1), evaluation("step 2", 0, 2), step(2)])) == 1  # told before its step was


def test_an_evaluation_that_a_kill_left_out_is_said_to_be_missing() -> None:
    ends = [evaluation(f"after iteration {n}", n) for n in range(5)]
    assert "Not evaluated" not in reward_figure(make_run_log(ends))
    assert "Not evaluated" not in reward_figure(make_run_log([ends[0], ends[4]]))  # only before and after the run
    assert "Not evaluated: the policy after iteration 2;" in reward_figure(make_run_log([*ends[:2], *ends[3:]]))


def test_evaluations_come_in_the_order_of_training_whenever_they_were_made(tmp_path: Path) -> None:
    late = [evaluation("after iteration 1", 1), evaluation("step 3", 0, 3), evaluation("base policy", 0)]
    page = write_report(write_run(tmp_path / "late", late)).read_text()
    assert page.index("base policy") < page.index("step 3") < page.index("after iteration 1")


def test_positions_of_parts_and_boundaries_of_iterations() -> None:
    lists = [{"iteration": 0}, {"iteration": 0}, {"iteration": 1}]
    assert [record["x"] for record in with_position(lists)] == [0.25, 0.75, 1.5]
    steps = [{"step": 1, "iteration": 0}, {"step": 2, "iteration": 0}, {"step": 3, "iteration": 1}]
    assert boundaries(steps) == [(0.5, "iteration 1"), (2.5, "iteration 2")]


def test_small_helpers_of_the_plots() -> None:
    assert running_mean([0.0, 3.0, 6.0], 1) == [1.5, 3.0, 4.5]
    assert sorted(["trainer", "sampler-10", "reward-0", "sampler-2"], key=actor_order) == [
        "sampler-2", "sampler-10", "reward-0", "trainer",
    ]  # fmt: skip
    spans = [Span("a", "train", 100, 110), Span("a", "train", 5000, 5010)]
    assert time_cuts(spans) == [(100, 110, 100), (5000, 5010, 100 + 4890)]


def test_the_report_is_the_same_each_time(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", run_records(1), lists=1)
    first = write_report(run).read_text()
    assert write_report(run).read_text() == first
    assert not re.search(r"https?://(?!www\.w3\.org)", first)


def test_a_run_on_a_dataset_has_its_own_headline(tmp_path: Path) -> None:
    ends = {"before": 0.6931, "after": 0.41, "diff": -0.2831, "diff_low": -0.31, "diff_high": -0.25}
    done = {"time": T0 + 60, "event": "done", "given/lists": 96.0, **{f"given/loss_{k}": v for k, v in ends.items()}}
    page = Page(write_report(write_run(tmp_path / "given", [*run_records(), done], lists=0)).read_text())
    for text in ("0.6931", "0.4100", "-0.2831 [-0.3100, -0.2500]", "96 held-out lists"):
        assert text in page.text
    assert "accuracy by score" not in page.text
