"""Rules of what a sandbox may reach, and hosts as programs write them. Pure."""
