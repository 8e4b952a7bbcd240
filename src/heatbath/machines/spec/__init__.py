"""The data sheet of a machine: a specification in SI units, presets, files, and what follows from it."""

from heatbath.machines.spec.machine_spec import BOLTZMANN as BOLTZMANN
from heatbath.machines.spec.machine_spec import SETTLE_TAUS as SETTLE_TAUS
from heatbath.machines.spec.machine_spec import MachineSpec as MachineSpec
from heatbath.machines.spec.machine_spec import describe as describe
from heatbath.machines.spec.machine_spec import spec_from as spec_from
from heatbath.machines.spec.machine_spec import with_bits as with_bits
from heatbath.machines.spec.presets import presets as presets
from heatbath.machines.spec.spec_io import load_machine as load_machine
from heatbath.machines.spec.spec_io import machine_toml as machine_toml
