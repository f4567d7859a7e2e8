"""What a run will take, before there is a data set or a machine: work, memory, communication, time."""
