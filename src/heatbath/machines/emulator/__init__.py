"""An exact emulation of a linear analog machine, as a `Device`."""
