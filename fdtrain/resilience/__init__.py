"""What keeps many processes one run: consensus, heartbeat, signals, the lock of a run folder."""
