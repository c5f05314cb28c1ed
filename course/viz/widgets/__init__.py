"""Two explorables: all logic is JavaScript, so they also work where no kernel runs; Python passes data and options."""

from course.viz.widgets.flash_tiles import FlashTiles
from course.viz.widgets.online_softmax_stepper import OnlineSoftmaxStepper
from course.viz.widgets.page import page

__all__ = ["FlashTiles", "OnlineSoftmaxStepper", "page"]
