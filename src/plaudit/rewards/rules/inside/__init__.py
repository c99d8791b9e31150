"""What runs inside the sandbox for rewards whose programs must be rendered. Nothing here imports Plaudit: the sources are
handed to the sandbox as files."""
