"""The commands of imagetool: `NAME_command(options)` writes its results and returns the exit status."""
