"""Run, record, compare, draw.

An `Experiment` says what is trained, a `Choice` with which optimizer, `RunOptions` for how long; `run` trains and leaves a
`Record`.
"""

from heatbath.experiments.choice import Choice as Choice
from heatbath.experiments.experiment import Experiment as Experiment
from heatbath.experiments.experiment import Hyper as Hyper
from heatbath.experiments.experiment import Target as Target
from heatbath.experiments.optimizers import choose as choose
from heatbath.experiments.records import Record as Record
from heatbath.experiments.records import RunFiles as RunFiles
from heatbath.experiments.records import read_record as read_record
from heatbath.experiments.runner import RunOptions as RunOptions
from heatbath.experiments.runner import run as run
