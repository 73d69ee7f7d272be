"""The channel: frames between guest, keeper and clients; sessions; copies."""
