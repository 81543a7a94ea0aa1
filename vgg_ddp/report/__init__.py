"""Self-contained HTML pages: how one trained network fails, runs side by side, and what a network makes of other images."""

from vgg_ddp.report.comparison import write_comparison
from vgg_ddp.report.own_images import write_own_images
from vgg_ddp.report.page import write_report

__all__ = ["write_comparison", "write_own_images", "write_report"]
