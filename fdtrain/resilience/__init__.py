"""What keeps many processes one run: consensus, heartbeat, signals."""
