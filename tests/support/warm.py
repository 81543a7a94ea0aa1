"""Imported last by the process that ranks and commands are forked from: what each of them would do again."""

import gc

import msgspec

from vgg_ddp.config import Config

msgspec.convert({}, Config)  # evaluates the annotations of every key
gc.freeze()  # what all share is not looked at again by those that collect garbage
