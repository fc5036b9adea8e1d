"""How a run was made, as commands that make it again, and what has changed since."""
