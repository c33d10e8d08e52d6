"""python -m dreamoving_cli"""

from dreamoving_cli.cli import app

app(prog_name="dreamoving")
