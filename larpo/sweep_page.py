"""An evaluation of several models as plots, in the form of the paper's Figures 2, 4 and 5, and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from larpo.config import Sweep
from larpo.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Line, Panel, line_plot
from larpo.report_page import details, figure, heading, missing, note, page, plots, preformatted, quote, section, table
from larpo.sweep import ModelAnswers, cutoffs_of
from larpo.sweep_tables import Results, Rows, difference_rows, ranking_rows, recall_rows, reward_rows, win_rows

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
SHOWN_PROMPTS = 5
_PICKS = (("recall", "best of N", BLUE), ("reranked", "reranked", ORANGE), ("majority", "vote of N", GREEN))


def sweep_plots(results: Results, sweep: Sweep) -> dict[str, tuple[str, str, str]]:
    """File name without its end -> title, SVG and caption."""
    names, first = list(results["models"]), sweep.temperatures[0]
    drawn = {
        "recall_by_model": (
            f"Recall@N by model, T = {first:g}",
            _curves({name: _series(results, name, first, "recall", sweep) for name in names}, "Recall@N", sweep),
            "Chance that N samples hold a correct one; bars are 95% intervals over prompts. (Form of Figure 5.)",
        )
    }
    for name in names:
        by_temperature = {f"T = {t:g}": _series(results, name, t, "recall", sweep) for t in sweep.temperatures}
        if len(by_temperature) > 1:
            drawn[f"recall_{name}"] = (
                f"Recall@N of {name} by temperature",
                _curves(by_temperature, "Recall@N", sweep),
                "The same for one model at several temperatures. (Form of Figure 2.)",
            )
    if len(sweep.temperatures) > 1:
        drawn["temperature"] = (
            "Mean reward by temperature",
            _by_temperature(results, sweep),
            "Mean reward of the samples; bars are 95% intervals over prompts. (Form of Figure 4.)",
        )
    for name in names:
        drawn[f"picking_{name}"] = (
            f"From retrieval to reranking: {name}, T = {first:g}",
            _picking(results, name, sweep),
            "Share of prompts answered right: by the greedy response, by a vote of N, and by the best of N under the"
            " reward, which is Recall@N where the reward itself says what is correct.",
        )
    return drawn


def _series(results: Results, name: str, t: float, kind: str, sweep: Sweep) -> list[Sequence[float]]:
    """Intervals by N of a measure that has one for each."""
    own: Mapping[str, Sequence[float]] = results["models"][name]["measures"]
    return [own[key] for n in cutoffs_of(sweep) if (key := f"T={t:g}/{kind}@{n}") in own]


def _curves(curves: Mapping[str, Sequence[Sequence[float]]], label: str, sweep: Sweep) -> str:
    cutoffs = cutoffs_of(sweep)
    lines = [
        Line(name, cutoffs, [mean for mean, _, _ in points], color, _bars(points), marks=True)
        for (name, points), color in zip(curves.items(), _colors(len(curves)), strict=True)
    ]
    return line_plot([Panel(label, lines, from_zero=True)], "N, samples a prompt", ticks=cutoffs, log_x=True)


def _bars(points: Sequence[Sequence[float]]) -> list[float]:
    """Half-lengths of the intervals."""
    return [(high - low) / 2 for _, low, high in points]


def _by_temperature(results: Results, sweep: Sweep) -> str:
    temperatures = sorted(sweep.temperatures)
    lines = []
    for (name, model), color in zip(results["models"].items(), _colors(len(results["models"])), strict=True):
        points = [model["measures"][f"T={t:g}/reward"] for t in temperatures]
        lines.append(Line(name, temperatures, [mean for mean, _, _ in points], color, _bars(points), marks=True))
    return line_plot([Panel("mean reward", lines)], "temperature", ticks=temperatures)


def _picking(results: Results, name: str, sweep: Sweep) -> str:
    cutoffs, t = cutoffs_of(sweep), sweep.temperatures[0]
    greedy = results["models"][name]["measures"]["greedy/correct"][0]
    lines = [Line("greedy", [cutoffs[0], cutoffs[-1]], [greedy] * 2, GREY, dashed=True)]
    for kind, label, color in _PICKS:
        points = _series(results, name, t, kind, sweep)
        if points:
            lines.append(Line(label, cutoffs, [mean for mean, _, _ in points], color, _bars(points), marks=True))
    panels = [Panel("prompts answered right", lines, from_zero=True)]
    return line_plot(panels, "N, samples a prompt", ticks=cutoffs, log_x=True)


def _colors(count: int) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(count)]


def sweep_page(
    results: Results, answers: Sequence[ModelAnswers], questions: Mapping[str, str], settings: str, sweep: Sweep
) -> str:
    """The page: tables, plots, some prompts with each model's greedy response, and the settings."""
    drawn = [figure(*parts) for parts in sweep_plots(results, sweep).values()]
    tables = [
        heading(title) + _table(rows) if len(rows) > 1 else missing(f"{title}: {why}")
        for title, rows, why in (
            ("Rewards", reward_rows(results, sweep), ""),
            ("Recall@N, and one of N samples", recall_rows(results, sweep), ""),
            ("Differences from the first model", difference_rows(results, sweep), "one model was evaluated."),
            ("Win rates by reward", win_rows(results), "one model was evaluated."),
            ("The policy as a ranker", ranking_rows(results), "no list had responses of two rewards."),
        )
    ]
    said = [
        details(questions[prompt.id], "\n".join(quote(_role(m, number), m.greedy_P[number].text) for m in answers))
        for number, prompt in enumerate(answers[0].prompts[:SHOWN_PROMPTS])
    ]
    subtitle = (
        f"{', '.join(results['models'])} on {results['prompts']} held-out prompts; reward: {results['reward']};"
        f" {sweep.samples} samples a prompt and temperature; 95% intervals over prompts in brackets."
    )
    return page(
        "larpo models compared",
        subtitle,
        [
            section("Result", *tables, *(note(text) for text in (*results["notes"], *results["judges"]))),
            section("Plots", plots(drawn)),
            section("Greedy responses", *said),
            section("Settings", details("configuration", preformatted(settings))),
        ],
    )


def _table(rows: Rows) -> str:
    texts = [column for column, name in enumerate(rows[0]) if column == 0 or name in ("score", "against")]
    return table(rows[0], rows[1:], texts)


def _role(answers: ModelAnswers, number: int) -> str:
    return f"{answers.name}, reward {answers.greedy_P[number].reward:.3f}"
