"""Frames between a guest and its clients, and pauses of the machine. Pure: no sockets, no clock."""
