"""The lab: clients at work, each in a process of its own, over a range of some parameter."""
