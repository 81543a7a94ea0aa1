"""Imported last by the process that ranks and commands are forked from: what each of them would do again."""

import gc

import msgspec

from vgg_ddp.config import Config
from vgg_ddp.report.rendering import templates
from vgg_ddp.trackers import follow

msgspec.convert({}, Config)  # evaluates the annotations of every key
follow.SECONDS_BEFORE_THE_END = (
    300.0  # a tracker on a busy machine; a test that is about being late sets finish_seconds
)
for name in templates().list_templates(["j2"]):
    templates().get_template(name)
gc.freeze()  # what all share is not looked at again by those that collect garbage
