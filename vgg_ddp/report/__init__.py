"""The report: one self-contained HTML page on how a trained network fails."""

from vgg_ddp.report.page import write_report

__all__ = ["write_report"]
