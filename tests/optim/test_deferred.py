from __future__ import annotations

import copy

import torch

from heatbath.optim.deferred import Deferred
from tests.optim.test_no_sync import NoReads


def test_flags_come_as_members_and_reading_them_is_no_read_of_a_device():
    with NoReads():
        flags = Deferred(torch.tensor([False, True, False, True]))
        assert flags.members() == [1, 3]
        assert flags.members() == [1, 3]


def test_flags_survive_a_copy_and_a_checkpoint():
    flags = Deferred(torch.tensor([True, False, True]))
    assert copy.deepcopy(flags).members() == [0, 2]
    assert Deferred.of(flags.members(), 3).members() == [0, 2]
    assert Deferred.of([], 3).members() == []
