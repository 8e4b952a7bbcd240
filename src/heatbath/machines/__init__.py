"""The emulated thermodynamic computer: describe it, program it, run it, read it."""

from heatbath.machines.coloured import ColouredLaw as ColouredLaw
from heatbath.machines.exact import ExactLaw as ExactLaw
from heatbath.machines.fast import FastLaw as FastLaw
from heatbath.machines.faulty import Fault as Fault
from heatbath.machines.faulty import Faulty as Faulty
from heatbath.machines.figures import Figures as Figures
from heatbath.machines.figures import figures as figures
from heatbath.machines.figures import settle_seconds as settle_seconds
from heatbath.machines.figures import settled_schedule as settled_schedule
from heatbath.machines.law import Law as Law
from heatbath.machines.machine import Machine as Machine
from heatbath.machines.presets import presets as presets
from heatbath.machines.programmed import CovarianceReading as CovarianceReading
from heatbath.machines.programmed import Programmed as Programmed
from heatbath.machines.programmed import Reading as Reading
from heatbath.machines.schedule import Schedule as Schedule
from heatbath.machines.spec import MachineSpec as MachineSpec
from heatbath.machines.spec import describe as describe
from heatbath.machines.spec import spec_from as spec_from
from heatbath.machines.spec import with_bits as with_bits
from heatbath.machines.stepper import Euler as Euler
from heatbath.machines.stepper import ReadByRead as ReadByRead
from heatbath.machines.stepper import Stepper as Stepper
from heatbath.machines.toml import load_machine as load_machine
from heatbath.machines.toml import machine_toml as machine_toml
