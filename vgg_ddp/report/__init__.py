"""Self-contained HTML pages: how one trained network fails, runs side by side, and what a network makes of other images."""

from vgg_ddp.report.image_answers import write_image_answers
from vgg_ddp.report.page import write_report
from vgg_ddp.report.recipes import write_recipes
from vgg_ddp.report.side_by_side import write_side_by_side

__all__ = ["write_image_answers", "write_recipes", "write_report", "write_side_by_side"]
