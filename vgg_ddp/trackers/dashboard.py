"""The ready W&B dashboard: a workspace and a report for a project, from the definition in dashboard.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vgg_ddp.errors import UserError

DEFINITION = Path(__file__).with_name("dashboard.yaml")


class Panel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every panel has; its kind is the tag in dashboard.yaml."""

    title: str


class Line(Panel, frozen=True, tag="line"):
    """Metrics over the step."""

    metrics: list[str]


class LinesMatching(Panel, frozen=True, tag="lines_matching"):
    """Every metric whose whole name the regular expression `pattern` matches, over the step."""

    pattern: str


class Bar(Panel, frozen=True, tag="bar"):
    """The last value of metrics, a bar a run."""

    metrics: list[str]


class Scatter(Panel, frozen=True, tag="scatter"):
    """A point a run: a summary metric over a configuration key."""

    config: str
    summary: str


class Media(Panel, frozen=True, tag="media"):
    """Pictures or pages."""

    metrics: list[str]


class Table(Panel, frozen=True, tag="table"):
    """A table that was logged."""

    metric: str


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Panels under a title."""

    title: str
    panels: list[Line | LinesMatching | Bar | Scatter | Media | Table]


class Dashboard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of dashboard.yaml."""

    sections: list[Section]


def definition() -> Dashboard:
    """The dashboard in dashboard.yaml."""
    return msgspec.yaml.decode(DEFINITION.read_bytes(), type=Dashboard)


def described(dashboard: Dashboard) -> str:
    """The dashboard as indented text: sections, panels, and what each shows."""
    lines = []
    for section in dashboard.sections:
        lines.append(section.title)
        for panel in section.panels:
            fields = msgspec.structs.asdict(panel)
            title = fields.pop("title")
            shown = " over ".join(", ".join(v) if isinstance(v, list) else v for v in reversed(list(fields.values())))
            lines.append(f"  {title}: {shown}")
    return "\n".join(lines)


def panels_of(section: Section) -> list[Any]:
    """The section's panels as objects of wandb-workspaces, which validates them."""
    import wandb_workspaces.reports.v2 as reports

    def panel(given: Any) -> Any:
        match given:
            case Line(title=title, metrics=metrics):
                return reports.LinePlot(title=title, x="Step", y=metrics)
            case LinesMatching(title=title, pattern=pattern):
                return reports.LinePlot(title=title, x="Step", metric_regex=pattern)
            case Bar(title=title, metrics=metrics):
                return reports.BarPlot(title=title, metrics=metrics)
            case Scatter(title=title, config=config, summary=summary):
                return reports.ScatterPlot(title=title, x=reports.Config(config), y=reports.SummaryMetric(summary))
            case Media(title=title, metrics=metrics):
                return reports.MediaBrowser(title=title, media_keys=metrics)
            case Table(metric=metric):
                return reports.WeavePanelSummaryTable(table_name=metric)
        raise TypeError(given)

    return [panel(given) for given in section.panels]


def workspace(dashboard: Dashboard, project: str, entity: str) -> Any:
    """The dashboard as a workspace of wandb-workspaces; needs no network."""
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(name=section.title, panels=panels_of(section), is_open=True)
        for section in dashboard.sections
    ]
    return workspaces.Workspace(name="vgg_ddp", entity=entity, project=project, sections=sections)


def report(dashboard: Dashboard, project: str, entity: str) -> Any:
    """The dashboard as a report of wandb-workspaces: the same sections, one below the other."""
    import wandb_workspaces.reports.v2 as reports

    blocks: list[Any] = [reports.P("Every run of the project, with the panels of vgg_ddp's dashboard.")]
    for section in dashboard.sections:
        runs = reports.Runset(entity=entity, project=project)
        blocks += [reports.H2(section.title), reports.PanelGrid(runsets=[runs], panels=panels_of(section))]
    return reports.Report(entity=entity, project=project, title="vgg_ddp", blocks=blocks)


def create(project: str, entity: str | None) -> list[str]:
    """Create the workspace and the report in W&B; their addresses. Raises whatever W&B raises."""
    import wandb

    owner = entity or wandb.Api().default_entity
    if owner is None:
        raise UserError("the W&B login has no entity of its own; name one with --entity")
    dashboard = definition()
    saved = workspace(dashboard, project, owner).save()
    written = report(dashboard, project, owner).save()
    return [saved.url, written.url]
