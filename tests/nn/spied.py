"""torch's recurrent functions, watched."""

import types

import torch


class Spy(types.ModuleType):
    """`torch._VF`, which writes down the names of what is called."""

    def __init__(self):
        super().__init__("spy")
        self.calls = []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            return getattr(torch._VF, name)(*args)

        return call
