"""What each command of imagetool does: `NAME_command(options)` writes its results and gives the exit status."""
