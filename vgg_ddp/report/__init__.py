"""Self-contained HTML pages: how one trained network fails, runs side by side, and what a network makes of other images."""

from vgg_ddp.report.image_answers import write_own_images
from vgg_ddp.report.page import write_report
from vgg_ddp.report.side_by_side import write_comparison

__all__ = ["write_comparison", "write_own_images", "write_report"]
