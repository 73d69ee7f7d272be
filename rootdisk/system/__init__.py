"""Operating system services for both tools: programs, locks, standard streams, directories, threads."""
