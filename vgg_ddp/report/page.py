"""The report of one run: what the run left behind, section by section, in one page."""

from __future__ import annotations

from pathlib import Path

from vgg_ddp.analysis import course
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.report import details, kept_pictures, unfinished, words
from vgg_ddp.report.reading import of_best, read_evaluation, recipe, validation_images
from vgg_ddp.report.rendering import embedded, render
from vgg_ddp.report.sections import (
    abstention,
    calibration,
    curves,
    data,
    dynamics,
    figures,
    image_map,
    matrices,
    neighbours,
    occlusion,
    per_class,
    pictures,
    reliance,
    slices,
    story,
)
from vgg_ddp.run import outcome
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import last_written, read_rows

SECTIONS = [  # in their order: each has a template, sections/NAME.html.j2
    ("story", "In short"),
    ("training", "Training"),
    ("pictures", "Pictures"),
    ("classes", "Classes"),
    ("confusion", "Confusions"),
    ("worst", "Worst"),
    ("quiz", "Quiz"),
    ("groups", "Groups"),
    ("neighbours", "Why"),
    ("occlusion", "Where"),
    ("reliance", "Relies on"),
    ("slices", "By attribute"),
    ("map", "Map"),
    ("calibration", "Calibration"),
    ("abstention", "Not sure"),
    ("data", "Data"),
    ("dynamics", "Training images"),
    ("speed", "Speed"),
    ("configuration", "Configuration"),
    ("environment", "Environment"),
]


def write_report(run: Path, dataset: Dataset | None, evaluated: Path | None = None) -> Path:
    """Write RUN/report/index.html, one file that needs nothing else, and return its path.

    Without an evaluation it says what became of the run, and shows its curves. Without images it does not take the place of
    a page that has them.

    Args:
        run: the run's directory.
        dataset: what it was evaluated on; None where that is no longer there: the page then has the pictures that evaluation/
            keeps, or says that it has none.
        evaluated: another folder with evaluation/ in it, to write report/ there.

    Raises:
        UserError: the run's evaluation, or another of its files, is damaged, or the page cannot be written.
    """
    run = Path(run)
    directory, log = RunDirectory(run), read_rows(run / "metrics.jsonl")
    account = outcome.account(directory, log.rows)
    if not (RunDirectory(evaluated or run).evaluation / "summary.json").is_file():
        shown_values = unfinished.values(directory, log.rows, account, cut_off=log.cut_off)
        return render(unfinished.TEMPLATE, shown_values, directory.report)
    evaluation = read_evaluation(evaluated or run)
    metrics = last_written(log.rows)
    environment = read_json(run / "environment.json") or {}
    trained = read_json(run / "summary.json") or {}
    trained_with, trained_on = recipe(run), words.shown(str(environment.get("data", evaluation.dataset)))
    held_out = validation_images(directory, evaluation, trained_with)
    kept_in = (evaluated or run) / "evaluation"
    shown = kept_pictures.of_dataset(evaluation, dataset) if dataset else kept_pictures.of_run(evaluation, kept_in)
    described, sheets = details.describe(evaluation, shown, trained_with)
    values = {
        **story.values(
            evaluation,
            course.ending(metrics, sum(held_out)),
            of_best=of_best(directory, evaluation, trained_with),
            quiz=[described["quiz"][0][key] for key in ("first", "second")] if described["quiz"] else [],
        ),
        "trained_on": trained_on,
        "account": account,
        "curves_drawn": curves.curves(metrics, trained_on, trained_with),
        "validated": any(row["split"] == "validation" for row in metrics),
        "unreadable_lines": log.cut_off,
        **pictures.values(evaluation, shown),
        **per_class.values(evaluation, metrics, held_out),
        **matrices.of_classes(evaluation),
        "quiz": bool(described["quiz"]),
        "quiz_lacks": details.quiz_lacks(evaluation, shown),
        "quiz_pictures": details.quiz_pictures_sentence(described["side"], described["seen"]),
        **matrices.of_groups(evaluation),
        "neighbours": neighbours.values(evaluation, shown),
        "occlusion": occlusion.values(evaluation),
        "reliance": reliance.values(evaluation),
        "slices": slices.values(evaluation),
        "map": image_map.values(evaluation),
        "calibration": calibration.values(evaluation, trained_with),
        "abstention": abstention.values(evaluation),
        "dynamics": dynamics.values(evaluation, shown, trained_with),
        "data": data.values(evaluation, shown),
        "warnings": evaluation.summary["warnings"],
        "notes": [words.shown(str(note)) for note in environment.get("fallbacks", [])],
        "time": figures.where_time_went(trained),
        "numbers": figures.numbers(evaluation.summary, trained),
        "config": figures.config_text(directory.config),
        "environment": figures.flat(
            {**environment, "evaluated checkpoint": evaluation.summary.get("checkpoint_sha256")}
        ),
        "details": embedded(described),
        "sheets": sheets,
        "sections": SECTIONS,
    }
    page = RunDirectory(evaluated or run).report
    if shown is None and page.is_file():  # its pictures cannot be had again
        page = page.with_name("without_pictures.html")
    page = render("run.html.j2", values, page)
    if shown is not None:
        with RunDirectory(run).writing():
            shown.keep(kept_in)
    return page
