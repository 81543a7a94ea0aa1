"""A network trained on the digits: its runs come from the same place as those of the training's tests."""

from tests.training.conftest import digits, disk, few_digits, launch, recipe, runs, train  # noqa: F401 (fixtures)
