"""`python -m shoal`: the command `shoal`."""

from shoal.command.main import program

if __name__ == "__main__":
    program()
