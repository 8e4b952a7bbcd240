"""Work to seconds and joules."""

from heatbath.costs.analog import job_bill as job_bill
from heatbath.costs.bill import PARTS as PARTS
from heatbath.costs.bill import Bill as Bill
from heatbath.costs.bill import with_unit as with_unit
from heatbath.costs.digital import Digital as Digital
from heatbath.costs.digital import Timing as Timing
from heatbath.costs.fleet import assign as assign
from heatbath.costs.fleet import makespan as makespan
from heatbath.costs.floors import Floors as Floors
from heatbath.costs.floors import analog_floor as analog_floor
from heatbath.costs.floors import floors as floors
from heatbath.costs.floors import landauer as landauer
from heatbath.costs.presets import h100 as h100
from heatbath.costs.presets import h100_bf16 as h100_bf16
from heatbath.costs.presets import probe_cpu as probe_cpu
from heatbath.costs.presets import this_cpu as this_cpu
from heatbath.costs.price import price as price
from heatbath.costs.reprogramming import send_again as send_again
