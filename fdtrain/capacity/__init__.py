"""Estimates of a run before there is a data set or a machine: work, memory, communication, time."""
